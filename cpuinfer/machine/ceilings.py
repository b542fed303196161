"""What this machine can do at most with a team of threads: bandwidth by working set, and peaks; measured once, kept."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from cpuinfer.machine import cpu, system
from cpuinfer.machine.folders import cache_dir

PEAKS: Mapping[str, tuple[str, ...]] = {
    "f32": ("f32",),
    "bf16": ("f32", "bf16_blocks"),
    "int4": ("int4", "int4_blocks"),
    "int8": ("int8", "int8_blocks"),
}
"""A peak by name, and the sequences of native/api.h of which the fastest is the peak. int4, int8: the products of int8
activations with codes of fewer than 8 bits, or of 8. bf16: two FMAs, or what the level has instead."""

MEMORY = "DRAM"
"""The level of memory behind all caches."""

_VERSION = 1
STREAMS = (1, 4)
"""Runs that a thread reads side by side; which is faster differs by machine and level of memory."""
_LEAST_BYTES = 64 << 20
_MOST_BYTES = 1 << 30
_SMALLEST = 16 << 10
UNIT = 512
"""Bytes of a thread's share that Library.read takes whole."""
_QUIET = 0.85
"""A team that had less than this part of its processors was not alone."""
_BUSY_SECONDS = 600


class Machine(Protocol):
    """What measures: a Library of machine.isa."""

    def fill(self, address: int, n: int, threads: int, value: float) -> None:
        """As Library.fill."""

    def read(self, address: int, n: int, threads: int, streams: int, repetitions: int) -> int:
        """As Library.read."""
        ...

    def peak(self, kind: str, threads: int, repetitions: int) -> int:
        """As Library.peak."""
        ...


@dataclass(frozen=True)
class Effort:
    """How long to measure: each figure is the best of `times` samples of at least `seconds`."""

    seconds: float = 0.002
    times: int = 5


DEFAULT_EFFORT = Effort()


@dataclass(frozen=True)
class Ceilings:
    """Ceilings of one team on one machine.

    bandwidth: (bytes of the working set, bytes per second read), sets ascending. peaks: name -> operations per second
    (a multiplication and an addition are two). levels: (name, bytes that the team holds in it), nearest first, DRAM
    not among them. busy: measured while others used the processors, so too low.
    """

    cpu: str
    isa: str
    threads: int
    bandwidth: tuple[tuple[int, float], ...]
    peaks: Mapping[str, float]
    levels: tuple[tuple[str, int], ...]
    busy: bool = False

    def bandwidth_at(self, nbytes: float) -> float:
        """Bytes per second at which a working set of that size is read over and over; between two sets measured,
        along the line in log(bytes)."""
        sizes = [size for size, _ in self.bandwidth]
        at = bisect_left(sizes, nbytes)
        if at in (0, len(sizes)):
            return self.bandwidth[min(at, len(sizes) - 1)][1]
        (below, slow), (above, fast) = self.bandwidth[at - 1 : at + 1]
        part = math.log(nbytes / below) / math.log(above / below)
        return slow + part * (fast - slow)

    def level_of(self, nbytes: float) -> str:
        """The nearest level of memory that holds so many bytes."""
        return next((name for name, size in self.levels if nbytes <= size), MEMORY)

    def by_level(self) -> dict[str, float]:
        """Bytes per second of each level, read with a working set that half fills it; of memory, the largest."""
        found = {name: self.bandwidth_at(size / 2) for name, size in self.levels}
        return found | {MEMORY: self.bandwidth[-1][1]}

    def as_json(self) -> dict[str, Any]:
        """Everything as an object of plain values."""
        return {
            "cpu": self.cpu,
            "isa": self.isa,
            "threads": self.threads,
            "bandwidth": [{"bytes": size, "bytes_per_s": rate} for size, rate in self.bandwidth],
            "bandwidth_by_level": self.by_level(),
            "peaks": dict(self.peaks),
            "levels": [{"name": name, "bytes": size} for name, size in self.levels],
            "busy": self.busy,
        }


