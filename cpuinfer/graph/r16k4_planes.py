"""Planes of bits: how the codes of r16k4's blocks of 32 weights lie in words, and how they get there from GGUF's bytes.

Element k of a block is byte k % 4 of a word; docs/design.md, section 2, names the planes N (nibbles), B (a bit) and T
(two bits). Towards the planes the words' own dimensions come first, so that NumPy's loops are long; back from them
they come last. `...` are any further dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[Any]
U32 = NDArray[Any]
"""uint8 and uint32: NumPy's stubs lose the width where an array is shifted by an int."""
Fields = Mapping[str, NDArray[Any]]
"""Fields of a record by name."""


def two_blocks(words: U32) -> U32:
    """Words [8, ...] of bytes with the nibbles of two blocks, low halves and high -> N [2, 4, ...]."""
    low, high = words[:4], words[4:]
    first = (low & 0x0F0F0F0F) | ((high & 0x0F0F0F0F) << 4)
    return np.stack([first, ((low >> 4) & 0x0F0F0F0F) | (high & 0xF0F0F0F0)])


def four_blocks(words: U32) -> U32:
    """Words [8, ...] of bytes with two bits of each of four blocks -> T [4, 2, ...].

    Within each half, the 4 x 4 matrix (word, block) of bit pairs is transposed, by exchanges at distance 1 and 2.
    """
    for distance, bits, mask in ((1, 2, 0x33333333), (2, 4, 0x0F0F0F0F)):
        words = _exchange(words, distance, bits, mask)
    return words.reshape(2, 4, *words.shape[1:]).swapaxes(0, 1)


def eight_blocks(words: U32) -> U32:
    """Words [8, ...] of bytes with a bit of each of eight blocks -> B [8, 1, ...]: an 8 x 8 transposition."""
    for distance, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F)):
        words = _exchange(words, distance, distance, mask)
    return words[:, None]


def _exchange(words: U32, distance: int, bits: int, mask: int) -> U32:
    """A step of a transposition: words `distance` apart exchange the bits above the mask of the first for those below
    it of the second."""
    pairs = words.reshape(-1, 2, distance, *words.shape[1:])
    first, second = pairs[:, 0], pairs[:, 1]
    changed = ((first >> bits) ^ second) & mask
    out = np.empty_like(pairs)
    np.bitwise_xor(first, changed << bits, out=out[:, 0])
    np.bitwise_xor(second, changed, out=out[:, 1])
    return out.reshape(words.shape)


def _spread_bits() -> U32:
    """Of each byte: its bit i at bit 8 (i % 4) + i // 4."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    at = np.arange(8)
    spread: U32 = (bits.astype(np.uint32) << (8 * (at % 4) + at // 4)).sum(axis=1, dtype=np.uint32)
    return spread


_SPREAD = _spread_bits()


def bit_words(bits: U8) -> U32:
    """Bit k of four bytes [4, ...], for element k -> B [1, ...]."""
    words: U32 = _SPREAD[bits[0]]
    for byte in (1, 2, 3):
        words |= _SPREAD[bits[byte]] << (2 * byte)
    return words[None]


def six_bit_fields(a: U8, b: U8) -> dict[str, U8]:
    """Six-bit pairs (a, b), each [8, ...], as section 2 packs them."""
    top = (a >> 4) | ((b >> 4) << 2)
    return {"low": (a & 15) | (b << 4), "high": top[0::2] | (top[1::2] << 4)}


def as_bytes(words: NDArray[Any]) -> U8:
    """The bytes of words, along the last dimension."""
    return np.ascontiguousarray(words).view(np.uint8)


def byte_codes(fields: Fields) -> U8:
    """Words of bytes [..., 8] -> codes [..., 32]; so the others, of the planes that their bits lie in."""
    return as_bytes(fields["bytes"])


def nibble_codes(fields: Fields) -> U8:
    """N."""
    packed = as_bytes(fields["nibbles"])
    codes: U8 = np.concatenate([packed & 15, packed >> 4], axis=-1)
    return codes


def two_bit_codes(fields: Fields) -> U8:
    """T."""
    return _plane(fields["twos"], 2)


def three_bit_codes(fields: Fields) -> U8:
    """T, then B."""
    codes: U8 = _plane(fields["twos"], 2) | (_plane(fields["bits"], 1) << 2)
    return codes


def five_bit_codes(fields: Fields) -> U8:
    """N, then B."""
    codes: U8 = nibble_codes(fields) | (_plane(fields["bits"], 1) << 4)
    return codes


def six_bit_codes(fields: Fields) -> U8:
    """N, then T."""
    codes: U8 = nibble_codes(fields) | (_plane(fields["twos"], 2) << 4)
    return codes


def _plane(words: U32, bits: int) -> U8:
    """B [..., 1] (bits 1) or T [..., 2] (bits 2) -> codes [..., 32]."""
    packed = as_bytes(words).reshape(*words.shape, 1, 4)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    codes: U8 = ((packed >> shifts) & ((1 << bits) - 1)).reshape(*words.shape[:-1], 32)
    return codes


def six_bit_pairs(low: U8, high: U8) -> tuple[U8, U8]:
    """The inverse of six_bit_fields, dimensions last: (a, b), each [..., 8], of low [..., 8] and high [..., 4]."""
    top = np.stack([high & 15, high >> 4], axis=-1).reshape(low.shape)
    return (low & 15) | ((top & 3) << 4), (low >> 4) | ((top >> 2) << 4)
