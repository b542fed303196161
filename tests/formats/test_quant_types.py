"""Dequantisation: against arithmetic by hand, the `gguf` library, and ggml itself."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
from random_weights import random_blocks

from cpuinfer.formats import dequantize, open_gguf, quant_types
from cpuinfer.formats.quant_types import dequantize_bytes
from cpuinfer.graph.dtypes import WeightType

ALL_TYPES = list(WeightType)
_HALF = np.float16(0.5).tobytes()
_ONE = np.float16(1.0).tobytes()


def test_by_hand() -> None:
    codes = np.arange(32) % 16
    nibbles = (codes[:16] | codes[16:] << 4).astype(np.uint8).tobytes()

    def values(kind: WeightType, block: bytes) -> list[float]:
        return dequantize_bytes(np.frombuffer(block, np.uint8), kind).tolist()

    assert values(WeightType.Q4_0, _HALF + nibbles) == ((codes - 8) * 0.5).tolist()
    assert values(WeightType.Q4_1, _HALF + _ONE + nibbles) == (codes * 0.5 + 1).tolist()
    signed = np.arange(-16, 16, dtype=np.int8)
    assert values(WeightType.Q8_0, _HALF + signed.tobytes()) == (signed * 0.5).tolist()
    assert values(WeightType.F16, _HALF + _ONE) == [0.5, 1.0]
    assert values(WeightType.BF16, b"\x80\x3f\x00\xc0") == [1.0, -2.0]


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda t: t.name)
def test_slabs_change_nothing(write_gguf, monkeypatch, kind: WeightType) -> None:
    data = random_blocks(kind, 67 * 512, 3)
    tensor = open_gguf(write_gguf([("w", kind, (67, 512), data)])).tensors["w"]
    whole = dequantize(tensor)
    assert (whole.shape, whole.dtype) == ((67, 512), np.float32)
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(whole.reshape(-1), expected)
    monkeypatch.setattr(quant_types, "_SLAB_ELEMENTS", 1)  # slabs of 16 rows
    assert len(list(quant_types.row_slabs(tensor))) == 5
    np.testing.assert_array_equal(dequantize(tensor), whole)


class _TypeTraits(ctypes.Structure):
    """ggml.h, struct ggml_type_traits."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("block_elements", ctypes.c_int64),
        ("block_elements_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    ]


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llama-cpp-python is not installed")
    libraries = list((Path(spec.submodule_search_locations[0]) / "lib").glob("libggml-base.so"))
    if not libraries:
        pytest.skip("llama-cpp-python has no libggml-base.so")
    library = ctypes.CDLL(str(libraries[0]))
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    return library


@pytest.mark.peer
@pytest.mark.parametrize(
    "kind", [t for t in ALL_TYPES if t is not WeightType.F32], ids=lambda t: t.name
)
def test_bits_equal_ggml(ggml: ctypes.CDLL, kind: WeightType) -> None:
    """Every bit pattern of the 16-bit types; random blocks, NaN and infinite scales too, of the
    others.
    """
    traits = ggml.ggml_get_type_traits(int(kind)).contents
    assert (traits.block_elements, traits.block_bytes) == kind.block
    elements, size = kind.block
    if elements == 1:
        data = np.arange(65536, dtype="<u2").view(np.uint8)
    else:
        data = np.random.default_rng(7).integers(0, 256, 4096 * size, np.uint8)
    n = data.size // size * elements
    theirs = np.empty(n, np.float32)
    traits.to_float(data.ctypes.data, theirs.ctypes.data, n)
    ours = dequantize_bytes(data, kind)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    number = ~np.isnan(theirs)
    np.testing.assert_array_equal(ours[number].view(np.uint32), theirs[number].view(np.uint32))
