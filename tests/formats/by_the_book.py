"""One weight of a packed panel, read byte by byte as docs/design.md, section 2, describes it: slow, and no one else's
code. The last rounding is f32's, as in GGUF.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType as T

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

# type: bytes of the unit, of the header, of a block of 32, and the pieces of a block in order
TILES = {
    T.Q8_0: (1088, 64, 512, ""),
    T.Q4_0: (576, 64, 256, "N"),
    T.Q4_1: (640, 128, 256, "N"),
    T.Q5_0: (704, 64, 320, "NB"),
    T.Q5_1: (768, 128, 320, "NB"),
    T.IQ4_NL: (576, 64, 256, "N"),
    T.MXFP4: (544, 32, 256, "N"),
    T.Q2_K: (1344, 320, 128, "T"),
    T.Q3_K: (1760, 224, 192, "TB"),
    T.Q4_K: (2304, 256, 256, "N"),
    T.Q5_K: (2816, 256, 320, "NB"),
    T.Q6_K: (3360, 288, 384, "NT"),
    T.IQ4_XS: (2176, 128, 256, "N"),
}
PIECE_BYTES = {"N": 256, "B": 64, "T": 128}


def weight_at(kind: T, panel: NDArray[np.uint8], row: int, column: int) -> np.float32:
    """The weight of a row (0..15) and column of one packed panel of a quantised type."""
    unit_bytes, header_bytes, block_bytes, pieces = TILES[kind]
    per_unit = 256 if kind.block[0] == 256 else 64
    unit = panel[column // per_unit * unit_bytes :][:unit_bytes].tobytes()
    block, k = divmod(int(column) % per_unit, 32)
    codes = unit[header_bytes + block * block_bytes :][:block_bytes]
    if kind is T.Q8_0:
        planes = {"8": codes[(k // 4 * 16 + row) * 4 + k % 4]}
    else:
        planes, at = {}, 0
        for piece in pieces:
            planes[piece] = plane(piece, codes[at:], row, k)
            at += PIECE_BYTES[piece]
    if per_unit == 64:
        return of_32(kind, planes, unit, row, block)
    return of_256(kind, planes, unit, row, block, k // 16)


def plane(piece: str, data: bytes, row: int, k: int) -> int:
    chunk, byte = divmod(k, 4)
    if piece == "N":
        return data[(chunk % 4 * 16 + row) * 4 + byte] >> (4 * (k // 16)) & 15
    if piece == "B":
        return data[row * 4 + byte] >> chunk & 1
    half, j = divmod(chunk, 4)
    return data[(half * 16 + row) * 4 + byte] >> (2 * j) & 3


def f16(data: bytes, index: int) -> np.float32:
    return np.float32(np.frombuffer(data, "<f2", 1, 2 * index)[0])


def of_32(kind: T, planes: dict[str, int], unit: bytes, row: int, block: int) -> np.float32:
    f32 = np.float32
    if kind is T.MXFP4:
        return f32(2.0 ** (unit[16 * block + row] - 128)) * f32(E2M1[planes["N"]])
    d = f16(unit, 16 * block + row)
    code = planes.get("8", planes.get("N", 0) | planes.get("B", 0) << 4)
    if kind is T.IQ4_NL:
        return d * f32(IQ4[code])
    if kind in (T.Q4_1, T.Q5_1):
        return d * f32(code) + f16(unit, 32 + 16 * block + row)
    return d * f32(code - {T.Q8_0: 128, T.Q4_0: 8, T.Q5_0: 16}[kind])


def six_bits(data: bytes, row: int, block: int) -> tuple[int, int]:
    low, high = data[16 * block + row], data[128 + 16 * (block // 2) + row] >> (4 * (block % 2))
    return (low & 15) | (high & 3) << 4, (low >> 4) | (high >> 2 & 3) << 4


def of_256(
    kind: T, planes: dict[str, int], unit: bytes, row: int, block: int, half: int
) -> np.float32:
    f32, d = np.float32, f16(unit, row)
    if kind in (T.Q4_K, T.Q5_K):
        scale, low = six_bits(unit[64:], row, block)
        code = planes["N"] | planes.get("B", 0) << 4
        return d * f32(scale) * f32(code) - f16(unit, 16 + row) * f32(low)
    if kind is T.Q2_K:
        both = unit[64 + (block * 16 + row) * 2 + half]
        return d * f32(both & 15) * f32(planes["T"]) - f16(unit, 16 + row) * f32(both >> 4)
    if kind is T.Q3_K:
        scale = six_bits(unit[32:], row, block)[half] - 32
        return d * f32(scale) * f32((planes["T"] | planes["B"] << 2) - 4)
    if kind is T.Q6_K:
        scale = np.frombuffer(unit, np.int8, 1, 32 + (block * 16 + row) * 2 + half)[0]
        return d * f32(scale) * f32((planes["N"] | planes["T"] << 4) - 32)
    low = unit[32 + 16 * (block // 2) + row] >> (4 * (block % 2)) & 15
    high = unit[96 + 16 * (block // 4) + row] >> (2 * (block % 4)) & 3
    return d * f32((low | high << 4) - 32) * f32(IQ4[planes["N"]])
