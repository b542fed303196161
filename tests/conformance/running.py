"""Running a case on a device, with memory that ends where nothing may be touched."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
from collections.abc import Mapping

import numpy as np
from cases import Case
from numpy.typing import NDArray

from cpuinfer.devices.base import Device
from cpuinfer.devices.numerics import Q8, decode
from cpuinfer.graph.dtypes import Activation
from cpuinfer.graph.program import Buffer
from cpuinfer.graph.weights import Weight

Rows = NDArray[np.float32] | NDArray[np.uint8]

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed memory that starts 64-byte aligned and ends, up to 63 bytes before it, at a page without access."""
    page = mmap.PAGESIZE
    used = -(-max(nbytes, 1) // 64) * 64
    room = -(-used // page) * page
    memory = np.frombuffer(mmap.mmap(-1, room + page), np.uint8)
    if _libc.mprotect(ctypes.c_void_p(memory.ctypes.data + room), ctypes.c_size_t(page), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    return memory[room - used : room][:nbytes]


def guarded_weights(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Copies of the weights in guarded memory."""
    copies = {}
    for name, weight in weights.items():
        data = guarded(weight.data.size)
        data[:] = weight.data
        copies[name] = dataclasses.replace(weight, data=data)
    return copies


def run(device: Device, case: Case) -> list[dict[str, Rows]]:
    """Per step: what the op under test wrote, and the logits, as Executable.read gives them (copied)."""
    executable = device.compile(case.program, guarded_weights(case.weights), case.limits)
    results = []
    for step in case.steps:
        for name, values in step.inputs.items():
            executable.write(name, values)
        logits = executable.run(step.batch).copy()
        rows = {name: executable.read(name).copy() for name in case.op.outputs}
        results.append({**rows, case.program.output: logits})
    return results


def values_of(rows: Rows, buffer: Buffer) -> NDArray[np.float64]:
    """The values of rows as read; checks that what follows from a q8 row's values and scales does."""
    if buffer.dtype is Activation.F32:
        return rows.astype(np.float64)
    if buffer.dtype is Activation.BF16:
        return decode(np.ascontiguousarray(rows).view(np.uint16)[:, : buffer.width])
    n, blocks = buffer.width, buffer.width // 32
    q = rows[:, :n].view(np.int8)
    q8 = Q8(q, np.ascontiguousarray(rows[:, n : n + 4 * blocks]).view(np.float32))
    np.testing.assert_array_equal(rows[:, : n + 16 * blocks], q8.raw())
    return decode(q8)


def meaningful(rows: Rows, buffer: Buffer) -> bytes:
    """The bytes that mean something: a q8 row's padding does not."""
    if buffer.dtype is Activation.Q8:
        rows = rows[:, : buffer.width + buffer.width // 32 * 16]
    return np.ascontiguousarray(rows).tobytes()
