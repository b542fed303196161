"""The weight types of the packed layout r16k4: one entry each, made of the pieces of docs/design.md, section 2.

An entry is two record types, GGUF's block and the packed unit, and two functions: from blocks to the fields of a unit,
and from these to the numbers that they mean. `...` stands for any leading dimensions; the last of them counts blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.r16k4_planes import (
    U8,
    U32,
    Fields,
    as_bytes,
    bit_words,
    byte_codes,
    eight_blocks,
    five_bit_codes,
    four_blocks,
    nibble_codes,
    six_bit_codes,
    six_bit_fields,
    six_bit_pairs,
    three_bit_codes,
    two_bit_codes,
    two_blocks,
)

ROWS = 16
"""Rows of a panel: the lanes of a vf16."""

F32 = NDArray[np.float32]
Record = NDArray[Any]
"""A structured array."""
Piece = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Terms:
    """A weight is `codes * scales + mins`, each operation rounded to f32: what GGUF defines.

    codes [..., parts, elements] are the integer codes less their offset, scales and mins [..., parts, 1]. A type
    without mins has None there, a type of floats has no scales either: its codes are the weights.
    """

    codes: F32
    scales: F32 | None = None
    mins: F32 | None = None

    def values(self) -> F32:
        """[..., parts * elements]."""
        values = self.codes if self.scales is None else self.codes * self.scales
        if self.mins is not None:
            values += self.mins
        return values.reshape(*values.shape[:-2], -1)


@dataclass(frozen=True)
class Layout:
    """How matrices of one type lie in a panel.

    `block` is GGUF's own record of `elements` weights. `unit` is the packed record of `blocks` such blocks of each of
    16 rows: its fields, those of the nested record `codes` included, have shape (blocks, inner..., 16). `split` takes
    records of `block` [...] to fields of the same names [inner..., ...]; `terms` takes fields [..., inner...] to
    their meaning.
    """

    elements: int
    block: np.dtype[Any]
    unit: np.dtype[Any]
    blocks: int
    split: Callable[[Record], Fields]
    terms: Callable[[Fields], Terms]


# Pieces of a unit: what one block of 32 weights of 16 rows has of each, as words of four bytes.
_NIBBLES = ("nibbles", "<u4", (4, ROWS))
_TWOS = ("twos", "<u4", (2, ROWS))
_BITS = ("bits", "<u4", (1, ROWS))
_BYTES = ("bytes", "<u4", (8, ROWS))
# Header fields of a unit, for each of its GGUF blocks.
_D = ("d", "<f2", (ROWS,))
_MIN = ("m", "<f2", (ROWS,))
_SIX_BITS = (("low", "u1", (8, ROWS)), ("high", "u1", (4, ROWS)))
_TWO_SCALES = ("scales", "<u2", (8, ROWS))


def _unit(blocks: int, inner: int, header: Sequence[Piece], codes: Sequence[Piece]) -> Any:
    """A unit of `blocks` GGUF blocks, of `inner` blocks of 32 weights each: header fields, then the codes."""
    pieces = [(name, type_, (blocks, *shape)) for name, type_, shape in header]
    return np.dtype([*pieces, ("codes", list(codes), (blocks, inner))])


# From GGUF's blocks to fields [inner..., ...].


def _views(blocks: Record, *names: str) -> Fields:
    """Fields of records [...] as [inner..., ...]."""
    lead = range(blocks.ndim)
    fields = {name: blocks[name] for name in names}
    return {n: x.transpose(*range(blocks.ndim, x.ndim), *lead) for n, x in fields.items()}


def _inner_first(blocks: Record, name: str) -> NDArray[Any]:
    return np.ascontiguousarray(_views(blocks, name)[name])


def _q4k_nibbles(blocks: Record) -> U32:
    """Byte 32 g + j has element j of block 2 g in its low half, of block 2 g + 1 in its high half: N [8, 4, ...]."""
    groups = _inner_first(blocks, "qs")
    return np.concatenate([two_blocks(words) for words in groups])


def _q6k_nibbles(blocks: Record) -> U32:
    """Byte 64 h + 32 r + j has element j of block 4 h + r in its low half, of block 4 h + 2 + r in its high half."""
    halves = _inner_first(blocks, "ql")
    pairs = [two_blocks(words) for half in halves for words in half]
    return np.stack([pairs[2 * (b // 4) + b % 2][b // 2 % 2] for b in range(8)])


def _k_twos(blocks: Record, name: str) -> U32:
    """Byte 32 h + j has element j of blocks 4 h .. 4 h + 3 from bit 0 up: T [8, 2, ...]."""
    return np.concatenate([four_blocks(words) for words in _inner_first(blocks, name)])


def _k_scales(blocks: Record) -> Fields:
    """The 12 bytes of Q4_K and Q5_K (get_scale_min_k4 of ggml-quants.c): scale and min of eight blocks."""
    packed = _inner_first(blocks, "scales")
    scale, low, both = packed[:4], packed[4:8], packed[8:]
    scales = [scale & 63, (both & 15) | ((scale >> 2) & 48)]
    mins = [low & 63, (both >> 4) | ((low >> 2) & 48)]
    return six_bit_fields(np.concatenate(scales), np.concatenate(mins))


def _q3_scales(blocks: Record) -> Fields:
    """The 12 bytes of Q3_K (dequantize_row_q3_K of ggml-quants.c): 16 scales + 32, pairs for the halves of a block."""
    packed = _inner_first(blocks, "scales")
    low, high = packed[:8], packed[8:]
    two = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)])
    scales = np.concatenate([low & 15, low >> 4]) | (two << 4)
    return six_bit_fields(scales[0::2], scales[1::2])


_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
"""kvalues_iq4nl of ggml-common.h."""
_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of e2m1 (OCP Microscaling Formats 1.0, table 5): kvalues_mxfp4 of ggml-common.h."""


