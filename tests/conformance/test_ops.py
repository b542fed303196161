"""Every case of the table on every native level that runs here: against the reference, and bytewise alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bounds import Known, error_bound, quantized_bound
from cases import Case, cases
from numpy.typing import NDArray
from running import Rows, meaningful, run, values_of

from cpuinfer.devices.numerics import bf16_to_f32, f32_to_bf16, quantize_heads
from cpuinfer.devices.reference import ReferenceDevice
from cpuinfer.graph.dtypes import Activation, KVType
from cpuinfer.graph.ops import OPS

CASES = {case.name: case for case in cases()}
THREADS = (1, 2, 3)


def _levels() -> list[str]:
    from cpuinfer.machine import isa

    try:
        return [level.name for level in isa.levels() if level.runnable]
    except ValueError:  # no library is installed
        return []


LEVELS = _levels()
needs_native = pytest.mark.skipif(not LEVELS, reason="no native library is installed")


def _native(level: str, threads: int = 1) -> object:
    from running import guarded

    from cpuinfer.devices.native import NativeDevice

    return NativeDevice(threads, level, passes={}, allocator=guarded, share_processors=True)


def test_table_has_every_kind() -> None:
    assert {case.op.kind for case in CASES.values()} | {"kv_write"} == set(OPS)


def _in_f32(case: Case) -> Case:
    """The case with the op's output left in f32 where the op may do that: what rounding is measured from."""
    buffers = dict(case.program.buffers)
    for name, operand in zip(case.op.outputs, OPS[case.op.kind].outputs, strict=True):
        if Activation.F32 in operand.dtypes:
            buffers[name] = dataclasses.replace(buffers[name], dtype=Activation.F32)
    return dataclasses.replace(case, program=dataclasses.replace(case.program, buffers=buffers))


def _stored(x: NDArray[np.float32], kv_type: KVType, head_dim: int) -> NDArray[np.float64]:
    if kv_type is KVType.INT8:
        codes, scales = quantize_heads(x.reshape(len(x), -1, head_dim))
        return (codes * scales[..., None].astype(np.float64)).reshape(x.shape)
    if kv_type is KVType.F16:
        x = x.astype(np.float16).astype(np.float32)
    if kv_type is KVType.BF16:
        x = bf16_to_f32(f32_to_bf16(x))
    return x.astype(np.float64)


def _bounds(case: Case) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Per step: the reference's values of the op's output, and the bound of a kernel's error."""
    exact = _in_f32(case)
    executable = ReferenceDevice().compile(exact.program, exact.weights, exact.limits)
    past: dict[str, list[NDArray[np.float64]]] = {}
    found = []
    for step in exact.steps:
        for name, values in step.inputs.items():
            executable.write(name, values)
        executable.run(step.batch)
        names = (*case.op.inputs, *case.op.outputs)
        read = {n: values_of(executable.read(n), exact.program.buffers[n]) for n in names}
        if case.op.kind == "attention":
            parts = {
                name: np.split(
                    _stored(step.inputs[name], case.limits.kv_type, case.op.attrs["head_dim"]),
                    step.batch.q_indptr[1:-1],
                )
                for name in ("k", "v")
            }
            past = {
                name: [np.concatenate(pair) for pair in zip(past[name], parts[name], strict=True)]
                if past
                else parts[name]
                for name in parts
            }
        known = Known(exact.program, case.op, case.weights, step.batch, read, past)
        result = read[case.op.outputs[0]]
        dtype = case.program.buffers[case.op.outputs[0]].dtype
        kept = exact.program.buffers[case.op.outputs[0]].dtype is dtype
        bound = error_bound(known)
        found.append((result, bound if kept else quantized_bound(bound, result, dtype)))
    return found


@needs_native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_near_reference(name: str, level: str) -> None:
    case = CASES[name]
    _check_near(case, run(_native(level), case))


@pytest.mark.parametrize("name", [] if LEVELS else CASES)  # else compared bytewise, below
def test_numba_is_near_reference(name: str, numba_device: Callable[..., Any]) -> None:
    from running import guarded

    case = CASES[name]
    _check_near(case, run(numba_device(2, passes={}, allocator=guarded), case))


def _check_near(case: Case, got: list[dict[str, Rows]]) -> None:
    for step, (expected, bound) in zip(got, _bounds(case), strict=True):
        values = values_of(step[case.op.outputs[0]], case.program.buffers[case.op.outputs[0]])
        assert values.shape == expected.shape
        wrong = np.argwhere(~(np.abs(values - expected) <= bound))
        assert not len(wrong), (
            f"{len(wrong)} of {values.size}, the first at {wrong[0]}: got {values[tuple(wrong[0])]!r}, "
            f"reference {expected[tuple(wrong[0])]!r}, bound {bound[tuple(wrong[0])]:.3g}"
        )


@needs_native
@pytest.mark.parametrize("name", CASES)
def test_same_bits_for_levels_and_threads(name: str) -> None:
    case = CASES[name]
    oracle = run(_native(LEVELS[0]), case)
    for level in LEVELS:
        for threads in THREADS:
            got = run(_native(level, threads), case)
            _check_same(case, got, oracle, f"{level} with {threads} threads")


@needs_native
@pytest.mark.parametrize("name", CASES)
def test_numba_has_the_same_bits(name: str, numba_device: Callable[..., Any]) -> None:
    from running import guarded

    case = CASES[name]
    oracle = run(_native(LEVELS[0]), case)
    for threads in (1, 3):
        got = run(numba_device(threads, passes={}, allocator=guarded), case)
        _check_same(case, got, oracle, f"numba with {threads} threads")


def _check_same(
    case: Case, got: list[dict[str, Rows]], oracle: list[dict[str, Rows]], which: str
) -> None:
    for mine, theirs in zip(got, oracle, strict=True):
        for buffer in mine:
            spec = case.program.buffers[buffer]
            assert meaningful(mine[buffer], spec) == meaningful(theirs[buffer], spec), (
                f"{buffer} of {which} differs from {LEVELS[0]} with 1"
            )
