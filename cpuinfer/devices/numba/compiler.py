"""How kernels are compiled: by Numba, once, into a folder of this user's cache."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import numpy as np
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from cpuinfer.machine.folders import cache_dir

F = TypeVar("F", bound=Callable[..., Any])

ARM = platform.machine().lower() in ("aarch64", "arm64")

_OPTIONS = {"error_model": "numpy", "nogil": True}
_INNER = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Python calls entries alone; wrappers for the others are a third of the time that compiling takes."""


def kernel(function: F) -> F:
    """A function that other kernels call: part of whatever is compiled with it."""
    compiled: F = numba.njit(function, **_INNER)
    return compiled


def inlined(function: F) -> F:
    """A kernel that is always inlined: one that takes or gives vectors, which stay in registers then."""
    compiled: F = numba.njit(function, **_INNER, forceinline=True)
    return compiled


def entry(function: F) -> F:
    """A function that Python calls, without the interpreter's lock. What it is compiled to is kept on disk."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
    compiled: F
    try:
        compiled = numba.njit(function, **_OPTIONS, cache=True)
    except RuntimeError:  # no folder can be written: compiled anew by each process
        compiled = numba.njit(function, **_OPTIONS)
    finally:
        config.CACHE_DIR = before
    return compiled


def unliteral(n: int) -> int:
    """A number for kernels to pass to each other: they are compiled anew for each literal that they are called with."""
    return np.int64(n)  # type: ignore[return-value]


def is_compiled() -> bool:
    """Whether there is machine code of these sources in the cache."""
    return any(cache_folder().rglob("*.nbc"))


def cache_folder() -> Path:
    """Where machine code is kept: of these sources and this compiler alone; inside NUMBA_CACHE_DIR where that is set.

    Numba looks at the file of the function that Python calls and not at those of what it calls.
    """
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    root = Path(config.CACHE_DIR) if config.CACHE_DIR else cache_dir() / "numba"
    return root / digest.hexdigest()[:16]


@functools.cache
def has_feature(name: str) -> bool:
    """Whether Numba compiles for a processor with the feature, as LLVM calls it."""
    features = config.CPU_FEATURES
    if features is None:
        features = get_host_cpu_features()
    return f"+{name}" in features.split(",") or (name == "neon" and ARM)
