import math
import subprocess
import sys

import pytest

import cpuinfer
from cpuinfer.config import EngineConfig, SamplingParams


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"min_tokens": -1},
        {"min_tokens": 5, "max_tokens": 4},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"top_k": -2},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": math.nan},
        {"typical_p": 0.0},
        {"repetition_penalty": 0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -math.inf},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: 101}},
        {"seed": -1},
        {"seed": 1 << 64},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [1]},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": ["a"]},
        {"logprobs": -1},
        {"prompt_logprobs": 1.0},
        {"n": 0},
        {"n": 2, "temperature": 0},
        {"ignore_eos": 1},
    ],
)
def test_sampling_values_out_of_range_are_refused_by_name(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        SamplingParams(**field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field",
    [
        {"prefix_caching": 1},
        {"threads": 0},
        {"kv_type": "f8"},
        {"kv_memory_bytes": 0},
        {"max_context": -5},
        {"token_budget": 0},
        {"max_sequences": 0},
        {"max_waiting": 0},
        {"preemption": "never"},
        {"swap_bytes": -1},
        {"swap_path": "no/such/folder"},
    ],
)
def test_engine_values_out_of_range_are_refused_by_name(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        EngineConfig(**field)  # type: ignore[arg-type]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="thread"):
        EngineConfig(thread=1)  # type: ignore[call-arg]


def test_kv_pages_from_the_budget() -> None:
    config = EngineConfig(max_sequences=8)
    assert config.pages(1000, 16, 4096) == 4 * 63  # four contexts, rounded up to pages
    assert config.pages(1000, 16, 1 << 23) == 128  # 1 GiB
    assert config.pages(1000, 16, 1 << 25) == 63  # always one context
    assert EngineConfig(max_sequences=1).pages(1000, 16, 4096) == 63
    assert EngineConfig(kv_memory_bytes=10_000).pages(1000, 16, 4096) == 2
    with pytest.raises(ValueError, match="kv_memory_bytes: 4000 .*4096 bytes"):
        EngineConfig(kv_memory_bytes=4000).pages(1000, 16, 4096)


def test_the_package_exports_three_names_and_imports_nothing_heavy() -> None:
    assert cpuinfer.__all__ == ["LLM", "AsyncLLM", "SamplingParams"]
    assert cpuinfer.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="nonsense"):
        cpuinfer.nonsense  # noqa: B018
    script = "import sys, cpuinfer; print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
