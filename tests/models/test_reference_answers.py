"""The real model on the reference device, in full precision and as kernels compute it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from cpuinfer.devices.base import Executable, Limits
from cpuinfer.devices.reference import ReferenceDevice
from cpuinfer.formats import load_model
from cpuinfer.graph.dtypes import KVType
from cpuinfer.graph.passes import LOWERING, PASSES, optimise
from cpuinfer.graph.program import Program
from cpuinfer.hub import ALIASES
from cpuinfer.models import build_program

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROMPT = ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
LIMITS = Limits(16, 16, 2, 32)


def model_path() -> Path:
    path = Path(os.environ.get("CPUINFER_TEST_MODEL") or ALIASES["smollm2-135m"].path)
    if not path.is_file():
        pytest.skip(
            f"no model at {path}: run `cpuinfer pull smollm2-135m` or set CPUINFER_TEST_MODEL"
        )
    return path


@pytest.fixture(scope="module")
def model() -> tuple[Program, Callable[[Program], Executable], list[str]]:
    packed = load_model(model_path())
    program = build_program(packed.metadata, packed.weight_types, max_positions=32)

    def compile_(program: Program) -> Executable:
        return ReferenceDevice().compile(program, packed.weights, LIMITS)

    return program, compile_, list(packed.metadata["tokenizer.ggml.tokens"])


def greedy(executable: Executable, vocabulary: list[str], count: int) -> list[str]:
    """The prompt's greedy continuation."""
    tokens, past, text = [vocabulary.index(token) for token in PROMPT], 0, []
    for _ in range(count):
        logits = executable.run(tiny.batch([tokens], [past], [[1, 0]]))
        past += len(tokens)
        tokens = [int(logits[0].argmax())]
        text.append(vocabulary[tokens[0]])
    return text


def test_the_capital_of_france(
    model: tuple[Program, Callable[[Program], Executable], list[str]],
) -> None:
    """Weights as they are, activations in f32: nothing is quantised on the way."""
    program, compile_, vocabulary = model
    assert greedy(compile_(program), vocabulary, 2) == ["ĠParis", "."]


def test_native_is_near_the_reference() -> None:
    """Of a difference of one ulp, thirty layers make other roundings altogether. The kernels' logits and those of the
    reference that rounds as they do are then full precision's plus two independent errors of one size, and half their
    squared distance, which KL is to first order, has twice the mean of either's.
    """
    from cpuinfer.devices.native import NativeDevice

    packed = load_model(model_path())
    program = build_program(packed.metadata, packed.weight_types, max_positions=32)
    rounded = optimise(program, LOWERING)
    ids = np.random.default_rng(1).integers(0, program.vocab_size, 16).tolist()
    batch = tiny.batch([ids], [0], [[0]], list(range(16)))
    kept = dataclasses.replace(LIMITS, kv_type=KVType.F32)
    ours, lowered, full = (
        device.compile(p, packed.weights, limits).run(batch).copy()
        for device, p, limits in (
            (NativeDevice(2), program, LIMITS),
            (ReferenceDevice(), rounded, LIMITS),
            (ReferenceDevice(), program, kept),
        )
    )
    noise, error = tiny.divergence(lowered, full), tiny.divergence(lowered, ours)
    print(f"KL of rounding {noise.mean():.3g}, of the kernels {error.mean():.3g}")
    assert error.mean() <= 2 * noise.mean()


def test_fused_is_unfused_and_names_paris(
    model: tuple[Program, Callable[[Program], Executable], list[str]],
) -> None:
    program, compile_, vocabulary = model
    ids = [[vocabulary.index(token) for token in PROMPT]]
    batch = tiny.batch(ids, [0], [[0]], list(range(5)))
    logits = [
        compile_(optimise(program, passes)).run(batch).copy() for passes in (LOWERING, PASSES)
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert vocabulary[int(logits[1][-1].argmax())] == "ĠParis"
