"""The real model on the reference device, in full precision and as kernels compute it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from cpuinfer.devices.base import Executable, Limits
from cpuinfer.devices.reference import ReferenceDevice
from cpuinfer.formats import load_model
from cpuinfer.graph.passes import LOWERING, PASSES, optimise
from cpuinfer.graph.program import Program
from cpuinfer.hub import ALIASES
from cpuinfer.models import build_program

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROMPT = ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
LIMITS = Limits(16, 16, 2, 32)


@pytest.fixture(scope="module")
def model() -> tuple[Program, Callable[[Program], Executable], list[str]]:
    path = Path(os.environ.get("CPUINFER_TEST_MODEL") or ALIASES["smollm2-135m"].path)
    if not path.is_file():
        pytest.skip(
            f"no model at {path}: run `cpuinfer pull smollm2-135m` or set CPUINFER_TEST_MODEL"
        )
    packed = load_model(path)
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
