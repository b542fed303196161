"""The meter: what it adds up is what the op table says of the steps that ran, and no bit of them changes."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from cpuinfer.devices.base import Batch, Executable, Limits
from cpuinfer.devices.meter import Meter, alike, is_measurable, op_bytes, op_name, products
from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.ops import StepSize, spec_of
from cpuinfer.machine.ceilings import PEAKS, Ceilings
from cpuinfer.models import llama

try:
    from cpuinfer.devices.native import NativeDevice, NativeExecutable
    from cpuinfer.machine.isa import levels

    HAS_NATIVE = any(level.runnable for level in levels())
except ValueError:
    HAS_NATIVE = False
pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="no native library is installed")

TYPES = tiny.weight_types(WeightType.Q8_0, attn_v=WeightType.Q4_0)
LIMITS = Limits(max_tokens=32, max_rows=32, n_pages=12, max_context=64)
CEILINGS = Ceilings(
    "cpu", "avx2", 2, ((1 << 10, 1e11), (1 << 30, 1e10)), dict.fromkeys(PEAKS, 1e12), (("L1", 999),)
)


def compiled() -> NativeExecutable:
    program = llama.build(tiny.METADATA, TYPES)
    return NativeDevice(2).compile(program, tiny.weights(TYPES), LIMITS)


def prompt(rows: list[int]) -> Batch:
    return tiny.batch([[5, 9, 2, 4, 1]], [0], [[7]], rows=rows)


def pair(position: int) -> Batch:
    """One token of each of two sequences."""
    return tiny.batch([[3], [8]], [position, position + 1], [[7], [2]], rows=[0, 1])


STEPS = [
    (prompt([]), StepSize(5, 0, 5, 15)),
    (prompt([4]), StepSize(5, 1, 5, 15)),
    (pair(5), StepSize(2, 2, 6 + 7, 6 + 7)),
    (pair(6), StepSize(2, 2, 7 + 8, 7 + 8)),
    (pair(7), StepSize(2, 2, 8 + 9, 8 + 9)),
]


def test_steps_are_added_up_by_phase() -> None:
    meter = Meter(compiled())
    for batch, _ in STEPS:
        meter.run(batch)
        meter.end_step(1.0)
    program = meter.executable.program
    prefill, decode = meter.stats(CEILINGS).phases
    assert (prefill.phase, prefill.steps, prefill.tokens) == ("prefill", 2, 10)
    assert (decode.phase, decode.steps, decode.tokens) == ("decode", 3, 6)
    for phase, sizes in ((prefill, STEPS[:2]), (decode, STEPS[2:])):
        assert phase.seconds == pytest.approx(len(sizes))
        spent = sum(op.seconds for op in phase.ops)
        assert 0 < spent <= phase.seconds
        assert spent + phase.fork_join_s + phase.python_s == pytest.approx(phase.seconds)
        assert phase.fork_join_s > 0
        assert phase.python_s > 0
        assert {op.name for op in phase.ops} == {op_name(op, program) for op in program.ops}
        for kind in {op.kind for op in program.ops}:
            ours = [op for op in phase.ops if op.name.split()[0] == kind]
            ops = [op for op in program.ops if op.kind == kind]
            expected = [(op, size) for op in ops for _, size in sizes]
            # An op over the rows that need logits does nothing in a step without any.
            worked = [(o, s) for o, s in expected if op_bytes(o, program, s)[0]]
            assert sum(op.bytes for op in ours) == sum(
                spec_of(o).bytes(o, program, s) for o, s in worked
            )
            assert sum(op.operations for op in ours) == sum(
                spec_of(o).operations(o, program, s) for o, s in worked
            )
            assert sum(op.calls for op in ours) == len(expected)


def test_measuring_changes_no_bit() -> None:
    plain, meter = compiled(), Meter(compiled())
    for batch, _ in STEPS:
        expected = plain.run(batch).tobytes()
        assert meter.run(batch).tobytes() == expected
        assert meter.read(meter.executable.program.output).tobytes() == expected


def test_clear_starts_anew() -> None:
    meter = Meter(compiled())
    assert meter.stats(CEILINGS).phases == ()
    meter.run(pair(5))
    meter.clear()
    assert meter.stats(CEILINGS).phases == ()
    meter.run(pair(6))
    (phase,) = meter.stats(CEILINGS).phases
    assert (phase.steps, phase.python_s) == (1, 0.0)
    assert phase.seconds >= sum(op.seconds for op in phase.ops)


def test_a_step_that_raises_is_not_counted() -> None:
    meter = Meter(compiled())
    with pytest.raises(ValueError, match="outside"):
        meter.run(tiny.batch([[5]], [0], [[99]], rows=[0]))
    assert meter.stats(CEILINGS).phases == ()


def test_peaks_follow_the_weight_types() -> None:
    program = compiled().program
    found = {op_name(op, program): products(op, program) for op in program.ops}
    assert found["rmsnorm"] == found["attention"] == {"f32": 1.0}
    assert found["matmul_swiglu Q8_0"] == {"int8": 1.0}
    mixed = found["matmul_qkv_rope Q8_0+Q4_0"]
    heads, kv_heads = 4, 2
    assert mixed["int4"] == pytest.approx(kv_heads / (heads + 2 * kv_heads))
    assert sum(mixed.values()) == pytest.approx(1.0)


def test_weights_and_kv_stream() -> None:
    program = compiled().program
    size = StepSize(1, 1, 10, 10)
    for op in program.ops:
        total, streamed = op_bytes(op, program, size)
        assert 0 <= streamed <= total
        reads = bool(op.weights) or spec_of(op).kv != ""
        assert (streamed > 0) == (reads or op.kind == "embed"), op.kind


def test_groups_hold_every_op_once() -> None:
    program = compiled().program
    groups = list(alike(program).values())
    assert sorted(i for group in groups for i in group) == list(range(len(program.ops)))
    assert len(groups) < len(program.ops)
    for group in groups:
        assert len({program.ops[i].kind for i in group}) == 1


def test_only_devices_that_time_ops_are_metered() -> None:
    class Plain:
        pass

    plain: Executable = Plain()  # type: ignore[assignment]
    assert not is_measurable(plain)
    assert is_measurable(compiled())
    np.testing.assert_array_equal(Meter(compiled()).op_seconds(), 0.0)
