"""The whole engine, from the wheel, on processors that are emulated: no instruction that they lack, and one answer."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from portability.roots import PROCESSORS, Processor, output

pytestmark = pytest.mark.portability
everywhere = pytest.mark.parametrize(
    "processor", PROCESSORS, ids=lambda p: f"{p.architecture}-{p.model}"
)

ANSWER = ("-p", "The capital of France is", "--max-tokens", "4")


@cache
def here(*arguments: str) -> dict[str, Any]:
    """The JSON that a verb prints on this machine."""
    found: dict[str, Any] = json.loads(
        output([sys.executable, "-m", "cpuinfer.cli", *arguments, "--json"])
    )
    return found


@everywhere
def test_the_expected_level_is_chosen(processor: Processor) -> None:
    code = (
        "from cpuinfer.machine import isa; print(isa.best().level.name, *isa.processor_features())"
    )
    level, *features = processor.run("-c", code).split()
    assert processor.architecture in features
    assert level == processor.level


@everywhere
def test_fingerprint(processor: Processor, real_model: Path) -> None:
    arguments = ("verify", str(real_model), "--kv-type", processor.kv_type)
    expected = here(*arguments)
    found = processor.cpuinfer(*arguments)
    assert found["isa"] == processor.level
    assert found["fingerprint"] == expected["fingerprint"]


@everywhere
def test_answer(processor: Processor, real_model: Path) -> None:
    arguments = ("generate", str(real_model), *ANSWER, "--kv-type", processor.kv_type)
    expected = here(*arguments)
    found = processor.cpuinfer(*arguments)
    assert found["isa"] == processor.level
    assert found["token_ids"] == expected["token_ids"]
    assert found["text"] == expected["text"]


def test_conformance() -> None:
    """Attention with every type of page, norms, rotations: the same bits on every level of Arm and for any threads.
    Products are test_products.py's, which needs no Python there."""
    tests = Path(__file__).parents[1] / "conformance/test_ops.py"
    chosen = "same_bits and (rope- or rmsnorm or window40 or softcap0-sinks) and not matmul"
    # One process: what it starts would not be emulated.
    plain = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow")
    printed = PROCESSORS[-1].run("-m", "pytest", *plain, str(tests), "-k", chosen)
    assert " passed" in printed


def test_doctor_names_the_level() -> None:
    processor = PROCESSORS[-1]
    found = processor.cpuinfer("doctor")
    assert found["isa"] == processor.level
    assert found["architecture"] == processor.architecture
