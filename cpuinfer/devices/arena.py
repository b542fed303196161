"""Memory for native kernels: large, aligned, zero, and on huge pages where the system gives them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cpuinfer.machine import system

HUGE_PAGE = 2 << 20
"""Bytes of a huge page on x86-64 and of the usual one on Arm."""

Allocator = Callable[[int], NDArray[np.uint8]]
"""nbytes -> that many zero bytes, writable, starting 64-byte aligned."""


def allocate(nbytes: int) -> NDArray[np.uint8]:
    """Zero bytes from the system, huge-page aligned and advised where they fill one.

    Raises ValueError where they are more than the machine has, or the system does not give them.
    """
    remedy = "lower the KV budget, the context or the tokens of a step"
    machine = system.physical_memory()
    if nbytes > machine:  # a system that overcommits would say yes, and kill the process later
        raise ValueError(
            f"{nbytes / 2**20:.0f} MiB of memory wanted, the machine has {machine / 2**20:.0f} MiB; {remedy}"
        )
    alignment = HUGE_PAGE if nbytes >= HUGE_PAGE else 64
    try:
        mapping = system.map_zeros(nbytes + alignment)
    except (OSError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"the system gives no {nbytes / 2**20:.0f} MiB of memory ({error}); {remedy}"
        ) from error
    whole = np.frombuffer(mapping, np.uint8)
    start = -whole.ctypes.data % alignment
    return whole[start : start + nbytes]
