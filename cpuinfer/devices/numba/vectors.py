"""Vectors of a kernel's numbers, as LLVM has them: vf16 of simd/scalar/vec.h, and the integers that dots are made of.

Every function is one operation on every lane, in IEEE-754 f32, rounded to nearest even: nothing is contracted or
reassociated. LLVM maps a vector to as many registers as the processor needs for it. Addresses are int64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from cpuinfer.devices.numba.compiler import has_feature

Emit = Callable[..., Any]
"""(builder, operands...) -> the value, None where there is none."""

LANES = 16


class Vector(types.Type):
    """A vector of `lanes` elements as a Numba type."""

    def __init__(self, name: str, element: ir.Type, lanes: int) -> None:
        super().__init__(name=name)
        self.ir = ir.VectorType(element, lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, type_: Vector) -> None:
        super().__init__(manager, type_, type_.ir)


F32, I8, I16, I32, I64 = ir.FloatType(), *(ir.IntType(n) for n in (8, 16, 32, 64))
VF16 = Vector("vf16", F32, LANES)  # 16 f32
VI16 = Vector("vi16", I32, LANES)  # 16 int32
VH32 = Vector("vh32", I16, 2 * LANES)  # 32 int16: of 16 rows two each; or 64 bytes
ADDRESS = INT = types.int64


def operation(result: Any, operands: Sequence[Any], emit: Emit) -> Callable[..., Any]:
    """A function for kernels that is exactly the LLVM code that `emit` writes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = emit(builder, *arguments)
        return context.get_dummy_value() if value is None else value

    typed = result(*operands), generate
    define = (  # Numba wants as many parameters as operands
        lambda _: typed,
        lambda _, a: typed,
        lambda _, a, b: typed,
        lambda _, a, b, c: typed,
    )[len(operands)]
    made: Callable[..., Any] = intrinsic(define)
    return made


def splat(builder: Any, value: Any, type_: ir.VectorType) -> Any:
    """A scalar in every lane."""
    one = builder.insert_element(ir.Constant(type_, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, type_.count), None)
    return builder.shuffle_vector(one, ir.Constant(type_, ir.Undefined), zeros)


