"""The native device around its kernels: borders, barriers, memory, threads. Kernels: tests/conformance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.devices.arena import allocate
from cpuinfer.devices.barriers import accesses, barriers
from cpuinfer.devices.base import Batch, Limits
from cpuinfer.devices.sampling import Choice
from cpuinfer.graph.dtypes import KVType, WeightType
from cpuinfer.graph.passes import PASSES, memory, optimise
from cpuinfer.graph.passes.replicas import replicas
from cpuinfer.graph.program import Program
from cpuinfer.machine import cpu
from cpuinfer.machine.pace import Pace
from cpuinfer.models import llama

try:
    from cpuinfer.devices import native
    from cpuinfer.devices.native import NativeDevice, NativeExecutable
    from cpuinfer.machine import isa

    LEVELS = [level.name for level in isa.levels() if level.runnable]
except ValueError:
    LEVELS = []
needs_native = pytest.mark.skipif(not LEVELS, reason="no native library is installed")

TYPES = tiny.weight_types(WeightType.Q4_0, attn_v=WeightType.Q4_0)
LIMITS = Limits(max_tokens=32, max_rows=32, n_pages=12, max_context=64)


def program() -> Program:
    return llama.build(tiny.METADATA, TYPES)


def ragged() -> Batch:
    tokens = [[5, 9, 2], [96], list(range(20))]
    return tiny.batch(tokens, [0, 0, 0], [[7], [2], [0, 11]], rows=[0, 2, 3, 23])


def logits(device: NativeDevice, batch: Batch) -> NDArray[np.float32]:
    return device.compile(program(), tiny.weights(TYPES), LIMITS).run(batch).copy()


@needs_native
@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("level", LEVELS)
def test_any_team_gives_the_same_bits(level: str, threads: int) -> None:
    """8 threads are more than many machines have: the barrier must let others run."""
    one = logits(NativeDevice(1, LEVELS[0]), ragged())
    many = logits(NativeDevice(threads, level, share_processors=True), ragged())
    assert np.isfinite(one).all() and one.any()
    assert many.tobytes() == one.tobytes()


class Restless(Pace):
    """Another number of threads after every step."""

    def step(self, shape: object, seconds: float, waited: float) -> None:
        assert seconds > 0 and 0 <= waited <= seconds
        self.threads = self.threads % self.most + 1


@needs_native
def test_a_team_that_changes_between_steps_gives_the_same_bits() -> None:
    expected = logits(NativeDevice(1), ragged())
    choices = [Choice(row, SamplingParams(temperature=1.0), 7, 0, row) for row in range(2)]
    device = NativeDevice(3, share_processors=True)
    steady = device.compile(program(), tiny.weights(TYPES), LIMITS)
    tokens = steady.sampler.choose(steady.run(ragged()).copy(), choices)
    pace = Restless(3)
    executable = NativeExecutable(
        steady.program, tiny.weights(TYPES), LIMITS, device.library, 3, allocate, False, pace
    )
    for _ in range(7):
        got = executable.run(ragged()).copy()
        assert got.tobytes() == expected.tobytes()
        assert executable.sampler.choose(got, choices) == tokens


@needs_native
def test_threads_that_were_asked_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def pace(most: int) -> Pace:
        seen.append(most)
        return Pace(most)

    monkeypatch.setattr(cpu, "processors", lambda: 4)
    monkeypatch.setattr(native, "Pace", pace)
    monkeypatch.setattr(cpu, "default_threads", lambda: cpu.Threads(2, cpu.ENVIRONMENT))
    for device in (NativeDevice(2), NativeDevice()):
        logits(device, ragged())
    assert not seen
    monkeypatch.setattr(cpu, "default_threads", lambda: cpu.Threads(2, "physical cores"))
    logits(NativeDevice(), ragged())
    assert seen == [2]


@needs_native
def test_passes_change_no_bit() -> None:
    lowered = {name: PASSES[name] for name in ("hoist_rows", "lower")}
    plain = logits(NativeDevice(2, passes=lowered), ragged())
    assert logits(NativeDevice(2), ragged()).tobytes() == plain.tobytes()


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_a_large_step_and_small_ones_give_the_same_bits(threads: int) -> None:
    """Of 256 tokens a norm has more than 8192 values: shared by the team, and not done by every thread."""
    tokens, pages = [i * 7 % 97 for i in range(256)], list(range(16))
    every = list(range(256))
    limits = Limits(max_tokens=256, max_rows=256, n_pages=16, max_context=256)
    built = llama.build(tiny.METADATA, TYPES, max_positions=256)
    executable = NativeDevice(threads, share_processors=True).compile(
        built, tiny.weights(TYPES), limits
    )
    assert executable.n_barriers(small=True) < executable.n_barriers(small=False)
    whole = executable.run(tiny.batch([tokens], [0], [pages], every)).copy()
    for begin, end in ((0, 1), (1, 3), (3, 40), (40, 256)):
        rows = every[: end - begin]
        part = executable.run(tiny.batch([tokens[begin:end]], [begin], [pages], rows))
        assert part.tobytes() == whole[begin:end].tobytes()


def test_five_barriers_a_layer_in_small_steps() -> None:
    """q, k and v; attention; its output's product; gate and up; down. The norms and quantise are each thread's own."""
    counts = []
    for layers in (2, 4):
        types = dict(TYPES)
        for i in range(2, layers):
            own = {k: v for k, v in TYPES.items() if k.startswith(f"blk.{i % 2}.")}
            types |= {k.replace(f"blk.{i % 2}.", f"blk.{i}."): v for k, v in own.items()}
        built = optimise(llama.build({**tiny.METADATA, "llama.block_count": layers}, types))
        plan = memory.plan(built, LIMITS.max_tokens, LIMITS.max_rows)
        counts.append(sum(barriers(built, plan, replicas(built))))
    assert counts[1] - counts[0] == 2 * 5


@needs_native
def test_the_callers_floating_point_mode_survives() -> None:
    executable = NativeDevice(2).compile(program(), tiny.weights(TYPES), LIMITS)
    executable.run(ragged())
    denormal = np.full(64, 2.0**-140, np.float32)
    assert (denormal + denormal == np.float32(2.0**-139)).all()
    assert (denormal * np.float32(0.5) > 0).all()


@needs_native
def test_op_seconds_are_measured_on_request() -> None:
    quiet = NativeDevice(1).compile(program(), tiny.weights(TYPES), LIMITS)
    quiet.run(ragged())
    assert not quiet.op_seconds().any()
    measured = NativeDevice(2, measure=True).compile(program(), tiny.weights(TYPES), LIMITS)
    measured.run(ragged())
    first = measured.op_seconds()
    assert first.shape == (len(measured.program.ops),)
    assert (first > 0).all()
    assert not measured.op_seconds().any()


def _changed(**fields: object) -> Batch:
    return ragged()._replace(**fields)


def _i32(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


BAD: dict[str, tuple[Batch, str]] = {
    "token": (_changed(tokens=ragged().tokens + 1), "tokens: 97 is outside 0 to 96"),
    "negative token": (_changed(tokens=ragged().tokens - 1), "tokens: -1 is outside"),
    "dtype": (_changed(tokens=ragged().tokens.astype(np.int64)), "tokens: expected .*int32"),
    "strided": (_changed(positions=np.repeat(ragged().positions, 2)[::2]), "positions: expected"),
    "position": (_changed(positions=ragged().positions + 60), "positions: .* outside 0 to 63"),
    "gap": (_changed(positions=np.sort(ragged().positions)), "consecutive"),
    "few positions": (_changed(positions=ragged().positions[:-1]), "positions: 23 for 24 tokens"),
    "indptr": (_changed(q_indptr=_i32(0, 3, 3, 24)), "q_indptr: must rise"),
    "indptr end": (_changed(q_indptr=_i32(0, 3, 4, 23)), "q_indptr: must rise from 0 to 24"),
    "no sequence": (_changed(q_indptr=_i32(0)), "block_tables"),
    "empty indptr": (_changed(q_indptr=_i32()), "block_tables"),
    "page": (_changed(block_tables=ragged().block_tables + 1), "page 12 is outside 0 to 11"),
    "no page": (_changed(block_tables=np.full((3, 2), -1, np.int32)), "page -1 is outside"),
    "few blocks": (_changed(block_tables=ragged().block_tables[:, :1].copy()), "2 are needed"),
    "row": (_changed(logit_rows=_i32(24)), "logit_rows: 24 is outside 0 to 23"),
    "rows": (_changed(logit_rows=np.zeros(33, np.int32)), "logit_rows: 33 rows"),
    "tokens": (tiny.batch([[1] * 33], [0], [[0, 1, 2]]), "33 tokens; a step takes 1 to 32"),
    "one gap": (
        tiny.batch([[1, 2]], [0], [[0]])._replace(positions=_i32(0, 2)),
        "consecutive",
    ),
    "one page": (tiny.batch([[1]], [16], [[0, 12]]), "block_tables: 12 is outside 0 to 11"),
    "one block": (tiny.batch([[1]], [16], [[0]]), "1 blocks per sequence; 2 are needed"),
    "one indptr": (
        tiny.batch([[1, 2]], [0], [[0]])._replace(q_indptr=_i32(0, 1)),
        "q_indptr: expected",
    ),
}


@needs_native
@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_refused_before_anything_runs(name: str) -> None:
    executable = NativeDevice(1).compile(program(), tiny.weights(TYPES), LIMITS)
    good = executable.run(ragged()).copy()
    batch, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        executable.run(batch)
    assert executable.read(executable.program.output).tobytes() == good.tobytes()


@needs_native
def test_a_step_without_logits() -> None:
    executable = NativeDevice(2).compile(program(), tiny.weights(TYPES), LIMITS)
    assert executable.run(_changed(logit_rows=_i32())).shape == (0, 97)


@needs_native
def test_misaligned_weights_are_refused() -> None:
    weights = tiny.weights(TYPES)
    name, weight = next(iter(weights.items()))
    room = np.zeros(weight.data.size + 128, np.uint8)
    start = -room.ctypes.data % 64 + 4
    moved = dataclasses.replace(weight, data=room[start : start + weight.data.size])
    with pytest.raises(ValueError, match=f"{name}.*64-byte aligned"):
        NativeDevice(1).compile(program(), weights | {name: moved}, LIMITS)


@needs_native
def test_an_op_without_a_kernel_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"attn_q.*no native kernel for weights \['Q4_0'\]"):
        NativeDevice(1, passes={}).compile(program(), tiny.weights(TYPES), LIMITS)


@needs_native
def test_kernels_take_the_weight_types_there_are_and_their_own_input() -> None:
    library = isa.load()
    lib, op = library.lib, library.ffi.new("ci_op *")
    inputs = {"f32": lib.CI_F32, "bf16": lib.CI_BF16, "q8": lib.CI_Q8A}
    known = {int(t): inputs[t.activation] for t in WeightType}
    op.kind, op.out_type = lib.CI_OP_MATMUL, lib.CI_F32
    for number in range(-1, 64):
        op.w[0].type = number
        for op.in_type in inputs.values():
            expected = 0 if known.get(number) == op.in_type else -2
            assert lib.ci_check(op, 1, lib.CI_F16) == expected, (number, op.in_type)


@needs_native
def test_unknown_ops_and_types_never_run() -> None:
    library = isa.load()
    op = library.ffi.new("ci_op *")
    for kind in (0, 13, -1, 2**31 - 1):
        op.kind = kind
        assert library.lib.ci_check(op, 1, library.lib.CI_F16) == -1
    op.kind, op.in_type, op.out_type = library.lib.CI_OP_ADD, library.lib.CI_F32, 7
    assert library.lib.ci_check(op, 1, library.lib.CI_F16) == -2
    op.kind, op.out_type = library.lib.CI_OP_ATTENTION, library.lib.CI_F32
    assert library.lib.ci_check(op, 1, library.lib.CI_Q8_0) == -2
    run = library.ffi.new("ci_program *", {"ops": op, "n_ops": 1, "n_threads": 1})
    run.kv.type = library.lib.CI_Q8_0
    assert library.lib.ci_run(run, library.ffi.NULL) == -2


@needs_native
@pytest.mark.parametrize("kv_type", list(KVType))
def test_impossible_limits_are_refused(kv_type: KVType) -> None:
    for change in ({"max_rows": 33}, {"max_tokens": 0}, {"n_pages": 0}, {"max_context": 513}):
        limits = dataclasses.replace(LIMITS, kv_type=kv_type, **change)
        with pytest.raises(ValueError, match="max_|Limits"):
            NativeDevice(1).compile(program(), tiny.weights(TYPES), limits)


@needs_native
def test_more_memory_than_there_is_is_an_error() -> None:
    limits = dataclasses.replace(LIMITS, n_pages=2**31 - 1)
    with pytest.raises(ValueError, match="lower the KV budget"):
        NativeDevice(1).compile(program(), tiny.weights(TYPES), limits)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("passes", [{}, PASSES], ids=["as built", "optimised"])
def test_barriers_stand_between_all_that_share_memory(
    passes: dict[str, object], small: bool
) -> None:
    built = optimise(program(), passes)
    plan = memory.plan(built, LIMITS.max_tokens, LIMITS.max_rows)
    private = replicas(built) if small else {}
    meet, touched = barriers(built, plan, private), accesses(built, plan, private)

    def shares(some: tuple, others: tuple) -> bool:
        return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in some for b in others)

    for later in range(len(built.ops)):
        for earlier in range(later):
            a, b = touched[earlier], touched[later]
            conflict = shares(a.writes, b.reads + b.writes) or shares(a.reads, b.writes)
            assert not conflict or any(meet[earlier + 1 : later + 1]), (
                f"{built.ops[earlier].label} and {built.ops[later].label} without a barrier"
            )
    assert not meet[0]


def test_native_sources_name_no_instruction_set() -> None:
    """Levels differ by include path alone."""
    native = Path(__file__).parents[2] / "native"
    if not native.is_dir():
        pytest.skip("installed without sources")
    for source in sorted(native.glob("*.[ch]")):
        if source.name not in ("probe.c", "team.h"):
            text = source.read_text()
            for word in (
                "__AVX",
                "__SSE",
                "__ARM_NEON",
                "immintrin",
                "arm_neon",
                "_mm256",
                "vld1q",
            ):
                assert word not in text, f"{source.name} names {word}"
