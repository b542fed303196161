"""Models of random weights: their values, their types, and that engines read them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import random_model
from random_blocks import random_blocks
from random_model import PRESETS, TYPES, Shape, tensors, vocabulary, write

from cpuinfer import LLM
from cpuinfer.graph.dtypes import WeightType

TINY = Shape("llama", "tiny", 8, 256, 4, 2, 64, 512, 900, 512, 500000.0, 1e-5, "llama-bpe", 32.0)


@pytest.mark.parametrize("kind", list(WeightType), ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [256, 2048])
def test_matrices_have_variance_one_over_k_and_no_mean(kind: WeightType, columns: int) -> None:
    rows = (1 << 20) // columns
    data = random_blocks(np.random.default_rng(1), kind, rows, columns)
    values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(int(kind)))
    assert values.shape == (rows, columns)
    assert np.isfinite(values).all()
    # A million values; those of one block share a scale, so 2^20 / 256 are independent: 6 standard errors.
    assert abs(values.var() * columns - 1) < 0.06
    assert abs(values.mean()) * columns**0.5 < 6 / 64


def test_rows_that_blocks_do_not_fill_are_an_error() -> None:
    with pytest.raises(ValueError, match="Q4_K has blocks of 256"):
        random_blocks(np.random.default_rng(0), WeightType.Q4_K, 2, 320)


@pytest.mark.parametrize("size", [259, 300, 128256])
def test_vocabularies_have_the_size_asked_for_and_a_merge_for_each_word(size: int) -> None:
    tokens, merges = vocabulary(size)
    assert len(tokens) == len(set(tokens)) == size
    assert [merge.replace(" ", "") for merge in merges] == tokens[259:]
    known = set(tokens)
    assert all(known.issuperset(merge.split()) for merge in merges)
    with pytest.raises(ValueError, match="at least 259"):
        vocabulary(258)


def test_types_are_llama_quantizes() -> None:
    def kinds(preset: str, asked: str, pure: bool = False) -> dict[str, str]:
        found = tensors(PRESETS[preset], asked, pure)
        return {t.name.removesuffix(".weight"): t.kind.name for t in found}

    mixed = kinds("llama-3.2-1b", "Q4_K_M")
    assert mixed["token_embd"] == "Q6_K"
    assert mixed["blk.3.attn_q"] == "Q4_K"
    assert [i for i in range(16) if mixed[f"blk.{i}.ffn_down"] == "Q6_K"] == [
        *(0, 1, 4, 7, 10, 13, 14, 15)
    ]
    assert mixed["blk.4.attn_v"] == "Q6_K"
    assert mixed["blk.5.attn_norm"] == "F32"
    small = kinds("smollm2-135m", "Q4_K_M")
    assert small["token_embd"] == "Q8_0"
    assert small["blk.3.attn_q"] == "Q5_0"
    assert small["blk.3.ffn_down"] == "Q4_K"
    assert kinds("llama-3.2-1b", "Q4_0")["token_embd"] == "Q6_K"
    assert kinds("llama-3.2-1b", "Q4_0", pure=True)["token_embd"] == "Q4_0"
    assert kinds("llama-3.2-1b", "BF16")["token_embd"] == "BF16"
    assert "blk.0.attn_q_norm" in kinds("qwen3-0.6b", "Q8_0")


def test_presets_have_the_models_parameters() -> None:
    def parameters(preset: str) -> int:
        return sum(int(np.prod(t.shape)) for t in tensors(PRESETS[preset], "F16"))

    # As the model cards count them, tied embeddings once; Llama files carry 32 or 64 RoPE factors besides.
    assert parameters("llama-3.2-1b") - 32 == 1_235_814_400
    assert parameters("llama-3.2-3b") - 64 == 3_212_749_824
    assert parameters("qwen3-0.6b") == 596_049_920
    assert parameters("smollm2-135m") == 134_515_008


def test_rope_factors_keep_fast_frequencies_and_divide_slow_ones() -> None:
    factors = random_model.rope_factors(PRESETS["llama-3.2-1b"])
    assert factors.shape == (32,)
    assert factors[0] == 1
    assert factors[-1] == 32
    assert (np.diff(factors) >= 0).all()


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write(tmp_path / name, TINY, "Q4_K_M", seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert len(a) == len(c)


@pytest.mark.parametrize("asked", TYPES)
def test_the_engine_reads_every_type(asked: str, tmp_path: Path) -> None:
    shape = dataclasses.replace(TINY, layers=1)
    write(tmp_path / "model.gguf", shape, asked)
    with LLM(tmp_path / "model.gguf", max_context=64, threads=1) as llm:
        logits = llm.logits([0, 5, 300, 17])
    assert logits.shape == (4, 900)
    assert 0.3 < logits.std() < 3


LLAMA_CPP = """
import sys, llama_cpp, numpy
path, out, ids = sys.argv[1], sys.argv[2], [int(id) for id in sys.argv[3:]]
model = llama_cpp.Llama(path, n_ctx=64, n_batch=64, logits_all=True, verbose=False)
model.eval(ids)
numpy.savez(out, logits=model.scores[: len(ids)], tokens=model.tokenize(b"abc, Xyz"))
"""


def llama_cpp_answers(path: Path, ids: list[int]) -> dict[str, np.ndarray]:
    """What llama.cpp computes for `ids`, and its tokens of "abc, Xyz", in a process of its own.

    A file that it cannot take ends each of two runs. A signal once ended one that neither 190 repetitions nor valgrind
    found fault with.
    """
    out = path.with_suffix(".npz")
    arguments = [str(path), str(out), *map(str, ids)]
    command = [sys.executable, "-X", "faulthandler", "-c", LLAMA_CPP, *arguments]
    done = subprocess.run(command, check=False)
    if done.returncode < 0:
        warnings.warn(f"llama.cpp ended by signal {-done.returncode}", stacklevel=2)
        done = subprocess.run(command, check=False)
    assert done.returncode == 0
    with np.load(out) as answers:
        return dict(answers)


@pytest.mark.peer
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_llama_cpp_reads_it_and_answers_alike(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    qwen = {"architecture": "qwen3", "pre": "qwen2", "rope_factor": 0.0}
    shape = dataclasses.replace(TINY, **(qwen if architecture == "qwen3" else {}))
    path = tmp_path / "model.gguf"
    write(path, shape, "Q8_0")
    ids = [0, *range(260, 290)]
    theirs = llama_cpp_answers(path, ids)
    expected = theirs["logits"]
    assert np.isfinite(expected).all()
    assert 0.3 < expected.std() < 3
    if architecture == "llama":
        with LLM(path, max_context=64, threads=1) as llm:
            # Activations in 8 bits differ a little between engines; other weights would not correlate at all.
            assert np.corrcoef(llm.logits(ids)[-1], expected[-1])[0, 1] > 0.995
            assert llm.tokenizer.encode("abc, Xyz") == theirs["tokens"].tolist()
