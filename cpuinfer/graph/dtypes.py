"""Element types: of weights (numbered as in GGUF), of activations between ops, and of KV pages."""

from __future__ import annotations

import enum


class WeightType(enum.IntEnum):
    """A weight type; its number is GGUF's, its block is (elements, bytes) as stored in a GGUF file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30
    MXFP4 = 39

    @property
    def block(self) -> tuple[int, int]:
        """(elements, bytes) of one block in a GGUF file."""
        return _BLOCKS[self]

    @property
    def is_native(self) -> bool:
        """Whether native kernels read this type packed: a type without one is expanded to F32 at load."""
        return self in _ACTIVATIONS

    @property
    def activation(self) -> Activation:
        """What a matmul with this weight takes as input. Raises KeyError for a type that is not native."""
        return _ACTIVATIONS[self]


class Activation(enum.StrEnum):
    """Element type of a buffer between ops.

    f32: row of n floats. bf16: row of n (rounded up to even) bf16. q8: row of n int8, then for each block of 32 its f32
    scale d, then for each the int32 sum s of its int8 values, then f32 d * s, then the sums of its two halves as int16;
    n is a multiple of 32; rows start 64-byte aligned.
    """

    F32 = "f32"
    BF16 = "bf16"
    Q8 = "q8"

    def row_bytes(self, n: int) -> int:
        """Bytes from one row of width n to the next."""
        if self is Activation.Q8:
            return -(-(n + n // 32 * 16) // 64) * 64
        return n * 4 if self is Activation.F32 else -(-n // 2) * 4


class KVType(enum.StrEnum):
    """Element type of KV pages. int8 has one f32 scale per token and KV head, for K and for V."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    INT8 = "int8"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return {KVType.F32: 4, KVType.INT8: 1}.get(self, 2)

    def token_bytes(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of one token's K and V in one layer, scales included."""
        scales = 8 * kv_heads if self is KVType.INT8 else 0
        return 2 * kv_heads * head_dim * self.itemsize + scales


_BLOCKS: dict[WeightType, tuple[int, int]] = {
    WeightType.F32: (1, 4),
    WeightType.F16: (1, 2),
    WeightType.BF16: (1, 2),
    WeightType.Q4_0: (32, 18),
    WeightType.Q4_1: (32, 20),
    WeightType.Q5_0: (32, 22),
    WeightType.Q5_1: (32, 24),
    WeightType.Q8_0: (32, 34),
    WeightType.Q2_K: (256, 84),
    WeightType.Q3_K: (256, 110),
    WeightType.Q4_K: (256, 144),
    WeightType.Q5_K: (256, 176),
    WeightType.Q6_K: (256, 210),
    WeightType.IQ4_NL: (32, 18),
    WeightType.IQ4_XS: (256, 136),
    WeightType.MXFP4: (32, 17),
}

_ACTIVATIONS: dict[WeightType, Activation] = dict.fromkeys(WeightType, Activation.Q8) | {
    WeightType.F32: Activation.F32,
    WeightType.F16: Activation.F32,
    WeightType.BF16: Activation.BF16,
}
