"""The packed layout: bytes where docs/design.md section 2 says, values as the gguf package reads them."""

import gguf
import numpy as np
import pytest
from by_the_book import weight_at
from gguf import quants
from random_weights import random_blocks

from cpuinfer.graph import r16k4
from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.r16k4_types import LAYOUTS
from cpuinfer.graph.weights import Weight

TYPES = list(WeightType)
QUANTISED = [t for t in TYPES if t.block[0] > 1]
WIDTHS = {1: (1, 15, 32, 96), 32: (32, 64, 96, 160, 576), 256: (256, 512, 768)}


def matrix(type, n, k, seed=1):
    return random_blocks(type, n * k, seed)


def noise(type, n, k):
    """Any bytes: infinite, NaN and subnormal scales, all codes."""
    size = n * k // type.block[0] * type.block[1]
    return np.random.default_rng([n, k]).integers(0, 256, size, np.uint8)


def packed(type, n, k, blocks):
    return Weight("w", type, (n, k), r16k4.pack(type, n, k, blocks))


def as_gguf(type, n, k, blocks):
    with np.errstate(all="ignore"):
        values = quants.dequantize(blocks, gguf.GGMLQuantizationType(int(type)))
    return values.astype(np.float32).reshape(n, k)


def test_every_type_is_in_the_table():
    assert set(LAYOUTS) == set(WeightType)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 48, 65])
@pytest.mark.parametrize(
    ("type", "k"), [(type, k) for type in TYPES for k in WIDTHS[type.block[0]]]
)
def test_unpack_equals_gguf(type, k, n):
    for blocks in (matrix(type, n, k), noise(type, n, k)):
        weight = packed(type, n, k, blocks)
        assert weight.data.size == r16k4.packed_nbytes(type, n, k)
        assert weight.data.ctypes.data % 64 == 0
        expected = as_gguf(type, n, k, blocks)
        assert r16k4.unpack(weight).tobytes() == expected.tobytes()
        rows = np.random.default_rng(2).integers(0, n, 7)
        assert r16k4.unpack_rows(weight, rows).tobytes() == expected[rows].tobytes()


@pytest.mark.parametrize("type", TYPES)
def test_terms_are_the_values(type):
    n, k = 19, max(96, type.block[0])
    weight = packed(type, n, k, matrix(type, n, k))
    terms = r16k4.unpack_terms(weight)
    assert terms.values().reshape(n, -1).tobytes() == r16k4.unpack(weight).tobytes()


@pytest.mark.parametrize("type", QUANTISED)
def test_bytes_are_where_the_design_says(type):
    """Each weight of a panel, read from the bytes that section 2 names for it alone."""
    k = max(96, 2 * type.block[0])
    panel = r16k4.pack(type, 16, k, matrix(type, 16, k))
    expected = as_gguf(type, 16, k, matrix(type, 16, k))
    rng = np.random.default_rng(3)
    for row, column in [*rng.integers((16, k), size=(600, 2)), (0, 0), (15, k - 1)]:
        assert weight_at(type, panel, row, column) == expected[row, column], (row, column)


@pytest.mark.parametrize("type", TYPES)
def test_whole_tiles_have_the_bytes_of_gguf(type):
    elements, nbytes = type.block
    k = 512 if elements > 1 else 2
    assert r16k4.panel_nbytes(type, k) == 16 * (k // elements) * nbytes
    assert LAYOUTS[type].block.itemsize * type.block[0] == nbytes * LAYOUTS[type].elements


@pytest.mark.parametrize("type", TYPES)
def test_slabs_do_not_change_bytes(type, monkeypatch):
    k = 160 if type.block[0] < 256 else 512
    blocks = matrix(type, 100, k)
    whole = r16k4.pack(type, 100, k, blocks)
    monkeypatch.setattr(r16k4, "_SLAB_BYTES", 1)
    weight = packed(type, 100, k, blocks)
    assert weight.data.tobytes() == whole.tobytes()
    by_panel = r16k4.unpack(weight)
    monkeypatch.undo()
    assert by_panel.tobytes() == r16k4.unpack(weight).tobytes()


@pytest.mark.parametrize("type", TYPES)
def test_absent_rows_and_blocks_are_zero_bytes(type):
    """Packing over other bytes or none gives the same, and what is not in the matrix is zero."""
    k = 96 if type.block[0] < 256 else 512
    blocks = noise(type, 19, k) | 1
    unit = r16k4.pack(type, 19, k, blocks).view(LAYOUTS[type].unit).reshape(2, -1)
    fields = [unit[name] for name in unit.dtype.names]
    fields = [f[inner] for f in fields for inner in (f.dtype.names or [Ellipsis])]
    for field in fields:
        there = field.view(f"u{field.dtype.itemsize}")
        assert there[1, ..., :3].any() and not there[1, ..., 3:].any()
        if type.block[0] == 32:  # three blocks, so the last tile has one
            assert there[0, 1, 0].any() and not there[0, 1, 1].any()


def test_last_pair_of_an_odd_bf16_row_is_half_zero():
    blocks = matrix(WeightType.BF16, 16, 5)
    pairs = r16k4.pack(WeightType.BF16, 16, 5, blocks).view("<u2").reshape(3, 16, 2)
    assert pairs[2, :, 0].tobytes() == blocks.view("<u2").reshape(16, 5)[:, 4].tobytes()
    assert not pairs[2, :, 1].any()


@pytest.mark.parametrize(
    ("type", "n", "k", "size", "message"),
    [
        (WeightType.Q4_0, 4, 48, 108, "multiple of 32"),
        (WeightType.Q4_0, 4, 64, 143, "takes 144 bytes"),
        (WeightType.F32, 0, 64, 0, "N > 0"),
        (WeightType.F32, 4, 0, 0, "K > 0"),
        (WeightType.Q4_K, 4, 288, 648, "multiple of 256"),
    ],
)
def test_refusals(type, n, k, size, message):
    with pytest.raises(ValueError, match=message):
        r16k4.pack(type, n, k, np.zeros(size, np.uint8))


def test_unpack_refusals():
    weight = packed(WeightType.F32, 4, 8, matrix(WeightType.F32, 4, 8))
    with pytest.raises(IndexError, match="4 rows"):
        r16k4.unpack_rows(weight, np.array([4]))
    for read in (r16k4.unpack, r16k4.unpack_terms):
        with pytest.raises(ValueError, match="packs into"):
            read(Weight("w", WeightType.F32, (4, 9), weight.data))


def test_memory_is_the_result_and_a_slab():
    import tracemalloc

    n, k = 4096, 2048
    blocks = noise(WeightType.Q6_K, n, k)
    tracemalloc.start()
    try:
        r16k4.pack(WeightType.Q6_K, n, k, blocks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < blocks.size + (6 << 20)  # a slab of 1 MiB and its fields, some of them twice
