"""Two levels' bf16 products side by side: which instruction wins is the processor's affair, so it is timed once here.

Both give the same bits (docs/design.md section 3); only the time differs.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cpuinfer.machine.cpu import cpu_name
from cpuinfer.machine.folders import cache_dir

if TYPE_CHECKING:
    from cpuinfer.machine.isa import Library

_TOKENS, _ROWS, _WIDTH = 48, 64, 1024  # weights and tokens lie in L2
_RUNS = 40


def compare(one: Library, other: Library) -> tuple[float, float]:
    """Seconds that each of two levels takes for the same bf16 product, on one thread.

    Kept in levels.json of the cache folder, by processor, version and levels. A file that is not ours to read or
    write costs only the next measurement.
    """
    path = cache_dir() / "levels.json"
    key = f"{cpu_name()}|{_version()}|{one.level}|{other.level}"
    known = _kept(path)
    if key in known:
        return known[key]
    seconds = measure(one, other)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(known | {key: seconds}, file, indent=1)
        os.replace(file.name, path)
    return seconds


def measure(one: Library, other: Library) -> tuple[float, float]:
    """As `compare`, measured now: each level's best of some runs, which alternate."""
    products = (_Product(one), _Product(other))
    best = [float("inf"), float("inf")]
    for _ in range(_RUNS):
        for i, product in enumerate(products):
            start = time.perf_counter()
            product.run()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]


class _Product:
    """A matmul op of bf16 ones on a level, ready to run."""

    def __init__(self, library: Library) -> None:
        ffi, lib = library.ffi, library.lib
        self._lib = lib
        self._weight = np.full(_ROWS * _WIDTH, 0x3F80, np.uint16)
        self._x = np.full(_TOKENS * _WIDTH, 0x3F80, np.uint16)
        self.out = np.zeros((_TOKENS, _ROWS), np.float32)
        self._op = ffi.new("ci_op *")
        self._op.kind, self._op.n, self._op.k = lib.CI_OP_MATMUL, _ROWS, _WIDTH
        self._op.in_type, self._op.out_type = lib.CI_BF16, lib.CI_F32
        setattr(self._op, "in", [ffi.from_buffer(self._x), ffi.NULL])
        self._op.out = ffi.from_buffer(self.out)
        weight = self._op.w[0]
        weight.data, weight.type = ffi.from_buffer(self._weight), lib.CI_BF16
        weight.n, weight.k = _ROWS, _WIDTH
        self._batch = ffi.new("ci_batch *")
        self._batch.n_tokens = self._batch.n_rows = _TOKENS
        self._integers = ffi.new("int32_t[]", 2 * _TOKENS)
        self._batch.positions = self._batch.q_indptr = self._integers
        self._batch.block_tables = self._batch.logit_rows = self._integers
        self._program = ffi.new("ci_program *")
        self._program.ops, self._program.n_ops, self._program.n_threads = self._op, 1, 1
        thread = lib.ci_thread_bytes(self._op, 1, _TOKENS)
        shared = lib.ci_shared_bytes(self._op, 1, 1, _TOKENS, 16)
        self._workspace = np.zeros(thread + shared + 64, np.uint8)
        aligned = self._workspace[-self._workspace.ctypes.data % 64 :]
        self._program.workspace = ffi.from_buffer(aligned)
        self._program.thread_bytes, self._program.shared_bytes = thread, shared
        self.run()

    def run(self) -> None:
        status = self._lib.ci_run(self._program, self._batch)
        if status:
            raise RuntimeError(f"ci_run refused a bf16 product with {status}")


def _kept(path: Path) -> dict[str, tuple[float, float]]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {
        key: (float(value[0]), float(value[1]))
        for key, value in kept.items()
        if isinstance(value, list)
        and len(value) == 2
        and all(type(v) is float and v > 0 for v in value)
    }


def _version() -> str:
    try:
        return metadata.version("cpuinfer")
    except metadata.PackageNotFoundError:
        return "unknown"