def ceilings(
    kernels: Machine, reader: Machine, isa: str, threads: int, fresh: bool = False
) -> Ceilings:
    """The ceilings of `threads` threads; from the cache unless `fresh` or not there yet.

    kernels: the level `isa`, whose peaks count. reader: the level that reads memory, the best one: bandwidth is the
    machine's. The cache is ceilings.json in the cache folder, keyed by CPU model, level and threads; a file that is
    not ours to read, or holds anything else than `measure` gives, is as good as none. What was measured while others
    used the processors serves for ten minutes, and replaces nothing better.
    """
    path = cache_dir() / "ceilings.json"
    key = f"{cpu.cpu_name()}|{isa}|{threads}"
    known = _load(path)
    kept = known.get(key)
    if kept is not None and not fresh and _serves(kept):
        rows = tuple((int(size), float(rate)) for size, rate in kept["bandwidth"])
        levels = team_levels(cpu.caches(), threads)
        return Ceilings(cpu.cpu_name(), isa, threads, rows, kept["peaks"], levels, kept["busy"])
    found = measure(kernels, reader, isa, threads, working_sets(threads), DEFAULT_EFFORT)
    if kept is None or kept["busy"] or not found.busy:
        known[key] = {
            "bandwidth": found.bandwidth,
            "peaks": found.peaks,
            "busy": found.busy,
            "measured": time.time(),
        }
        # A cache that cannot be written costs only the next measurement.
        with contextlib.suppress(OSError):
            _save(path, known)
    return found


def _serves(kept: Mapping[str, Any]) -> bool:
    """Whether an entry of the cache is good enough: a quiet one always."""
    return not kept["busy"] or 0 <= time.time() - kept["measured"] < _BUSY_SECONDS


