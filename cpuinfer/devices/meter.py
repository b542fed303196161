"""What each op of a run's steps cost: time, bytes, operations, by phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.base import Batch, Executable, Limits
from cpuinfer.devices.sampling import Sampler
from cpuinfer.graph.dtypes import Activation, WeightType
from cpuinfer.graph.ops import StepSize, spec_of
from cpuinfer.graph.program import Op, Program
from cpuinfer.machine.ceilings import Ceilings
from cpuinfer.machine.roofline import Stats, Work, phase_stats

PHASES = ("prefill", "decode")
"""decode: steps of one token of each sequence; prefill: all others, so also those where some sequences decode."""

_EIGHT_BITS = {"Q8_0", "IQ4_NL", "IQ4_XS"}
"""Weight types whose codes are multiplied as 8 bits; those of the others with q8 activations are smaller."""


class Measurable(Executable, Protocol):
    """An Executable that times its ops on request."""

    program: Program
    limits: Limits

    def measure_ops(self, on: bool) -> None:
        """Whether op_seconds counts from now on."""
        ...


def is_measurable(executable: Executable) -> TypeGuard[Measurable]:
    """Whether a Meter can run it."""
    return hasattr(executable, "measure_ops")


def open_meter(executable: Executable) -> Meter:
    """A Meter of an executable. Raises ValueError where its device does not time ops."""
    if not is_measurable(executable):
        raise ValueError("stats: this device does not time its ops; use the device 'native'")
    return Meter(executable)


@dataclass
class _Steps:
    """Sums over the steps of one shape: tokens and rows are the same in all of them."""

    op_seconds: NDArray[np.float64]
    steps: int = 0
    context: int = 0
    pairs: int = 0
    device_s: float = 0.0
    step_s: float = 0.0


class Meter:
    """Runs an Executable and adds up what its steps cost. Not thread-safe, as the Executable.

    Whoever runs a step through it may then say with end_step how long the step took in all. What it costs itself is
    one clock read per op by one thread, and a few microseconds a step.
    """

    def __init__(self, executable: Measurable) -> None:
        self.executable = executable
        self.kv = executable.kv
        self._groups = list(alike(executable.program).values())
        self._shapes: dict[tuple[str, int, int], _Steps] = {}
        self._last: _Steps | None = None
        self._last_s = 0.0
        executable.measure_ops(True)
        executable.op_seconds()

    @property
    def sampler(self) -> Sampler | None:
        """As Executable.sampler."""
        return self.executable.sampler

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """As Executable.run; a step that raises is not counted."""
        tokens, seqs = len(batch.tokens), len(batch.q_indptr) - 1
        shape = (PHASES[tokens == seqs], tokens, len(batch.logit_rows))
        steps = self._shapes.get(shape)
        if steps is None or steps is not self._last:
            self._collect()
            steps = steps or _Steps(np.zeros(len(self.executable.program.ops)))
        begin = perf_counter()
        logits = self.executable.run(batch)
        self._last_s = perf_counter() - begin
        self._shapes[shape] = self._last = steps
        context, pairs = _context_and_pairs(batch)
        steps.steps += 1
        steps.context += context
        steps.pairs += pairs
        steps.device_s += self._last_s
        steps.step_s += self._last_s
        return logits

    def end_step(self, seconds: float) -> None:
        """The step that ran last took so many seconds in all, `run` included."""
        if self._last is not None:
            self._last.step_s += seconds - self._last_s

    def clear(self) -> None:
        """Forget all steps."""
        self._collect()
        self._shapes.clear()
        self._last = None

    def stats(self, ceilings: Ceilings) -> Stats:
        """What the steps since the last `clear` did; phases without a step are left out."""
        self._collect()
        phases = []
        for phase in PHASES:
            shapes = [(key, steps) for key, steps in self._shapes.items() if key[0] == phase]
            if not shapes:
                continue
            works = [
                work
                for (_, tokens, rows), steps in shapes
                for work in self._works(tokens, rows, steps)
            ]
            phases.append(
                phase_stats(
                    phase,
                    sum(steps.steps for _, steps in shapes),
                    sum(tokens * steps.steps for (_, tokens, _), steps in shapes),
                    works,
                    sum(steps.device_s for _, steps in shapes),
                    sum(steps.step_s for _, steps in shapes),
                    ceilings,
                )
            )
        return Stats(tuple(phases), ceilings)

    def read(self, buffer: str) -> NDArray[np.float32] | NDArray[np.uint8]:
        """As Executable.read."""
        return self.executable.read(buffer)

    def write(self, buffer: str, values: NDArray[np.float32]) -> None:
        """As Executable.write."""
        self.executable.write(buffer, values)

    def op_seconds(self) -> NDArray[np.float64]:
        """Zeros: the Meter itself takes what the Executable measures."""
        return np.zeros(len(self.executable.program.ops))

    def _collect(self) -> None:
        """Add what the Executable has timed to the steps that ran last: they alone ran since the last time."""
        seconds = self.executable.op_seconds()
        if self._last is not None:
            self._last.op_seconds += seconds

    def _works(self, tokens: int, rows: int, steps: _Steps) -> Iterator[Work]:
        """The ops of steps of one shape; at the mean of their contexts, as bytes and operations grow evenly with it."""
        program, n = self.executable.program, steps.steps
        context, pairs = round(steps.context / n), round(steps.pairs / n)
        mean = StepSize(tokens, rows, context, pairs, self.executable.limits.kv_type)
        sizes = [op_bytes(program.ops[group[0]], program, mean) for group in self._groups]
        streamed = sum(
            len(group) * own for group, (_, own) in zip(self._groups, sizes, strict=True)
        )
        for group, (moved, own) in zip(self._groups, sizes, strict=True):
            op, calls = program.ops[group[0]], n * len(group)
            yield Work(
                name=op_name(op, program),
                calls=calls,
                seconds=float(steps.op_seconds[group].sum()),
                bytes=calls * moved,
                operations=calls * spec_of(op).operations(op, program, mean) if moved else 0,
                working_set=streamed if 2 * own >= moved else moved,
                products=products(op, program),
            )


def _context_and_pairs(batch: Batch) -> tuple[int, int]:
    """StepSize's context and pairs of a batch."""
    if len(batch.q_indptr) == 2:
        n, end = len(batch.tokens), int(batch.positions[-1]) + 1
        return end, n * end - n * (n - 1) // 2
    ends = batch.positions[batch.q_indptr[1:] - 1].astype(np.int64) + 1
    counts = np.diff(batch.q_indptr).astype(np.int64)
    return int(ends.sum()), int((counts * ends - counts * (counts - 1) // 2).sum())


def op_name(op: Op, program: Program) -> str:
    """The op's kind, and the types of its matrices where it has any: matmul_swiglu Q4_1."""
    kinds = dict.fromkeys(
        program.weights[name].type.name
        for name in op.weights
        if len(program.weights[name].shape) == 2
    )
    return " ".join([op.kind, "+".join(kinds)]) if kinds else op.kind


def products(op: Op, program: Program) -> dict[str, float]:
    """The part of the op's operations for each name of ceilings.PEAKS; those without matrices compute in f32."""
    parts: dict[str, float] = {}
    if op.kind.startswith("matmul"):
        for name in op.weights:
            weight = program.weights[name]
            peak = peak_of(weight.type)
            parts[peak] = parts.get(peak, 0.0) + weight.shape[0]
    total = sum(parts.values())
    return {peak: part / total for peak, part in parts.items()} if parts else {"f32": 1.0}


def peak_of(type: WeightType) -> str:
    if not type.is_native or type.activation is Activation.F32:
        return "f32"
    if type.activation is Activation.BF16:
        return "bf16"
    return "int8" if type.name in _EIGHT_BITS else "int4"


def op_bytes(op: Op, program: Program, size: StepSize) -> tuple[int, int]:
    """Bytes of the op in a step, and those of them that are weights or KV: what passes through the caches once a step.

    An op over the rows that need logits does nothing where there are none.
    """
    rows = {"T": size.tokens, "R": size.rows}
    if op.outputs and not rows[program.buffers[op.outputs[0]].rows]:
        return 0, 0
    buffers = (program.buffers[name] for name in op.inputs + op.outputs)
    total = spec_of(op).bytes(op, program, size)
    return total, max(0, total - sum(rows[b.rows] * b.dtype.row_bytes(b.width) for b in buffers))


def alike(program: Program) -> dict[object, list[int]]:
    """The program's ops, by number, in groups that differ in nothing but the layer."""
    groups: dict[object, list[int]] = {}
    for i, op in enumerate(program.ops):
        buffers = [program.buffers[name] for name in op.inputs + op.outputs]
        weights = [program.weights[name] for name in op.weights]
        key = (
            op.kind,
            tuple((b.rows, b.width, b.dtype) for b in buffers),
            tuple((w.shape, w.type) for w in weights),
            tuple(sorted((name, op.attrs[name]) for name in op.attrs if name != "layer")),
        )
        groups.setdefault(key, []).append(i)
    return groups