# Scales: f32 [..., parts, 1].


def _column(x: NDArray[Any]) -> F32:
    """[..., parts] -> f32 [..., parts, 1]."""
    return x.astype(np.float32)[..., None]


def _exponent(e: U8) -> F32:
    """[..., parts] -> 2^(e - 128) as f32, a denormal for e < 2 (ggml_e8m0_to_fp32_half of ggml-impl.h)."""
    wide = e.astype(np.uint32)[..., None]
    least = np.uint32(0x00200000) << (wide & 1)
    return np.where(wide < 2, least, (wide - 1) << 23).view(np.float32)


def _of_halves(codes: F32) -> F32:
    """Codes [..., 8, 32] as [..., 16, 16]: a part for each half of a block."""
    return codes.reshape(*codes.shape[:-2], 16, 16)


# The types. A block of GGUF's is as in ggml-common.h; d and m are its f16 scale and min.


def _floats(type_: str, word: str, elements: int = 1) -> Layout:
    """Types whose weights are numbers: words of one or more of them."""

    def terms(fields: Fields) -> Terms:
        x = fields["x"].view(type_)
        if elements == 2:
            x = (x.astype(np.uint32) << 16).view(np.float32)
        return Terms(x.astype(np.float32, copy=False).reshape(*fields["x"].shape, 1, elements))

    return Layout(
        elements,
        np.dtype([("x", word)]),
        np.dtype([("x", word, (1, ROWS))]),
        1,
        lambda blocks: _views(blocks, "x"),
        terms,
    )


def _of_32(
    header: Sequence[Piece],
    block: Sequence[Any],
    codes: Sequence[Piece],
    split: Callable[[Record], Fields],
    numbers: Callable[[Fields], F32],
    scale: Callable[[NDArray[Any]], F32] = _column,
) -> Layout:
    """Types of one scale (and min, where the header has one) for 32 weights; `split` gives the fields of the codes."""

    def fields(blocks: Record) -> Fields:
        own = {name: words[None] for name, words in split(blocks).items()}
        return {**_views(blocks, *(name for name, _, _ in header)), **own}

    def terms(fields: Fields) -> Terms:
        mins = _column(fields["m"])[..., None] if "m" in fields else None
        return Terms(numbers(fields), scale(fields["d"])[..., None], mins)

    return Layout(32, np.dtype(list(block)), _unit(2, 1, header, codes), 2, fields, terms)