def measure(
    kernels: Machine,
    reader: Machine,
    isa: str,
    threads: int,
    sizes: Sequence[int],
    effort: Effort,
) -> Ceilings:
    """Measure now. sizes: bytes of the working sets, ascending multiples of 512 bytes a thread.

    The memory is first written by the threads that read it. Each figure is the best over several streams a thread, or
    several sequences, and over samples spread over the whole time, because it stands for a limit: whatever else the
    machine does can only slow a sample down. For the same reason a set is never slower than a larger one.
    """
    raw = np.empty(sizes[-1] // 4 + 16, np.float32)
    begin = -raw.ctypes.data % 64 // 4
    words = raw[begin : begin + sizes[-1] // 4]
    reader.fill(words.ctypes.data, words.size, threads, 1.0)
    if (total := reader.read(words.ctypes.data, words.size, threads, 4, 1)) != words.size:
        raise RuntimeError(f"a read of {words.size} ones gave {total}")

    def read(nbytes: int, streams: int, repetitions: int, team: int) -> float:
        n = nbytes // threads * team // 4
        reader.read(words.ctypes.data, n, team, streams, repetitions)
        return 4.0 * n * repetitions

    def compute(kind: str, repetitions: int, team: int) -> float:
        return float(kernels.peak(kind, team, repetitions))

    works: dict[tuple[str, str | int], list[Work]] = {}
    for size in sizes:
        works["read", size] = [partial(read, size, streams) for streams in STREAMS]
    for name, kinds in PEAKS.items():
        works["peak", name] = [partial(compute, k) for k in kinds if kernels.peak(k, 1, 1) > 0]
    rates, processors = best_rates(works, threads, effort)
    bandwidth = [rates["read", size] for size in sizes]
    for i in reversed(range(len(bandwidth) - 1)):
        bandwidth[i] = max(bandwidth[i], bandwidth[i + 1])
    return Ceilings(
        cpu.cpu_name(),
        isa,
        threads,
        tuple(zip(sizes, bandwidth, strict=True)),
        {name: rates["peak", name] for name in PEAKS},
        team_levels(cpu.caches(), threads),
        busy=processors < _QUIET * threads,
    )


Work = Callable[[int, int], float]
"""work(n, team) does n repetitions of one thread's share in each thread of a team; returns how much that was in all."""

Key = TypeVar("Key")


def best_rates(
    works: Mapping[Key, Sequence[Work]], threads: int, effort: Effort
) -> tuple[dict[Key, float], float]:
    """The most work per second of each key's alternatives, and how many processors the samples had between them."""
    every = [(key, work) for key, alternatives in works.items() for work in alternatives]
    repetitions = [calibrate(work, effort.seconds) for _, work in every]
    rates = dict.fromkeys(works, 0.0)
    wall = used = 0.0
    for _ in range(effort.times):
        for (key, work), n in zip(every, repetitions, strict=True):
            before, start = time.process_time(), time.perf_counter()
            done = work(n, threads)
            seconds = time.perf_counter() - start
            wall, used = wall + seconds, used + time.process_time() - before
            rates[key] = max(rates[key], done / max(seconds, 1e-9))
    return rates, used / max(wall, 1e-9)


def calibrate(work: Work, least: float) -> int:
    """Repetitions that take one thread at least so many seconds. Not a team: on a busy machine it may spend its time
    meeting."""
    repetitions = 1
    while repetitions < 1 << 28:
        seconds = min(_seconds(work, repetitions) for _ in range(2))
        if seconds >= least:
            break
        repetitions *= min(64, max(2, math.ceil(least / max(seconds, 1e-9))))
    return repetitions


def _seconds(work: Work, repetitions: int) -> float:
    start = time.perf_counter()
    work(repetitions, 1)
    return time.perf_counter() - start


def working_sets(threads: int, each: int = 1) -> list[int]:
    """Bytes of the sets to read, `each` for every doubling: from 16 KiB a thread to `largest_set`."""
    smallest, largest = _SMALLEST * threads, largest_set()
    steps = max(1, math.ceil(each * math.log2(max(largest / smallest, 2))))
    unit = UNIT * threads
    sizes = {
        max(unit, round(smallest * (largest / smallest) ** (i / steps) / unit) * unit)
        for i in range(steps + 1)
    }
    return sorted(sizes)


def largest_set() -> int:
    """Bytes of which caches hold little: four times the last-level caches, an eighth of memory at most."""
    memory = system.physical_memory()
    return min(max(4 * last_level_cache(), _LEAST_BYTES), memory // 8, _MOST_BYTES)


def team_levels(caches: Sequence[cpu.Cache], threads: int) -> tuple[tuple[str, int], ...]:
    """(name, bytes) of each cache level that a team of one thread per core holds."""
    if not caches:
        return ()
    siblings = max(1, caches[0].shared_by)
    found = []
    for cache in caches:
        cores = max(1, cache.shared_by // siblings)
        found.append((f"L{cache.level}", cache.nbytes * -(-threads // cores)))
    return tuple(found)


def last_level_cache(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Bytes of all last-level caches of this machine together; 0 where the system does not say."""
    sizes: dict[str, int] = {}
    deepest = 0
    for index in root.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            shared = (index / "shared_cpu_list").read_text().strip()
            n_bytes = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
        except (OSError, ValueError):
            continue
        if level > deepest:
            deepest, sizes = level, {}
        if level == deepest:
            sizes[shared] = n_bytes
    return sum(sizes.values())


def _load(path: Path) -> dict[str, dict[str, Any]]:
    """The machines of a cache file that are whole."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(kept, dict) or kept.get("version") != _VERSION:
        return {}
    machines = kept.get("machines")
    if not isinstance(machines, dict):
        return {}
    return {key: entry for key, entry in machines.items() if _is_whole(entry)}


def _is_whole(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"bandwidth", "peaks", "busy", "measured"}:
        return False
    if type(entry["busy"]) is not bool or type(entry["measured"]) not in (int, float):
        return False
    bandwidth, peaks = entry["bandwidth"], entry["peaks"]
    if not isinstance(bandwidth, list) or not isinstance(peaks, dict) or not bandwidth:
        return False
    if not all(isinstance(row, list) and len(row) == 2 for row in bandwidth):
        return False
    sizes = [row[0] for row in bandwidth]
    numbers = [number for row in bandwidth for number in row] + list(peaks.values())
    return (
        all(type(n) in (int, float) and 0 < n < 1e18 for n in numbers)
        and sizes == sorted(set(sizes))
        and peaks.keys() == PEAKS.keys()
    )


def _save(path: Path, machines: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump({"version": _VERSION, "machines": machines}, file, indent=1)
    os.replace(file.name, path)
