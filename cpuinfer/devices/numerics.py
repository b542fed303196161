"""Element types of activations in NumPy: the exact roundings that every device does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import Activation

BLOCK = 32
"""Values that share a q8 scale."""

_LEAST_AMAX = np.float32(2.0**-119)  # below it amax / 127 is denormal, which kernels flush to zero
_LEAST_NORMAL = np.float32(2.0**-126)


@dataclass(frozen=True)
class Q8:
    """q8 rows: q int8 [rows, n], d f32 [rows, n/32] the scale of each block. All else in a row follows from these."""

    q: NDArray[np.int8]
    d: NDArray[np.float32]

    @property
    def halves(self) -> NDArray[np.int16]:
        """The sums of q over the halves of each block, [rows, n/32, 2]."""
        halves = self.q.reshape(*self.d.shape, 2, BLOCK // 2)
        sums: NDArray[np.int16] = halves.sum(axis=3, dtype=np.int16)
        return sums

    @property
    def s(self) -> NDArray[np.int32]:
        """The sums of q over each block, [rows, n/32]."""
        sums: NDArray[np.int32] = self.halves.sum(axis=2, dtype=np.int32)
        return sums

    def raw(self) -> NDArray[np.uint8]:
        """The bytes of the rows up to their padding, in the order that dtypes.Activation gives."""
        s = self.s
        parts = (self.q, self.d, s, self.d * s.astype(np.float32), self.halves)
        raw = [np.ascontiguousarray(part).view(np.uint8).reshape(len(self.q), -1) for part in parts]
        return np.concatenate(raw, axis=1)


Values = NDArray[np.float32] | NDArray[np.uint16] | Q8
"""A buffer's rows as held in memory: f32, bf16 (as uint16), or q8."""


def quantize(x: NDArray[np.float32], dtype: Activation) -> Values:
    """f32 [rows, n] in the given type. For q8, n is a multiple of 32."""
    if dtype is Activation.Q8:
        return quantize_q8(x)
    return f32_to_bf16(x) if dtype is Activation.BF16 else x


def quantize_q8(x: NDArray[np.float32]) -> Q8:
    """d = amax / 127, q = rne(x * (127 / amax)), in f32, per block of 32 (docs/design.md, section 3)."""
    blocks = flush(x).reshape(len(x), -1, BLOCK)
    amax = np.abs(blocks).max(axis=2, initial=0)
    zero = amax < _LEAST_AMAX
    safe = np.where(zero, np.float32(1), amax)
    inverse = np.where(zero, np.float32(0), np.float32(127) / safe)
    q = np.rint(blocks * inverse[:, :, None]).astype(np.int8)
    d = np.where(zero, np.float32(0), safe / np.float32(127))
    return Q8(q.reshape(x.shape), d)


def quantize_heads(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 of the last dimension of x [..., D] and its scales [...]: as quantize_q8, a head in a block's place."""
    blocks = flush(x)
    amax = np.abs(blocks).max(axis=-1, initial=0)
    zero = amax < _LEAST_AMAX
    safe = np.where(zero, np.float32(1), amax)
    inverse = np.where(zero, np.float32(0), np.float32(127) / safe)
    codes = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return codes, np.where(zero, np.float32(0), safe / np.float32(127))


def f32_to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Nearest even; denormals to signed zero; NaN stays NaN (Intel SDM, VCVTNEPS2BF16)."""
    bits = flush(x).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def bf16_to_f32(x: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Exactly."""
    return (x.astype(np.uint32) << 16).view(np.float32)


def flush(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Denormals to zero of the same sign."""
    return np.where(np.abs(x) < _LEAST_NORMAL, np.copysign(np.float32(0), x), x)


def decode(values: Values) -> NDArray[np.float64]:
    """The exact values [rows, n]."""
    if isinstance(values, Q8):
        scales = np.repeat(values.d.astype(np.float64), BLOCK, axis=1)
        return values.q.astype(np.float64) * scales
    if values.dtype == np.uint16:
        return bf16_to_f32(values.view(np.uint16)).astype(np.float64)
    return values.astype(np.float64)


def raw_rows(values: Values) -> NDArray[np.float32] | NDArray[np.uint8]:
    """f32 as it is; bf16 and q8 as the bytes [rows, row_bytes] of their row format, padding zero."""
    if isinstance(values, Q8):
        return _padded(values.raw(), Activation.Q8.row_bytes(values.q.shape[1]))
    if values.dtype == np.uint16:
        width = Activation.BF16.row_bytes(values.shape[1])
        return _padded(np.ascontiguousarray(values).view(np.uint8), width)
    return values.view(np.float32)


def _padded(rows: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