def _of_256(
    header: Sequence[Piece],
    block: Sequence[Any],
    codes: Sequence[Piece],
    split: Callable[[Record], Fields],
    terms: Callable[[Fields], Terms],
) -> Layout:
    """Types of 256 weights with scales of their own for 32 or 16; `split` gives the fields but d and m."""

    def fields(blocks: Record) -> Fields:
        scales = _views(blocks, *(name for name, _, _ in header if name in ("d", "m")))
        return {**scales, **split(blocks)}

    return Layout(256, np.dtype(list(block)), _unit(1, 8, header, codes), 1, fields, terms)


def _less(codes: Callable[[Fields], U8], offset: int) -> Callable[[Fields], F32]:
    return lambda fields: codes(fields).astype(np.float32) - np.float32(offset)


def _from(table: F32) -> Callable[[Fields], F32]:
    return lambda fields: table[nibble_codes(fields)]


def _k_terms(codes: Callable[[Fields], U8]) -> Callable[[Fields], Terms]:
    """Q4_K, Q5_K."""

    def terms(fields: Fields) -> Terms:
        scale, least = six_bit_pairs(fields["low"], fields["high"])
        scales = _column(fields["d"]) * scale
        mins = _column(fields["m"]) * -least.astype(np.float32)
        return Terms(codes(fields).astype(np.float32), scales[..., None], mins[..., None])

    return terms


def _q2k_terms(fields: Fields) -> Terms:
    both = as_bytes(fields["scales"])
    scales = _column(fields["d"]) * (both & 15)
    mins = _column(fields["m"]) * -(both >> 4).astype(np.float32)
    codes = two_bit_codes(fields).astype(np.float32)
    return Terms(_of_halves(codes), scales[..., None], mins[..., None])


def _q3k_terms(fields: Fields) -> Terms:
    pairs = np.stack(six_bit_pairs(fields["low"], fields["high"]), axis=-1).reshape(
        *fields["d"].shape, 16
    )
    scales = _column(fields["d"]) * (pairs.astype(np.float32) - np.float32(32))
    return Terms(_of_halves(_less(three_bit_codes, 4)(fields)), scales[..., None])


def _q6k_terms(fields: Fields) -> Terms:
    scales = _column(fields["d"]) * as_bytes(fields["scales"]).view(np.int8)
    return Terms(_of_halves(_less(six_bit_codes, 32)(fields)), scales[..., None])


def _iq4xs_terms(fields: Fields) -> Terms:
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    four = np.stack([fields["low"] & 15, fields["low"] >> 4], axis=-1)
    two = (fields["high"][..., None] >> shifts) & 3
    stored = four.reshape(*fields["d"].shape, 8) | (two.reshape(*fields["d"].shape, 8) << 4)
    scales = _column(fields["d"]) * (stored.astype(np.float32) - np.float32(32))
    return Terms(_IQ4[nibble_codes(fields)], scales[..., None])


def _split_n(blocks: Record) -> Fields:
    return {"nibbles": _views(blocks, "qs")["qs"]}


def _split_nb(blocks: Record) -> Fields:
    return {**_split_n(blocks), "bits": bit_words(_inner_first(blocks, "qh"))}


_F16_D, _F16_M = ("d", "<f2"), ("m", "<f2")
_QS_32 = ("qs", "<u4", (4,))

