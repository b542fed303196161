"""The roofline: what a run did, beside what the machine could have done.

Williams, Waterman and Patterson 2009, Roofline: an insightful visual performance model for multicore architectures.
An op's bound is the longer of two times: that of its bytes at the bandwidth of the memory which holds its working
set, and that of its operations at the peak of its type of product. Its share of the ceiling is bound / measured time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cpuinfer.machine.ceilings import Ceilings


@dataclass(frozen=True)
class Roofline:
    """What decoding reached beside the machine's limit.

    bytes_per_token: bytes that decoding one token reads (weights and KV); bytes_per_s: that times the tokens per
    second; read_bandwidth: bytes per second at which the machine reads a working set of that size; share:
    bytes_per_s / read_bandwidth.
    """

    bytes_per_token: float
    bytes_per_s: float
    read_bandwidth: float
    share: float


def roofline(bytes_per_token: float, tokens_per_s: float, read_bandwidth: float) -> Roofline:
    """How near decoding came to the limit (bandwidth in bytes per second)."""
    reached = bytes_per_token * tokens_per_s
    return Roofline(bytes_per_token, reached, read_bandwidth, reached / read_bandwidth)


@dataclass(frozen=True)
class Work:
    """What ops of one kind did: `calls` of them in `seconds`, the bytes and operations of all together.

    working_set: bytes between two reads of the same data, which say what memory it comes from. products: the part of
    the operations for each name of Ceilings.peaks; the parts add up to 1.
    """

    name: str
    calls: int
    seconds: float
    bytes: float
    operations: float
    working_set: float
    products: Mapping[str, float]


@dataclass(frozen=True)
class OpStats:
    """One kind of op in one phase, summed over its calls.

    bytes: each operand read or written once. operations: a multiplication and an addition are two. bound: what binds
    it, "DRAM bandwidth" or "int8 peak" for instance; ceiling: that ceiling, in bytes/s or operations/s, and
    share_of_ceiling the part of it that was reached. share_of_time: of the phase. arithmetic intensity is
    operations / bytes.
    """

    name: str
    calls: int
    seconds: float
    bytes: float
    operations: float
    bytes_per_s: float
    operations_per_s: float
    bound: str
    ceiling: float
    share_of_ceiling: float
    share_of_time: float


@dataclass(frozen=True)
class PhaseStats:
    """The steps of one phase: "decode" (one token of each sequence) or "prefill" (all others).

    seconds: whole steps. fork_join_s: in the device's call but in no op. python_s: in the step but not in that call
    (scheduling, sampling, text). The ops' seconds, fork_join_s and python_s add up to seconds. share_of_ceiling: the
    sum of the ops' bounds over seconds.
    """

    phase: str
    steps: int
    tokens: int
    seconds: float
    ops: tuple[OpStats, ...]
    fork_join_s: float
    python_s: float
    share_of_ceiling: float

    def as_json(self) -> dict[str, Any]:
        """As an object of plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Stats:
    """What the steps of a run did, by phase, and the ceilings beside which they stand."""

    phases: tuple[PhaseStats, ...]
    ceilings: Ceilings

    def as_json(self) -> dict[str, Any]:
        """As an object of plain values."""
        return {
            "phases": [phase.as_json() for phase in self.phases],
            "ceilings": self.ceilings.as_json(),
        }


def bound_times(work: Work, ceilings: Ceilings) -> tuple[float, float]:
    """Seconds that the work takes at least: for its bytes, and for its operations."""
    moving = work.bytes / ceilings.bandwidth_at(work.working_set)
    computing = sum(
        work.operations * part / ceilings.peaks[name] for name, part in work.products.items()
    )
    return moving, computing


def op_stats(name: str, works: Sequence[Work], ceilings: Ceilings, phase_s: float) -> OpStats:
    """Works of one name as one. phase_s: seconds of the whole phase."""
    times = [bound_times(work, ceilings) for work in works]
    moving, computing = (sum(column) for column in zip(*times, strict=True))
    bound_s = sum(max(both) for both in times)
    seconds = sum(work.seconds for work in works)
    n_bytes = sum(work.bytes for work in works)
    operations = sum(work.operations for work in works)
    if moving >= computing:
        level = _heaviest((ceilings.level_of(w.working_set), w.bytes) for w in works)
        bound, ceiling = f"{level} bandwidth", n_bytes / moving if moving else 0.0
    else:
        parts = ((p, w.operations * part) for w in works for p, part in w.products.items())
        bound, ceiling = f"{_heaviest(parts)} peak", operations / computing
    return OpStats(
        name=name,
        calls=sum(work.calls for work in works),
        seconds=seconds,
        bytes=n_bytes,
        operations=operations,
        bytes_per_s=n_bytes / seconds if seconds else 0.0,
        operations_per_s=operations / seconds if seconds else 0.0,
        bound=bound,
        ceiling=ceiling,
        share_of_ceiling=bound_s / seconds if seconds else 0.0,
        share_of_time=seconds / phase_s if phase_s else 0.0,
    )


def phase_stats(
    phase: str,
    steps: int,
    tokens: int,
    works: Iterable[Work],
    device_s: float,
    step_s: float,
    ceilings: Ceilings,
) -> PhaseStats:
    """A phase of its works; device_s and step_s: seconds in the device's calls, and of whole steps."""
    groups: dict[str, list[Work]] = {}
    for work in works:
        groups.setdefault(work.name, []).append(work)
    ops = [op_stats(name, group, ceilings, step_s) for name, group in groups.items()]
    bound_s = sum(op.share_of_ceiling * op.seconds for op in ops)
    return PhaseStats(
        phase=phase,
        steps=steps,
        tokens=tokens,
        seconds=step_s,
        ops=tuple(sorted(ops, key=lambda op: -op.seconds)),
        fork_join_s=device_s - sum(op.seconds for op in ops),
        python_s=step_s - device_s,
        share_of_ceiling=bound_s / step_s if step_s else 0.0,
    )


def _heaviest(parts: Iterable[tuple[str, float]]) -> str:
    weights: dict[str, float] = {}
    for name, weight in parts:
        weights[name] = weights.get(name, 0.0) + weight
    return max(weights, key=lambda name: weights[name])
