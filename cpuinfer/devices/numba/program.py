"""A step: a thread walks the ops of a program beside the others of its team (native/program.c)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from cpuinfer.devices.numba.attention import attention
from cpuinfer.devices.numba.compiler import entry
from cpuinfer.devices.numba.elementwise import (
    add,
    embed,
    kv_write,
    quantize,
    rmsnorm,
    rope,
    swiglu,
    take_rows,
)
from cpuinfer.devices.numba.matmul import matmul, matmul_qkv_rope, matmul_swiglu
from cpuinfer.devices.numba.memory import fp_enter, fp_leave, join_team, meet
from cpuinfer.devices.numba.structs import (
    ADD,
    ATTENTION,
    EMBED,
    KV_WRITE,
    MATMUL,
    MATMUL_QKV_ROPE,
    MATMUL_SWIGLU,
    OP,
    QUANTIZE,
    RMSNORM,
    ROPE,
    STEP,
    SWIGLU,
)


@entry
def walk(ops: Any, steps: Any, me: int) -> None:
    """Run the first n_ops of OP records `ops` as thread `me`, whose STEP is steps[me]."""
    step = steps[me]
    if not join_team(step.barrier, me):
        return
    mode = fp_enter()
    for i in range(step.n_ops):
        op = ops[i]
        if op.barrier:
            meet(step.barrier, step.n_threads)
        kind = op.kind
        if kind == EMBED:
            embed(op, step)
        elif kind == RMSNORM:
            rmsnorm(op, step)
        elif kind == QUANTIZE:
            quantize(op, step)
        elif kind == MATMUL:
            matmul(op, step)
        elif kind == MATMUL_SWIGLU:
            matmul_swiglu(op, step)
        elif kind == MATMUL_QKV_ROPE:
            matmul_qkv_rope(op, step)
        elif kind == ROPE:
            rope(op, step)
        elif kind == KV_WRITE:
            kv_write(op, step)
        elif kind == ATTENTION:
            attention(op, step, step.counters + 8 * i)
        elif kind == ADD:
            add(op, step)
        elif kind == SWIGLU:
            swiglu(op, step)
        else:
            take_rows(op, step)
    fp_leave(mode)
    meet(step.barrier, step.n_threads)


def load_kernels() -> None:
    """Have `walk` ready: from the cache, or compiled, which takes half a minute."""
    compiled: Any = walk
    compiled.compile(numba.void(_records(OP), _records(STEP), numba.int64))


def _records(dtype: np.dtype[Any]) -> Any:
    return numba.from_dtype(dtype)[::1]
