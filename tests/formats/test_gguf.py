"""What the reader gives equals what the `gguf` library wrote."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from random_weights import random_blocks

from cpuinfer.formats import FormatError, open_gguf, read_metadata
from cpuinfer.graph.dtypes import WeightType

ALL_TYPES = list(WeightType)


def test_every_type_of_metadata(tmp_path: Path) -> None:
    types = gguf.GGUFValueType
    values = {
        types.UINT8: 250,
        types.INT8: -5,
        types.UINT16: 65000,
        types.INT16: -300,
        types.UINT32: 4_000_000_000,
        types.INT32: -70000,
        types.FLOAT32: 0.1,
        types.BOOL: True,
        types.STRING: "x\u00e9\u4e16\0y",
        types.UINT64: 2**64 - 1,
        types.INT64: -(2**63),
        types.FLOAT64: 0.1,
    }
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for kind, value in values.items():
        writer.add_key_value(f"one.{kind.name}", value, kind)
        writer.add_key_value(f"many.{kind.name}", [value] * 3, types.ARRAY, sub_type=kind)
    writer.add_key_value("nested", [[1, 2], [3]], types.ARRAY)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    with open_gguf(tmp_path / "m.gguf") as model:
        got = model.metadata
    assert model.tensors == {}
    assert got["general.architecture"] == "llama"
    for kind, value in values.items():
        expected = float(np.float32(value)) if kind is types.FLOAT32 else value
        assert got[f"one.{kind.name}"] == expected
        assert type(got[f"one.{kind.name}"]) is type(value)
        assert list(got[f"many.{kind.name}"]) == [expected] * 3
    assert [list(inner) for inner in got["nested"]] == [[1, 2], [3]]


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda t: t.name)
def test_tensors_of_every_type(write_gguf, kind: WeightType) -> None:
    shapes = {"a": (5, 512), "b": (256,), "c": (2, 3, 256)}
    data = {
        n: random_blocks(kind, int(np.prod(s)), seed) for seed, (n, s) in enumerate(shapes.items())
    }
    path = write_gguf((n, kind, shapes[n], data[n]) for n in shapes)
    model = open_gguf(path)
    assert list(model.tensors) == list(shapes)
    for name, tensor in model.tensors.items():
        assert (tensor.name, tensor.type, tensor.shape) == (name, kind, shapes[name])
        assert not tensor.data.flags.writeable
        np.testing.assert_array_equal(tensor.data, data[name])
    for theirs in gguf.GGUFReader(path).tensors:
        assert model.tensors[theirs.name].shape == tuple(reversed(theirs.shape.tolist()))
        assert model.tensors[theirs.name].data.tobytes() == theirs.data.tobytes()


def test_data_outlives_close(write_gguf) -> None:
    path = write_gguf([("a", WeightType.F32, (64,), random_blocks(WeightType.F32, 64, 1))])
    with open_gguf(path) as model:
        data = model.tensors["a"].data
    assert model.tensors == {}
    assert data.tobytes() == random_blocks(WeightType.F32, 64, 1).tobytes()


def test_version_2_reads_like_version_3(write_gguf) -> None:
    path = write_gguf([("a", WeightType.F32, (64,), random_blocks(WeightType.F32, 64, 1))])
    raw = bytearray(path.read_bytes())
    raw[4] = 2
    old = path.with_name("v2.gguf")
    old.write_bytes(raw)
    assert open_gguf(old).header.version == 2
    assert open_gguf(old).tensors["a"].data.tobytes() == open_gguf(path).tensors["a"].data.tobytes()


def test_stated_alignment_is_used(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(256)
    for name in "ab":
        writer.add_tensor(name, np.full(3, ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = open_gguf(tmp_path / "m.gguf")
    assert model.header.alignment == 256
    for name, tensor in model.tensors.items():
        assert tensor.data.view("<f4").tolist() == [ord(name)] * 3


def test_big_endian_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(FormatError, match="big-endian"):
        open_gguf(tmp_path / "m.gguf")


def test_unsupported_type_is_named_and_its_metadata_still_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", np.zeros((2, 54), np.uint8), raw_dtype=gguf.GGMLQuantizationType.TQ1_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match="TQ1_0"):
        open_gguf(tmp_path / "m.gguf")
    assert read_metadata(tmp_path / "m.gguf")["general.architecture"] == "llama"


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty"):
        open_gguf(tmp_path / "empty")
    with pytest.raises(FormatError, match="regular file"):
        open_gguf(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "absent")
