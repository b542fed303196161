"""Memory, threads and the floating-point mode, as kernels need them. Integers are int64, whatever their size there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from cpuinfer.devices.numba.compiler import ARM, inlined, kernel, unliteral
from cpuinfer.devices.numba.vectors import (
    ADDRESS,
    F32,
    I8,
    I16,
    I32,
    I64,
    INT,
    call,
    load_ir,
    operation,
    pointer,
    store_ir,
)

_VOID = ir.VoidType()


def _load(type_: Any, signed: bool) -> Callable[..., Any]:
    def emit(builder: Any, address: Any) -> Any:
        value = load_ir(builder, address, type_)
        return builder.sext(value, I64) if signed else builder.zext(value, I64)

    return operation(INT, (ADDRESS,), emit)


def _store(type_: Any) -> Callable[..., Any]:
    return operation(types.void, (ADDRESS, INT), lambda b, p, x: store_ir(b, p, b.trunc(x, type_)))


load_u8, load_i8 = _load(I8, False), _load(I8, True)
load_u16, load_i16, load_i32 = _load(I16, False), _load(I16, True), _load(I32, True)
store_i8, store_i16, store_i32 = _store(I8), _store(I16), _store(I32)
load_f32 = operation(types.float32, (ADDRESS,), lambda b, p: load_ir(b, p, F32))
store_f32 = operation(types.void, (ADDRESS, types.float32), store_ir)


def _copy(builder: Any, to: Any, source: Any, n: Any) -> None:
    where, whence = pointer(builder, to, I8), pointer(builder, source, I8)
    no = ir.Constant(ir.IntType(1), 0)
    call(builder, "llvm.memcpy.p0.p0.i64", _VOID, where, whence, n, no)


copy_bytes = operation(types.void, (ADDRESS, ADDRESS, INT), _copy)  # (to, from, n)
scratch = operation(  # 64 bytes on the stack of the kernel that asks
    ADDRESS,
    (),
    lambda b: b.ptrtoint(cgutils.alloca_once(b, ir.ArrayType(I8, 64)), I64),
)
next_of = operation(  # what was there, and one more from now on
    INT,
    (ADDRESS,),
    lambda b, p: b.atomic_rmw("add", pointer(b, p, I64), ir.Constant(I64, 1), "acq_rel"),
)
_acquire = operation(INT, (ADDRESS,), lambda b, p: b.load_atomic(pointer(b, p, I64), "acquire", 8))


def _release(builder: Any, address: Any, value: Any) -> None:
    builder.store_atomic(value, pointer(builder, address, I64), "release", 8)


def _relax(builder: Any) -> None:
    if ARM:
        call(builder, "llvm.aarch64.hint", _VOID, ir.Constant(I32, 1))
    else:
        call(builder, "llvm.x86.sse2.pause", _VOID)


def _yield(builder: Any) -> None:
    call(builder, "sched_yield", I32)


def _sleep(builder: Any) -> None:
    call(builder, "usleep", I32, ir.Constant(I32, 50))


_store_release = operation(types.void, (ADDRESS, INT), _release)
_pause = operation(types.void, (), _relax)
_offer = operation(types.void, (), _yield)
_rest = operation(types.void, (), _sleep)

SPINS, YIELDS = 2000, 2000
"""Pauses, then offers of the processor to others, then short sleeps: how a thread waits."""
WAIT, GO, LEAVE = unliteral(0), unliteral(1), unliteral(2)
"""What the word at barrier + 128 says to a team that forms."""


@kernel
def _wait_while(address: int, value: int) -> None:
    tries = 0
    while _acquire(address) == value:
        tries += 1
        if tries < SPINS:
            _pause()
        elif tries < SPINS + YIELDS:
            _offer()
        else:
            _rest()


@inlined
def join_team(barrier: int, me: int) -> bool:
    """Thread 0 lets the others go, which wait for it; False: it will not come, and the thread is to leave.

    So no thread waits in compiled code for one that an interrupt keeps from starting.
    """
    if me == 0:
        _store_release(barrier + 128, GO)
        return True
    _wait_while(barrier + 128, WAIT)
    return _acquire(barrier + 128) == GO  # type: ignore[no-any-return]


@inlined
def meet(barrier: int, n: int) -> None:
    """Returns in each of the team's n threads once all have called it; what they wrote is then visible to all.

    barrier: [arrived, generation] int64 on cache lines of their own, zero at first.
    """
    if n == 1:
        return
    generation = _acquire(barrier + 64)
    if next_of(barrier) == n - 1:
        _store_release(barrier, 0)
        _store_release(barrier + 64, generation + 1)
        return
    _wait_while(barrier + 64, generation)


def _enter(builder: Any) -> Any:
    """Sets the mode of a step: nearest even, exceptions masked, denormals flushed (fpmode.h). Gives what it was."""
    if ARM:
        before = call(builder, "llvm.aarch64.get.fpcr", I64)
    else:
        slot = cgutils.alloca_once(builder, I32)
        call(builder, "llvm.x86.sse.stmxcsr", _VOID, builder.bitcast(slot, ir.PointerType(I8)))
        before = builder.zext(builder.load(slot), I64)
    _leave(builder, ir.Constant(I64, 1 << 24 if ARM else 0x1F80 | 0x8000 | 0x0040))
    return before


def _leave(builder: Any, mode: Any) -> None:
    builder.fence("seq_cst")  # no load, and so no operation on what it loads, moves across
    if ARM:
        call(builder, "llvm.aarch64.set.fpcr", _VOID, mode)
    else:
        slot = cgutils.alloca_once(builder, I32)
        builder.store(builder.trunc(mode, I32), slot)
        call(builder, "llvm.x86.sse.ldmxcsr", _VOID, builder.bitcast(slot, ir.PointerType(I8)))
    builder.fence("seq_cst")


fp_enter = operation(INT, (), _enter)
fp_leave = operation(types.void, (INT,), _leave)