def lanes(builder: Any, value: Any, which: Sequence[int]) -> Any:
    """Some lanes of a vector, in another order."""
    mask = ir.Constant(ir.VectorType(I32, len(which)), list(which))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A call of an LLVM intrinsic or a C function."""
    type_ = ir.FunctionType(result, [x.type for x in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, type_, name), arguments)


def constant(type_: ir.VectorType, value: float) -> Any:
    """The same number in every lane."""
    return ir.Constant(type_, [value] * type_.count)


def pointer(builder: Any, address: Any, type_: Any) -> Any:
    """An address as a pointer."""
    return builder.inttoptr(address, ir.PointerType(type_))


def load_ir(builder: Any, address: Any, type_: Any, align: int = 1) -> Any:
    """What lies at an address."""
    return builder.load(pointer(builder, address, type_), align=align)


def store_ir(builder: Any, address: Any, value: Any, align: int = 1) -> None:
    """Put a value at an address."""
    builder.store(value, pointer(builder, address, value.type), align=align)


_V, _VI, _VH = VF16.ir, VI16.ir, VH32.ir
_HALVES = ir.VectorType(I16, LANES)
_BYTES = ir.VectorType(I8, LANES)


def _below(builder: Any, n: Any, type_: Any = _VI) -> Any:
    """Which lanes come before lane n."""
    iota = ir.Constant(type_, list(range(type_.count)))
    return builder.icmp_signed("<", iota, splat(builder, builder.trunc(n, type_.element), type_))


def _ordered(builder: Any, how: str, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(how, a, b), a, b)


def _tree(step: Emit) -> Emit:
    """The fixed reduction: lane i with i + 8, then i + 4, i + 2, i + 1."""

    def emit(builder: Any, a: Any) -> Any:
        for half in (8, 4, 2, 1):
            low = lanes(builder, a, range(half))
            a = step(builder, low, lanes(builder, a, range(half, 2 * half)))
        return builder.extract_element(a, ir.Constant(I32, 0))

    return emit


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return _ordered(builder, ">", a, b)


def _unary(name: str) -> Callable[..., Any]:
    return operation(VF16, (VF16,), lambda b, x: call(b, f"llvm.{name}.v16f32", _V, x))


vf_load = operation(VF16, (ADDRESS,), lambda b, p: load_ir(b, p, _V))
vf_store = operation(types.void, (ADDRESS, VF16), store_ir)
vf_set1 = operation(VF16, (types.float32,), lambda b, x: splat(b, x, _V))
vf_zero = operation(VF16, (), lambda b: constant(_V, 0.0))
vf_add = operation(VF16, (VF16, VF16), lambda b, x, y: b.fadd(x, y))
vf_sub = operation(VF16, (VF16, VF16), lambda b, x, y: b.fsub(x, y))
vf_mul = operation(VF16, (VF16, VF16), lambda b, x, y: b.fmul(x, y))
vf_div = operation(VF16, (VF16, VF16), lambda b, x, y: b.fdiv(x, y))
vf_fma = operation(  # x * y + z, rounded once
    VF16, (VF16, VF16, VF16), lambda b, x, y, z: call(b, "llvm.fma.v16f32", _V, x, y, z)
)
vf_max = operation(VF16, (VF16, VF16), _maximum)  # x > y ? x : y
vf_min = operation(VF16, (VF16, VF16), lambda b, x, y: _ordered(b, "<", x, y))
vf_abs, vf_round, vf_sqrt = _unary("fabs"), _unary("rint"), _unary("sqrt")
vf_hsum = operation(types.float32, (VF16,), _tree(lambda b, x, y: b.fadd(x, y)))
vf_hmax = operation(types.float32, (VF16,), _tree(_maximum))
vf_swap_pairs = operation(VF16, (VF16,), lambda b, x: lanes(b, x, [i ^ 1 for i in range(LANES)]))
vf_first_n = operation(  # lanes below n of x, the others of y
    VF16, (VF16, VF16, INT), lambda b, x, y, n: b.select(_below(b, n), x, y)
)


def _load_n(builder: Any, address: Any, n: Any) -> Any:
    where, zero = pointer(builder, address, _V), constant(_V, 0.0)
    return call(
        builder,
        "llvm.masked.load.v16f32.p0",
        _V,
        where,
        ir.Constant(I32, 4),
        _below(builder, n),
        zero,
    )


def _store_n(builder: Any, address: Any, value: Any, n: Any) -> None:
    where = pointer(builder, address, _V)
    mask = _below(builder, n)
    void = ir.VoidType()
    call(builder, "llvm.masked.store.v16f32.p0", void, value, where, ir.Constant(I32, 4), mask)


vf_load_n = operation(VF16, (ADDRESS, INT), _load_n)  # lanes below n; zeros behind, unread
vf_store_n = operation(types.void, (ADDRESS, VF16, INT), _store_n)


def _scale2(builder: Any, x: Any, n: Any) -> Any:
    biased = builder.add(builder.fptosi(n, _VI), constant(_VI, 127))
    power = builder.bitcast(builder.shl(biased, constant(_VI, 23)), _V)
    return builder.fmul(x, power)


vf_scale2 = operation(VF16, (VF16, VF16), _scale2)  # x * 2^n for whole n in [-126, 127]


def _store_i8(builder: Any, address: Any, x: Any) -> None:
    size = call(builder, "llvm.fabs.v16f32", _V, x)
    fits = builder.fcmp_ordered("<", size, constant(_V, 127.5))
    whole = call(builder, "llvm.rint.v16f32", _V, x)
    kept = builder.select(fits, whole, constant(_V, 0.0))
    store_ir(builder, address, builder.trunc(builder.fptosi(kept, _VI), _BYTES))


vf_store_i8 = operation(types.void, (ADDRESS, VF16), _store_i8)  # nearest even; |x| < 127.5
vf_load_i8 = operation(VF16, (ADDRESS,), lambda b, p: b.sitofp(load_ir(b, p, _BYTES), _V))


def _f16_soft(builder: Any, half: Any) -> Any:
    """f16 to f32 by integers, as f16_to_f32 of vec.h: what a processor without the conversion does."""
    wide = builder.zext(half, _VI)
    sign = builder.shl(builder.and_(wide, constant(_VI, 0x8000)), constant(_VI, 16))
    size = builder.and_(wide, constant(_VI, 0x7FFF))
    shifted = builder.shl(size, constant(_VI, 13))
    normal = builder.add(shifted, constant(_VI, 112 << 23))
    special = builder.or_(shifted, constant(_VI, 0x7F800000))
    is_nan = builder.icmp_unsigned(">", size, constant(_VI, 0x7C00))
    special = builder.select(is_nan, builder.or_(special, constant(_VI, 1 << 22)), special)
    tiny = builder.fmul(builder.sitofp(size, _V), constant(_V, 2.0**-24))
    least = builder.icmp_unsigned("<", size, constant(_VI, 0x400))
    most = builder.icmp_unsigned(">=", size, constant(_VI, 0x7C00))
    bits = builder.select(least, builder.bitcast(tiny, _VI), normal)
    bits = builder.select(most, special, bits)
    return builder.bitcast(builder.or_(bits, sign), _V)


def _to_f16_soft(builder: Any, x: Any) -> Any:
    """f32 to f16, as f32_to_f16 of vec.h."""
    bits = builder.bitcast(x, _VI)
    sign = builder.and_(builder.lshr(bits, constant(_VI, 16)), constant(_VI, 0x8000))
    size = builder.and_(bits, constant(_VI, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, constant(_VI, 13)), constant(_VI, 1))
    rounded = builder.add(builder.add(size, constant(_VI, 0xFFF)), odd)
    normal = builder.lshr(builder.sub(rounded, constant(_VI, 0x38000000)), constant(_VI, 13))
    steps = builder.fmul(builder.bitcast(size, _V), constant(_V, 2.0**24))
    small = builder.icmp_unsigned("<", size, constant(_VI, 0x38800000))
    kept = builder.select(small, call(builder, "llvm.rint.v16f32", _V, steps), constant(_V, 0.0))
    half = builder.select(small, builder.fptosi(kept, _VI), normal)
    large = builder.icmp_unsigned(">=", size, constant(_VI, 0x477FF000))
    half = builder.select(large, constant(_VI, 0x7C00), half)
    payload = builder.and_(builder.lshr(size, constant(_VI, 13)), constant(_VI, 0x3FF))
    nan = builder.or_(payload, constant(_VI, 0x7E00))
    half = builder.select(builder.icmp_unsigned(">", size, constant(_VI, 0x7F800000)), nan, half)
    return builder.trunc(builder.or_(half, sign), _HALVES)


def _load_f16(builder: Any, address: Any) -> Any:
    half = load_ir(builder, address, _HALVES)
    if has_feature("f16c") or has_feature("neon"):
        return builder.fpext(builder.bitcast(half, ir.VectorType(ir.HalfType(), LANES)), _V)
    return _f16_soft(builder, half)


def _store_f16(builder: Any, address: Any, x: Any) -> None:
    if has_feature("f16c") or has_feature("neon"):
        store_ir(builder, address, builder.fptrunc(x, ir.VectorType(ir.HalfType(), LANES)))
    else:
        store_ir(builder, address, _to_f16_soft(builder, x))


def _widen_bf16(builder: Any, half: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(half, _VI), constant(_VI, 16)), _V)


def _to_bf16(builder: Any, x: Any) -> Any:
    """Nearest even, denormals to signed zero, NaN quieted: bf16.h."""
    bits = builder.bitcast(x, _VI)
    high = builder.lshr(bits, constant(_VI, 16))
    odd = builder.and_(high, constant(_VI, 1))
    rounded = builder.add(builder.add(bits, constant(_VI, 0x7FFF)), odd)
    half = builder.lshr(rounded, constant(_VI, 16))
    size = builder.and_(bits, constant(_VI, 0x7FFFFFFF))
    flushed = builder.and_(high, constant(_VI, 0x8000))
    half = builder.select(builder.icmp_unsigned("<", size, constant(_VI, 1 << 23)), flushed, half)
    nan = builder.or_(high, constant(_VI, 0x40))
    half = builder.select(builder.icmp_unsigned(">", size, constant(_VI, 0x7F800000)), nan, half)
    return builder.trunc(half, _HALVES)


vf_load_f16 = operation(VF16, (ADDRESS,), _load_f16)
vf_store_f16 = operation(types.void, (ADDRESS, VF16), _store_f16)
vf_load_bf16 = operation(VF16, (ADDRESS,), lambda b, p: _widen_bf16(b, load_ir(b, p, _HALVES)))
vf_store_bf16 = operation(
    types.void, (ADDRESS, VF16), lambda b, p, x: store_ir(b, p, _to_bf16(b, x))
)


def _store_bf16_n(builder: Any, address: Any, x: Any, n: Any) -> None:
    """Lanes below n."""
    half, where = _to_bf16(builder, x), pointer(builder, address, _HALVES)
    mask = _below(builder, n)
    void = ir.VoidType()
    call(builder, "llvm.masked.store.v16i16.p0", void, half, where, ir.Constant(I32, 2), mask)


store_bf16_n = operation(types.void, (ADDRESS, VF16, INT), _store_bf16_n)
