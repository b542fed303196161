"""Integer vectors: codes of weights, and the exact sums of their products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types

from cpuinfer.devices.numba.compiler import has_feature
from cpuinfer.devices.numba.vectors import (
    ADDRESS,
    I8,
    I16,
    I32,
    INT,
    LANES,
    VF16,
    VH32,
    VI16,
    call,
    constant,
    lanes,
    load_ir,
    operation,
    splat,
    store_ir,
)

_V, _VI, _VH = VF16.ir, VI16.ir, VH32.ir
_HALVES = ir.VectorType(I16, LANES)
_BYTES = ir.VectorType(I8, LANES)
_CHUNK = ir.VectorType(I8, 4 * LANES)
_EVEN, _ODD = range(0, 2 * LANES, 2), range(1, 2 * LANES, 2)


def _splat(builder: Any, n: Any, type_: Any) -> Any:
    return splat(builder, builder.trunc(n, type_.element), type_)


def _power(builder: Any, x: Any) -> Any:
    bits = builder.shl(builder.sub(x, constant(_VI, 1)), constant(_VI, 23))
    least = builder.icmp_signed("<", x, constant(_VI, 2))
    return builder.bitcast(builder.select(least, constant(_VI, 0), bits), _V)


def _of_pairs(builder: Any, address: Any, odd: Any) -> Any:
    both = load_ir(builder, address, _VI)
    is_odd = _splat(builder, builder.neg(odd), _VI)
    high = builder.and_(both, constant(_VI, -65536))
    low = builder.shl(both, constant(_VI, 16))
    return builder.bitcast(
        builder.or_(builder.and_(high, is_odd), builder.and_(low, builder.not_(is_odd))), _V
    )


# vi16: 16 int32.
vi_zero = operation(VI16, (), lambda b: constant(_VI, 0))
vi_load_u8 = operation(VI16, (ADDRESS,), lambda b, p: b.zext(load_ir(b, p, _BYTES), _VI))
vi_load_u16 = operation(VI16, (ADDRESS,), lambda b, p: b.zext(load_ir(b, p, _HALVES), _VI))
vi_add = operation(VI16, (VI16, VI16), lambda b, x, y: b.add(x, y))
vi_plus = operation(VI16, (VI16, INT), lambda b, x, n: b.add(x, _splat(b, n, _VI)))
vi_and = operation(VI16, (VI16, INT), lambda b, x, n: b.and_(x, _splat(b, n, _VI)))
vi_or = operation(VI16, (VI16, VI16), lambda b, x, y: b.or_(x, y))
vi_shl = operation(VI16, (VI16, INT), lambda b, x, n: b.shl(x, _splat(b, n, _VI)))
vi_shr = operation(VI16, (VI16, INT), lambda b, x, n: b.lshr(x, _splat(b, n, _VI)))
vi_sar = operation(VI16, (VI16, INT), lambda b, x, n: b.ashr(x, _splat(b, n, _VI)))
vi_to_float = operation(VF16, (VI16,), lambda b, x: b.sitofp(x, _V))
vf_power = operation(VF16, (VI16,), _power)  # 2^(x - 128) for x in 2..255, 0 below
vf_bf16_of_pairs = operation(
    VF16, (ADDRESS, INT), _of_pairs
)  # [16][2] bf16: the odd or the even ones
vi_as_pairs = operation(VH32, (VI16,), lambda b, x: b.bitcast(x, _VH))

# vh32: 32 int16, of each of 16 rows two; or the 64 bytes of a chunk, of each row four.
vh_load = operation(VH32, (ADDRESS,), lambda b, p: load_ir(b, p, _VH))
vh_store = operation(types.void, (ADDRESS, VH32), store_ir)
vh_or = operation(VH32, (VH32, VH32), lambda b, x, y: b.or_(x, y))
vh_mul = operation(VH32, (VH32, VH32), lambda b, x, y: b.mul(x, y))
vh_minus = operation(VH32, (VH32, INT), lambda b, x, n: b.sub(x, _splat(b, n, _VH)))
# Bytes 0 and 2, and bytes 1 and 3, of each row.
vh_even_bytes = operation(VH32, (VH32,), lambda b, x: b.and_(x, constant(_VH, 0xFF)))
vh_odd_bytes = operation(VH32, (VH32,), lambda b, x: b.lshr(x, constant(_VH, 8)))


def _bits(builder: Any, x: Any, right: Any, mask: Any) -> Any:
    """(byte >> right) & mask of 64 bytes, << -right where right is negative; mask: none of the bits that come from the
    next byte."""
    zero = ir.Constant(right.type, 0)
    negative = builder.icmp_signed("<", right, zero)
    left = builder.select(negative, builder.sub(zero, right), zero)
    x = builder.shl(x, _splat(builder, left, _VH))
    x = builder.lshr(x, _splat(builder, builder.select(negative, zero, right), _VH))
    both = builder.mul(mask, ir.Constant(mask.type, 0x0101))
    return builder.and_(x, _splat(builder, both, _VH))


vh_bits = operation(VH32, (VH32, INT, INT), _bits)


def _lookup(builder: Any, x: Any, table: Sequence[int]) -> Any:
    """table[byte] of 64 bytes below 16."""
    entries, indices = ir.Constant(_BYTES, list(table)), builder.bitcast(x, _CHUNK)
    found = ir.Constant(_CHUNK, ir.Undefined)
    name = "llvm.x86.ssse3.pshuf.b.128" if has_feature("ssse3") else ""
    name = "llvm.aarch64.neon.tbl1.v16i8" if has_feature("neon") else name
    if not name:
        for i in range(4 * LANES):
            index = builder.extract_element(indices, ir.Constant(I32, i))
            entry = builder.extract_element(entries, index)
            found = builder.insert_element(found, entry, ir.Constant(I32, i))
        return builder.bitcast(found, _VH)
    parts = []
    for begin in range(0, 4 * LANES, LANES):
        part = lanes(builder, indices, range(begin, begin + LANES))
        parts.append(call(builder, name, _BYTES, entries, part))
    return builder.bitcast(_joined(builder, parts), _VH)


def _joined(builder: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        width = 2 * parts[0].type.count
        order = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [builder.shuffle_vector(low, high, order) for low, high in pairs]
    return parts[0]


# Codes of IQ4_NL and IQ4_XS, value + 128, and of MXFP4, 2 * value + 12, from their nibbles (codes.h).
_IQ4 = (1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241)
_FP4 = (12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)
vh_iq4 = operation(VH32, (VH32,), lambda b, x: _lookup(b, x, _IQ4))
vh_fp4 = operation(VH32, (VH32,), lambda b, x: _lookup(b, x, _FP4))


def _multiply_add(builder: Any, x: Any, y: Any) -> Any:
    """x[2r] * y[2r] + x[2r + 1] * y[2r + 1] for 16 rows: VPMADDWD where the processor has it."""
    name, width = "", 0
    if has_feature("sse2"):
        name, width = "llvm.x86.sse2.pmadd.wd", 8
    if has_feature("avx2"):
        name, width = "llvm.x86.avx2.pmadd.wd", 16
    if has_feature("avx512bw"):
        name, width = "llvm.x86.avx512.pmaddw.d.512", 32
    if not name:
        wide = ir.VectorType(I32, 2 * LANES)
        products = builder.mul(builder.sext(x, wide), builder.sext(y, wide))
        return builder.add(lanes(builder, products, _EVEN), lanes(builder, products, _ODD))
    sums = []
    for begin in range(0, 2 * LANES, width):
        part = [lanes(builder, v, range(begin, begin + width)) for v in (x, y)]
        sums.append(call(builder, name, ir.VectorType(I32, width // 2), *part))
    return _joined(builder, sums)


vh_multiply_add = operation(VI16, (VH32, VH32), _multiply_add)


def _pair(builder: Any, address: Any) -> Any:
    """The two int16 at an address, for every row."""
    both = load_ir(builder, address, I32)
    return builder.bitcast(splat(builder, both, _VI), _VH)


vh_pair = operation(VH32, (ADDRESS,), _pair)


def _store_prepared(builder: Any, address: Any, values: Any) -> None:
    """32 int8 from `values` on as int16, of every four the even ones before the odd ones: as chunks are taken apart."""
    bytes_ = load_ir(builder, values, ir.VectorType(I8, 2 * LANES))
    order = [4 * (i // 4) + (0, 2, 1, 3)[i % 4] for i in range(2 * LANES)]
    store_ir(builder, address, lanes(builder, builder.sext(bytes_, _VH), order))


store_prepared = operation(types.void, (ADDRESS, ADDRESS), _store_prepared)
