"""From packed panels to what products read: int16 codes, f32 scales and mins of one block, whatever the weight type.

An unpacked block of 32 k and 16 rows: [16] f32 scale, [16] f32 min, [16][2] int16 min of either half (1 where the block
has one min), then [8 chunks][2][16 rows][2] int16 codes less their offset, of k = 4c, 4c + 2 and then 4c + 1, 4c + 3.
Where halves have integer scales, codes are multiplied by them: at most 128 * 32, and the sum over the block, of codes,
scales and activations, is the integer of docs/design.md section 3 all the same. Layouts: section 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cpuinfer.devices.numba.compiler import inlined, kernel, unliteral
from cpuinfer.devices.numba.integers import (
    vf_bf16_of_pairs,
    vf_power,
    vh_bits,
    vh_even_bytes,
    vh_fp4,
    vh_iq4,
    vh_load,
    vh_minus,
    vh_mul,
    vh_odd_bytes,
    vh_or,
    vh_store,
    vi_and,
    vi_as_pairs,
    vi_load_u8,
    vi_load_u16,
    vi_or,
    vi_plus,
    vi_sar,
    vi_shl,
    vi_shr,
    vi_to_float,
)
from cpuinfer.devices.numba.memory import load_f32, load_i16, store_f32
from cpuinfer.devices.numba.structs import (
    BF16,
    BLOCK,
    F16,
    F32,
    FORMS,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    ROWS,
    Record,
)
from cpuinfer.devices.numba.vectors import (
    vf_load_f16,
    vf_mul,
    vf_set1,
    vf_store,
    vf_sub,
)

UNPACKED_BLOCK = 192 + 1024
MIN, MIN_PAIRS, CODES = 64, 128, 192
"""Where its parts begin."""
_RAW, _SCALED = unliteral(0), unliteral(1)
_MINUS_ONE, _THIRTY_TWO = np.float32(-1), np.float32(32)


@inlined
def panel_bytes(form: Record, k: int) -> int:
    """Bytes of a panel of k columns."""
    return (k + form.columns - 1) // form.columns * form.bytes  # type: ignore[no-any-return]


@inlined
def _two_bits(planes: int, c: int, at: int) -> Any:
    """Bits of plane c / 4 of two, put at bit `at`."""
    return vh_bits(vh_load(planes + c // 4 * 64), c % 4 * 2 - at, 3 << at)


@inlined
def _chunk(type_: int, codes: int, c: int) -> Any:
    """Chunk c of a block: byte b of row r is the code of k = 4c + b."""
    if type_ == Q8_0:
        return vh_load(codes + 64 * c)
    if type_ == Q2_K:
        return _two_bits(codes, c, 0)
    if type_ == Q3_K:
        return vh_or(_two_bits(codes, c, 0), vh_bits(vh_load(codes + 128), c - 2, 4))
    nibbles = vh_bits(vh_load(codes + c % 4 * 64), c // 4 * 4, 15)
    if type_ in (Q5_0, Q5_1, Q5_K):
        return vh_or(nibbles, vh_bits(vh_load(codes + 256), c - 4, 16))
    if type_ == Q6_K:
        return vh_or(nibbles, _two_bits(codes + 256, c, 4))
    if type_ in (IQ4_NL, IQ4_XS):
        return vh_iq4(nibbles)
    return vh_fp4(nibbles) if type_ == MXFP4 else nibbles


@inlined
def _six_bits(packed: int, i: int, second: int) -> Any:
    """a (second 0) or b (1) of the six-bit pairs of block i of 8."""
    low = vi_and(vi_shr(vi_load_u8(packed + 16 * i), 4 * second), 15)
    high = vi_shr(vi_load_u8(packed + 128 + i // 2 * 16), i % 2 * 4 + 2 * second)
    return vi_or(low, vi_shl(vi_and(high, 3), 4))


@inlined
def _scale(type_: int, header: int, i: int) -> Any:
    """The f32 scales of block i of a tile; with halves, what multiplies their integer scales."""
    if type_ == MXFP4:  # 2^(e - 128), and 0 for e < 2
        return vf_power(vi_load_u8(header + 16 * i))
    if type_ in (Q4_K, Q5_K):
        return vf_mul(vf_load_f16(header), vi_to_float(_six_bits(header + 64, i, 0)))
    if type_ == IQ4_XS:
        low = vi_and(vi_shr(vi_load_u8(header + 32 + i // 2 * 16), i % 2 * 4), 15)
        high = vi_and(vi_shr(vi_load_u8(header + 96 + i // 4 * 16), i % 4 * 2), 3)
        stored = vi_to_float(vi_or(low, vi_shl(high, 4)))
        return vf_mul(vf_load_f16(header), vf_sub(stored, vf_set1(_THIRTY_TWO)))
    if Q2_K <= type_ <= Q6_K:
        return vf_load_f16(header)
    return vf_load_f16(header + 32 * i)


@inlined
def _min(type_: int, header: int, i: int) -> Any:
    """The f32 mins of block i of a tile, for types that have any; with halves, what multiplies their integer mins."""
    minus = vf_set1(_MINUS_ONE)
    if type_ in (Q4_K, Q5_K):
        least = vi_to_float(_six_bits(header + 64, i, 1))
        return vf_mul(vf_mul(minus, vf_load_f16(header + 32)), least)
    if type_ == Q2_K:
        return vf_mul(minus, vf_load_f16(header + 32))
    return vf_load_f16(header + 64 + 32 * i)


@inlined
def _half_scale(type_: int, header: int, i: int, half: int) -> Any:
    """The integer scale of one half of block i, twice for every row."""
    if type_ == Q3_K:
        scale = vi_plus(_six_bits(header + 32, i, half), -32)
    elif type_ == Q2_K:
        scale = vi_and(vi_shr(vi_load_u16(header + 64 + 32 * i), 8 * half), 15)
    else:
        scale = vi_sar(vi_shl(vi_load_u16(header + 32 + 32 * i), 24 - 8 * half), 24)
    return vi_as_pairs(vi_or(vi_and(scale, 0xFFFF), vi_shl(scale, 16)))


@inlined
def _min_pairs(type_: int, header: int, i: int) -> Any:
    """The integer mins of the halves of block i of Q2_K."""
    both = vi_load_u16(header + 64 + 32 * i)
    return vi_as_pairs(vi_or(vi_and(vi_shr(both, 4), 15), vi_shl(vi_shr(both, 12), 16)))


@kernel
def _unpack_block(type_: int, out: int, panel: int, block: int, scaled: int) -> None:
    """One block of 16 rows, as said above; not scaled: codes as they are, the halves' scales [2][16][2] behind them."""
    form = FORMS[type_]
    per_unit, mins, halves, offset = form.columns // BLOCK, form.mins, form.halves, form.offset
    header, i = panel + block // per_unit * form.bytes, block % per_unit
    codes = header + form.header + i * form.codes
    vf_store(out, _scale(type_, header, i))
    if mins:
        vf_store(out + MIN, _min(type_, header, i))
    if mins == 2:
        vh_store(out + MIN_PAIRS, _min_pairs(type_, header, i))
    out += CODES
    for c in range(8):
        chunk = _chunk(type_, codes, c)
        even = vh_minus(vh_even_bytes(chunk), offset)
        odd = vh_minus(vh_odd_bytes(chunk), offset)
        if halves and scaled:
            scale = _half_scale(type_, header, i, c // 4)
            even, odd = vh_mul(even, scale), vh_mul(odd, scale)
        vh_store(out + 128 * c, even)
        vh_store(out + 128 * c + 64, odd)
    if halves and not scaled:
        vh_store(out + 1024, _half_scale(type_, header, i, 0))
        vh_store(out + 1088, _half_scale(type_, header, i, 1))


@kernel
def unpack_codes(type_: int, out: int, panel: int, first: int, n: int) -> None:
    """Blocks first .. first + n - 1 of a panel."""
    for block in range(n):
        _unpack_block(type_, out + UNPACKED_BLOCK * block, panel, first + block, _SCALED)


@kernel
def unpack_floats(type_: int, out: int, panel: int, first: int, n: int) -> None:
    """Columns first .. first + n - 1 of a panel of F16 or BF16 as f32 [n][16]; of BF16's pairs, which are taken whole,
    the odd one first."""
    if type_ == F16:
        for k in range(n):
            vf_store(out + 64 * k, vf_load_f16(panel + 32 * (first + k)))
        return
    for pair in range((n + 1) // 2):
        at = panel + 64 * (first // 2 + pair)
        vf_store(out + 128 * pair, vf_bf16_of_pairs(at, 1))
        vf_store(out + 128 * pair + 64, vf_bf16_of_pairs(at, 0))


@inlined
def _code_at(block: int, row: int, k: int) -> int:
    """The code of column k of a row of an unpacked block."""
    part = 2 * (k // 4) + k % 2
    return load_i16(block + CODES + 64 * part + 4 * row + k % 4 // 2 * 2)  # type: ignore[no-any-return]


@kernel
def decode_row(
    type_: int, out: int, table: int, k: int, row: int, first: int, n: int, own: int
) -> None:
    """Columns first .. first + n - 1 (at most 32, of quantised types a block) of a row of a matrix of k columns as f32:
    what GGUF defines. own: room for an unpacked block."""
    form = FORMS[type_]
    panel, row = table + row // ROWS * panel_bytes(form, k), row % ROWS
    if type_ == F32:
        for i in range(n):
            store_f32(out + 4 * i, load_f32(panel + 64 * (first + i) + 4 * row))
        return
    if type_ in (F16, BF16):
        unpack_floats(type_, own, panel, first, n)
        for i in range(n):
            at = i ^ 1 if type_ == BF16 else i
            store_f32(out + 4 * i, load_f32(own + 64 * at + 4 * row))
        return
    _unpack_block(type_, own, panel, first // 32, _RAW)
    scale, least = load_f32(own + 4 * row), load_f32(own + MIN + 4 * row)
    mins, halves = form.mins, form.halves
    for i in range(n):
        of_half = scale
        if halves:
            of_half *= np.float32(load_i16(own + UNPACKED_BLOCK + i // 16 * 64 + 4 * row))
        value = of_half * np.float32(_code_at(own, row, i))
        if mins == 1:
            value += least
        elif mins == 2:
            value += least * np.float32(load_i16(own + MIN_PAIRS + 4 * row + i // 16 * 2))
        store_f32(out + 4 * i, value)
