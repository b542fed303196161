"""The machine's limit for decoding: the bandwidth at which its threads read memory, measured once and kept."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpuinfer.machine.folders import cache_dir

ReadWords = Callable[[int, int, int, int], int]
"""ci_read_words of a level: (address of the words, how many, threads, repetitions) -> their sum."""

_REPEATS = 7
_LEAST_BYTES = 64 << 20
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Roofline:
    """What a run reached beside the machine's limit.

    bytes_per_token: bytes that decoding one token reads (weights and KV); bytes_per_s: that times the tokens per
    second; read_bandwidth: bytes per second that the machine reads at most; share: bytes_per_s / read_bandwidth.
    """

    bytes_per_token: float
    bytes_per_s: float
    read_bandwidth: float
    share: float


def roofline(bytes_per_token: float, tokens_per_s: float, read_bandwidth: float) -> Roofline:
    """How near decoding came to the limit (bandwidth in bytes per second)."""
    reached = bytes_per_token * tokens_per_s
    return Roofline(bytes_per_token, reached, read_bandwidth, reached / read_bandwidth)


def read_bandwidth(
    read_words: ReadWords, cpu: str, level: str, threads: int, fresh: bool = False
) -> float:
    """Bytes per second that `threads` threads read from memory; from the cache unless `fresh` or not there yet.

    The cache is roofline.json in the cache folder, keyed by CPU model, level and threads. A file that is not ours to
    read, or holds anything but positive numbers, is as good as none.
    """
    path = cache_dir() / "roofline.json"
    key = f"{cpu}|{level}|{threads}"
    known = _load(path)
    if not fresh and key in known:
        return known[key]
    measured = measure(read_words, threads, working_set())
    with contextlib.suppress(
        OSError
    ):  # a cache that cannot be written costs only the next measurement
        _save(path, known | {key: measured})
    return measured


def measure(read_words: ReadWords, threads: int, n_bytes: int) -> float:
    """Bytes per second: the best of a few passes over n_bytes of memory that was written before.

    The best, because it stands for a limit: whatever else the machine does can only slow a pass down.
    """
    words = np.full(n_bytes // 8, 1, dtype=np.uint64)
    read_words(words.ctypes.data, words.size, threads, 1)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        total = read_words(words.ctypes.data, words.size, threads, 1)
        seconds.append(time.perf_counter() - start)
        if total != words.size:
            raise RuntimeError(f"ci_read_words summed {total} over {words.size} ones")
    return words.nbytes / min(seconds)


def working_set() -> int:
    """Bytes to read so that caches hold little of them: four times the last-level caches, an eighth of memory at most."""
    wanted = max(4 * last_level_cache(), _LEAST_BYTES)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(wanted, memory // 8, _MOST_BYTES) // 4096 * 4096


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


def _load(path: Path) -> dict[str, float]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {
        key: float(value)
        for key, value in kept.items()
        if type(value) in (int, float) and 0 < value < float("inf")
    }


def _save(path: Path, known: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(known, file, indent=1)
    os.replace(file.name, path)