LAYOUTS: Mapping[WeightType, Layout] = {
    WeightType.F32: _floats("<f4", "<u4"),
    WeightType.F16: _floats("<f2", "<u2"),
    WeightType.BF16: _floats("<u2", "<u4", elements=2),
    WeightType.Q8_0: _of_32(
        [_D],
        [_F16_D, ("qs", "<u4", (8,))],
        [_BYTES],
        lambda blocks: {"bytes": _inner_first(blocks, "qs") ^ np.uint32(0x80808080)},
        _less(byte_codes, 128),
    ),
    WeightType.Q4_0: _of_32([_D], [_F16_D, _QS_32], [_NIBBLES], _split_n, _less(nibble_codes, 8)),
    WeightType.Q4_1: _of_32(
        [_D, _MIN], [_F16_D, _F16_M, _QS_32], [_NIBBLES], _split_n, _less(nibble_codes, 0)
    ),
    WeightType.Q5_0: _of_32(
        [_D],
        [_F16_D, ("qh", "u1", (4,)), _QS_32],
        [_NIBBLES, _BITS],
        _split_nb,
        _less(five_bit_codes, 16),
    ),
    WeightType.Q5_1: _of_32(
        [_D, _MIN],
        [_F16_D, _F16_M, ("qh", "u1", (4,)), _QS_32],
        [_NIBBLES, _BITS],
        _split_nb,
        _less(five_bit_codes, 0),
    ),
    WeightType.IQ4_NL: _of_32([_D], [_F16_D, _QS_32], [_NIBBLES], _split_n, _from(_IQ4)),
    WeightType.MXFP4: _of_32(
        [("d", "u1", (ROWS,))],
        [("d", "u1"), _QS_32],
        [_NIBBLES],
        _split_n,
        _from(_E2M1),
        _exponent,
    ),
    WeightType.Q2_K: _of_256(
        [_D, _MIN, _TWO_SCALES],
        [("scales", "<u2", (8,)), ("qs", "<u4", (2, 8)), _F16_D, _F16_M],
        [_TWOS],
        lambda blocks: {**_views(blocks, "scales"), "twos": _k_twos(blocks, "qs")},
        _q2k_terms,
    ),
    WeightType.Q3_K: _of_256(
        [_D, *_SIX_BITS],
        [("hmask", "<u4", (8,)), ("qs", "<u4", (2, 8)), ("scales", "u1", (12,)), _F16_D],
        [_TWOS, _BITS],
        lambda blocks: {
            **_q3_scales(blocks),
            "twos": _k_twos(blocks, "qs"),
            "bits": eight_blocks(_inner_first(blocks, "hmask")),
        },
        _q3k_terms,
    ),
    WeightType.Q4_K: _of_256(
        [_D, _MIN, *_SIX_BITS],
        [_F16_D, _F16_M, ("scales", "u1", (12,)), ("qs", "<u4", (4, 8))],
        [_NIBBLES],
        lambda blocks: {**_k_scales(blocks), "nibbles": _q4k_nibbles(blocks)},
        _k_terms(nibble_codes),
    ),
    WeightType.Q5_K: _of_256(
        [_D, _MIN, *_SIX_BITS],
        [
            _F16_D,
            _F16_M,
            ("scales", "u1", (12,)),
            ("qh", "<u4", (8,)),
            ("qs", "<u4", (4, 8)),
        ],
        [_NIBBLES, _BITS],
        lambda blocks: {
            **_k_scales(blocks),
            "nibbles": _q4k_nibbles(blocks),
            "bits": eight_blocks(_inner_first(blocks, "qh")),
        },
        _k_terms(five_bit_codes),
    ),
    WeightType.Q6_K: _of_256(
        [_D, _TWO_SCALES],
        [("ql", "<u4", (2, 2, 8)), ("qh", "<u4", (2, 8)), ("scales", "<u2", (8,)), _F16_D],
        [_NIBBLES, _TWOS],
        lambda blocks: {
            **_views(blocks, "scales"),
            "nibbles": _q6k_nibbles(blocks),
            "twos": _k_twos(blocks, "qh"),
        },
        _q6k_terms,
    ),
    WeightType.IQ4_XS: _of_256(
        [_D, ("low", "u1", (4, ROWS)), ("high", "u1", (2, ROWS))],
        [_F16_D, ("high", "u1", (2,)), ("low", "u1", (4,)), ("qs", "<u4", (8, 4))],
        [_NIBBLES],
        lambda blocks: {
            **_views(blocks, "low", "high"),
            **_split_n(blocks),
        },
        _iq4xs_terms,
    ),
}
