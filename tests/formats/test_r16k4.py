"""The packed layout: bytes where docs/design.md section 2 says, values as the gguf package reads them."""

import gguf
import numpy as np
import pytest
from gguf import quants

from cpuinfer.graph import r16k4
from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.weights import Weight

QUANTISED = [WeightType.Q8_0, WeightType.Q4_0, WeightType.Q4_1]
FLOATS = [WeightType.F32, WeightType.F16, WeightType.BF16]


def matrix(type, n, k, seed=1):
    values = np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)
    return quants.quantize(values, gguf.GGMLQuantizationType(int(type))).view(np.uint8)


def packed(type, n, k, blocks):
    return Weight("w", type, (n, k), r16k4.pack(type, n, k, blocks))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 48, 65])
@pytest.mark.parametrize(
    ("type", "k"),
    [
        (type, k)
        for type in QUANTISED + FLOATS
        for k in (1, 15, 32, 64, 96, 576)
        if k % type.block[0] == 0
    ],
)
def test_unpack_equals_gguf(type, k, n):
    blocks = matrix(type, n, k)
    weight = packed(type, n, k, blocks)
    assert weight.data.size == r16k4.packed_nbytes(type, n, k)
    assert weight.data.ctypes.data % 64 == 0
    expected = quants.dequantize(blocks, gguf.GGMLQuantizationType(int(type))).reshape(n, k)
    assert r16k4.unpack(weight).tobytes() == expected.astype(np.float32).tobytes()
    rows = np.random.default_rng(2).integers(0, n, 7)
    assert r16k4.unpack_rows(weight, rows).tobytes() == expected[rows].tobytes()


@pytest.mark.parametrize("type", QUANTISED + FLOATS)
def test_slabs_do_not_change_bytes(type, monkeypatch):
    blocks = matrix(type, 100, 160)
    whole = r16k4.pack(type, 100, 160, blocks)
    monkeypatch.setattr(r16k4, "_SLAB_BYTES", 1)
    weight = packed(type, 100, 160, blocks)
    assert weight.data.tobytes() == whole.tobytes()
    by_panel = r16k4.unpack(weight)
    monkeypatch.undo()
    assert by_panel.tobytes() == r16k4.unpack(weight).tobytes()


def test_bytes_of_a_q4_1_tile():
    n, k = 16, 64
    blocks = matrix(WeightType.Q4_1, n, k).reshape(n, 2, 20)
    tile = r16k4.pack(WeightType.Q4_1, n, k, blocks)
    assert tile.size == 640
    for row, block, chunk, byte in [(0, 0, 0, 0), (3, 1, 2, 1), (15, 1, 3, 3)]:
        at = 128 + ((block * 4 + chunk) * 16 + row) * 4 + byte
        assert tile[at] == blocks[row, block, 4 + 4 * chunk + byte]
        scale, low = (block * 16 + row) * 2, 64 + (block * 16 + row) * 2
        assert tile[scale : scale + 2].tobytes() == blocks[row, block, :2].tobytes()
        assert tile[low : low + 2].tobytes() == blocks[row, block, 2:4].tobytes()


def test_absent_rows_and_blocks_are_zero_bytes():
    tiles = r16k4.pack(WeightType.Q8_0, 3, 96, matrix(WeightType.Q8_0, 3, 96)).reshape(2, 1088)
    codes = tiles[:, 64:].reshape(2, 2, 8, 16, 4)
    assert codes[0, :, :, :3].any() and codes[1, 0, :, :3].any()
    assert not codes[:, :, :, 3:].any() and not codes[1, 1].any()
    scales = tiles[:, :64].reshape(2, 2, 16, 2)
    assert not scales[:, :, 3:].any() and not scales[1, 1].any()


@pytest.mark.parametrize(
    ("type", "n", "k", "size", "message"),
    [
        (WeightType.Q4_0, 4, 48, 108, "multiple of 32"),
        (WeightType.Q4_0, 4, 64, 143, "takes 144 bytes"),
        (WeightType.F32, 0, 64, 0, "N > 0"),
        (WeightType.F32, 4, 0, 0, "K > 0"),
        (WeightType.Q4_K, 4, 256, 576, "no packed form"),
    ],
)
def test_refusals(type, n, k, size, message):
    with pytest.raises(ValueError, match=message):
        r16k4.pack(type, n, k, np.zeros(size, np.uint8))


def test_unpack_refusals():
    weight = packed(WeightType.F32, 4, 8, matrix(WeightType.F32, 4, 8))
    with pytest.raises(IndexError, match="4 rows"):
        r16k4.unpack_rows(weight, np.array([4]))
    with pytest.raises(ValueError, match="packs into"):
        r16k4.unpack(Weight("w", WeightType.F32, (4, 9), weight.data))
