"""Each field of a GGUF header, wrong in each way: a FormatError that names file and fault."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import (
    ARRAY,
    BOOL,
    STRING,
    U8,
    U32,
    array,
    gguf_file,
    key_value,
    string,
    tensor_info,
)

from cpuinfer.formats import FormatError, open_gguf, open_packed

MAX64 = 2**64 - 1
U64, F16, Q4_0 = 10, 1, 2


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def start(version: int, magic: bytes = b"GGUF", order: str = "<") -> bytes:
    return magic + struct.pack(f"{order}I", version)


def nested(depth: int) -> bytes:
    """The encoded value of arrays in arrays, `depth` of them."""
    return array(U8, 1, b"\1") if depth == 1 else array(ARRAY, 1, nested(depth - 1))


def alignment(value: int, kind: int = U32) -> bytes:
    encoded = u32(value) if kind == U32 else u64(value)
    return key_value(b"general.alignment", kind, encoded)


TWO = (tensor_info(b"a", (64,)), tensor_info(b"b", (64,), offset=256))

BAD: dict[str, tuple[bytes, str]] = {
    "not gguf": (b"PK\3\4" + bytes(60), "starts with b'GGUF'"),
    "three bytes": (b"GGU", "starts with b'GGUF'"),
    "only magic": (b"GGUF", "the version"),
    "version 0": (gguf_file(start=start(0)), "versions 2 and 3.*got 0"),
    "version 1": (gguf_file(start=start(1)), "versions 2 and 3.*got 1"),
    "version 4": (gguf_file(start=start(4)), "versions 2 and 3.*got 4"),
    "big endian": (gguf_file(start=start(3, order=">")), "big-endian"),
    "no counts": (start(3), "the number of tensors"),
    "tensors beyond the file": (gguf_file(counts=(MAX64, 0)), "18446744073709551615 tensors"),
    "one tensor too many": (gguf_file(tensors=TWO[:1], data=b"", counts=(9, 0)), "9 tensors"),
    "keys beyond the file": (gguf_file(counts=(0, MAX64)), "18446744073709551615 key-value pairs"),
    "empty key": (gguf_file((key_value(b"", U8, b"\1"),)), "a key must have 1 to 65535 bytes"),
    "long key": (gguf_file((key_value(b"k" * 65536, U8, b"\1"),)), "a key must have 1 to 65535"),
    "key past the end": (gguf_file((u64(1 << 40) + bytes(20),)), "a key of 1099511627776 bytes"),
    "key length 2^64-1": (gguf_file((u64(MAX64) + bytes(20),)), "a key of 18446744073709551615"),
    "key not UTF-8": (gguf_file((key_value(b"\xff\xfe", U8, b"\1"),)), "a key must be UTF-8"),
    "same key twice": (gguf_file((key_value(b"k", U8, b"\1"),) * 2), "unique; got k"),
    "value type 13": (gguf_file((key_value(b"k", 13, bytes(8)),)), "0 to 12; got 13"),
    "value type 2^32-1": (gguf_file((key_value(b"k", 2**32 - 1, bytes(8)),)), "got 4294967295"),
    "value cut off": (
        gguf_file((key_value(b"kkk", U64, b"abc"),))[:41],
        "key 'kkk'.*can't fit",
    ),
    "bool 2": (gguf_file((key_value(b"k", BOOL, b"\2"),)), "booleans"),
    "bools with 255": (
        gguf_file((key_value(b"k", ARRAY, array(BOOL, 3, b"\0\1\xff")),)),
        "booleans",
    ),
    "string past the end": (gguf_file((key_value(b"k", STRING, u64(999)),)), "of 999 bytes"),
    "string not UTF-8": (gguf_file((key_value(b"k", STRING, string(b"\xc3")),)), "must be UTF-8"),
    "array of type 99": (gguf_file((key_value(b"k", ARRAY, array(99, 1, b"\1")),)), "got 99"),
    "array beyond the file": (
        gguf_file((key_value(b"k", ARRAY, array(U64, 1 << 61, bytes(8))),)),
        "2305843009213693952 elements of key 'k'",
    ),
    "array of 2^64-1 bytes": (
        gguf_file((key_value(b"k", ARRAY, array(U8, MAX64, bytes(8))),)),
        "18446744073709551615 elements",
    ),
    "strings beyond the file": (
        gguf_file((key_value(b"k", ARRAY, array(STRING, 1 << 60, string(b"a"))),)),
        "1152921504606846976 elements",
    ),
    "a string in an array past the end": (
        gguf_file((key_value(b"k", ARRAY, array(STRING, 2, string(b"a") + u64(MAX64))),)),
        "string 1 of key 'k' passes the end",
    ),
    "a string in an array not UTF-8": (
        gguf_file((key_value(b"k", ARRAY, array(STRING, 2, string(b"a") + string(b"\x80"))),)),
        "string 1 of key 'k' must be UTF-8",
    ),
    "arrays in arrays": (gguf_file((key_value(b"k", ARRAY, nested(5)),)), "deeper than 4"),
    "arrays in arrays, endless": (gguf_file((key_value(b"k", ARRAY, nested(900)),)), "deeper"),
    "alignment 0": (gguf_file((alignment(0),)), "power of two; got UINT32 0"),
    "alignment 48": (gguf_file((alignment(48),)), "power of two; got UINT32 48"),
    "alignment of another type": (gguf_file((alignment(32, U64),)), "UINT32.*got UINT64 32"),
    "alignment larger than the file": (gguf_file((alignment(1 << 31),), TWO), "past the end"),
    "split": (gguf_file((key_value(b"split.count", 2, b"\3\0"),)), "split.*--merge"),
    "split of no number": (
        gguf_file((key_value(b"split.count", STRING, string(b"x")),)),
        "split.count",
    ),
    "empty tensor name": (gguf_file(tensors=(tensor_info(b""),)), "a tensor name must have"),
    "tensor name not UTF-8": (gguf_file(tensors=(tensor_info(b"\xff"),)), "name must be UTF-8"),
    "tensor name past the end": (
        gguf_file(tensors=(u64(1 << 50) + bytes(40),)),
        "a tensor name of 1125899906842624 bytes",
    ),
    "same tensor twice": (gguf_file(tensors=(TWO[0], TWO[0])), "names must be unique; got a"),
    "no dimensions": (gguf_file(tensors=(tensor_info(dims=()),)), "1 to 4 dimensions; got 0"),
    "five dimensions": (gguf_file(tensors=(tensor_info(dims=(1,) * 5),)), "1 to 4 dim.*got 5"),
    "2^32-1 dimensions": (
        gguf_file(tensors=(string(b"w") + u32(2**32 - 1) + bytes(40),)),
        "1 to 4 dimensions; got 4294967295",
    ),
    "dimension 0": (gguf_file(tensors=(tensor_info(dims=(64, 0)),)), r"elements; got \[64, 0\]"),
    "product 2^64": (gguf_file(tensors=(tensor_info(dims=(1 << 32, 1 << 32)),)), "2.63 - 1"),
    "product 0 mod 2^64": (gguf_file(tensors=(tensor_info(dims=(1 << 62, 4, 1)),)), "2.63 - 1"),
    "bytes 0 mod 2^64": (gguf_file(tensors=(tensor_info(dims=(1 << 62,)),)), "past the end"),
    "larger than the file": (gguf_file(tensors=(tensor_info(dims=(65,)),)), "past the end"),
    "type 4": (gguf_file(tensors=(tensor_info(kind=4),)), "does not read; got type number 4"),
    "type TQ1_0": (gguf_file(tensors=(tensor_info(kind=34),)), "TQ1_0"),
    "type 2^32-1": (gguf_file(tensors=(tensor_info(kind=2**32 - 1),)), "number 4294967295"),
    "rows of broken blocks": (
        gguf_file(tensors=(tensor_info(dims=(48, 2), kind=Q4_0),)),
        "Q4_0.*multiples of 32",
    ),
    "offset not aligned": (gguf_file(tensors=(tensor_info(dims=(4,), offset=4),)), "offset 4"),
    "offset outside": (gguf_file(tensors=(tensor_info(offset=1 << 40),)), "past the end"),
    "offset 2^64-32": (gguf_file(tensors=(tensor_info(offset=2**64 - 32),)), "past the end"),
    "overlap": (
        gguf_file(tensors=(TWO[0], tensor_info(b"b", (32,), offset=128))),
        "'a' and 'b' must not overlap",
    ),
    "same place": (
        gguf_file(tensors=(TWO[0], tensor_info(b"b", (64,), kind=F16))),
        "must not overlap",
    ),
    "no data": (gguf_file(tensors=TWO, data=b""), "past the end"),
    "last byte missing": (gguf_file(tensors=TWO, data=bytes(511)), "past the end"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_field(name: str, tmp_path: Path) -> None:
    raw, message = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=message) as caught:
        open_gguf(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "; got " in text
    assert text.isprintable()
    assert len(text) < 500 + len(str(path))


def test_good_neighbours(tmp_path: Path) -> None:
    """What stands nearest to the bad files and is sound, so that the checks refuse no more than
    they must.
    """
    empty = key_value(b"none", ARRAY, array(STRING, 0, b""))
    numbers = key_value(b"zero", ARRAY, array(U64, 0, b""))
    deep = key_value(b"deep", ARRAY, nested(4))
    split = key_value(b"split.count", 2, b"\1\0")
    long_key = key_value(b"k" * 65535, BOOL, b"\1")
    path = tmp_path / "good.gguf"
    path.write_bytes(
        gguf_file((empty, numbers, deep, split, long_key, alignment(64)), TWO, bytes(544))
    )
    model = open_gguf(path)
    assert model.metadata["none"] == []
    assert len(model.metadata["zero"]) == 0
    assert model.metadata["deep"][0][0][0].tolist() == [1]
    assert model.metadata["k" * 65535] is True
    assert {n: t.data.size for n, t in model.tensors.items()} == {"a": 256, "b": 256}
    path.write_bytes(gguf_file())
    assert open_gguf(path).tensors == {}
    path.write_bytes(gguf_file((alignment(1 << 31),)))  # no tensors: nothing to align
    assert open_gguf(path).tensors == {}


# The packed file's own keys. A Q4_0 matrix [16, 64] packs into one tile of 576 bytes.
SHA = string(b"0" * 64)


def numbers(key: str, kind: int, values: list[int]) -> bytes:
    elements = struct.pack(f"<{len(values)}{'I' if kind == U32 else 'Q'}", *values)
    return key_value(f"cpuinfer.pack.{key}".encode(), ARRAY, array(kind, len(values), elements))


def packed_file(
    alignment_key: bytes = alignment(64),
    version: bytes = key_value(b"cpuinfer.pack.version", U32, u32(2)),
    sha256: bytes = key_value(b"cpuinfer.pack.source_sha256", STRING, SHA),
    source_types: bytes = numbers("source_types", U32, [Q4_0]),
    types: bytes = numbers("types", U32, [Q4_0]),
    rows: bytes = numbers("rows", U64, [16]),
    columns: bytes = numbers("columns", U64, [64]),
    tensor: bytes = tensor_info(dims=(576,), kind=24),
) -> bytes:
    keys = (alignment_key, version, sha256, source_types, types, rows, columns)
    raw = gguf_file(tuple(k for k in keys if k), (tensor,), b"")
    return raw + bytes(-len(raw) % 64) + bytes(576)


BAD_PACKED: dict[str, tuple[bytes, str]] = {
    "alignment 32": (packed_file(alignment_key=b""), "multiple of 64; got 32"),
    "no version": (packed_file(version=b""), "version 2 are read; got None"),
    "version 1": (
        packed_file(version=key_value(b"cpuinfer.pack.version", U32, u32(1))),
        "version 2 are read; got 1",
    ),
    "version of another kind": (
        packed_file(version=key_value(b"cpuinfer.pack.version", STRING, string(b"2"))),
        "version 2 are read",
    ),
    "no hash": (packed_file(sha256=b""), "64 hex digits"),
    "hash that is a path": (
        packed_file(sha256=key_value(b"cpuinfer.pack.source_sha256", STRING, string(b"../" * 21))),
        "64 hex digits",
    ),
    "no types": (packed_file(types=b""), "pack.types must be an array of 1 unsigned"),
    "two types": (packed_file(types=numbers("types", U32, [2, 2])), "array of 1 unsigned"),
    "types that are text": (
        packed_file(types=key_value(b"cpuinfer.pack.types", ARRAY, array(STRING, 1, string(b"2")))),
        "array of 1 unsigned",
    ),
    "negative rows": (
        packed_file(rows=key_value(b"cpuinfer.pack.rows", ARRAY, array(11, 1, u64(MAX64)))),
        "rows must be an array of 1 unsigned.*got int64",
    ),
    "type 77": (packed_file(types=numbers("types", U32, [77])), r"got \(2, 77\)"),
    "columns of broken blocks of 256": (
        packed_file(
            source_types=numbers("source_types", U32, [14]), types=numbers("types", U32, [14])
        ),
        "columns.*must be a multiple of 256; got 64",
    ),
    "panels of another type": (
        packed_file(
            source_types=numbers("source_types", U32, [14]),
            types=numbers("types", U32, [14]),
            columns=numbers("columns", U64, [256]),
        ),
        r"must be I8 \(3360,\) inside",
    ),
    "expanded for no reason": (
        packed_file(types=numbers("types", U32, [0])),
        "Q4_0 can't be packed so; got F32",
    ),
    "another type than the source's": (
        packed_file(types=numbers("types", U32, [8])),
        "Q4_0 can't be packed so; got Q8_0",
    ),
    "no rows": (packed_file(rows=numbers("rows", U64, [0])), r"rows and columns; got \(0, 64\)"),
    "rows beyond int32": (packed_file(rows=numbers("rows", U64, [1 << 31])), "2147483647 rows"),
    "rows 2^64-1": (packed_file(rows=numbers("rows", U64, [MAX64])), "2147483647 rows"),
    "more rows than bytes": (packed_file(rows=numbers("rows", U64, [17])), r"I8 \(1152,\)"),
    "columns beyond int32": (packed_file(columns=numbers("columns", U64, [1 << 40])), "columns"),
    "columns of broken blocks": (packed_file(columns=numbers("columns", U64, [48])), "of 32"),
    "more columns than bytes": (packed_file(columns=numbers("columns", U64, [65536])), r"I8 \("),
    "a quantised vector": (packed_file(columns=numbers("columns", U64, [0])), "can't be packed so"),
    "container too short": (packed_file(tensor=tensor_info(dims=(575,), kind=24)), "got I8"),
    "container of two dimensions": (
        packed_file(tensor=tensor_info(dims=(64, 9), kind=24)),
        r"got I8 \(9, 64\)",
    ),
    "container of floats": (packed_file(tensor=tensor_info(dims=(576,), kind=0)), "got F32"),
    "not aligned": (packed_file(tensor=tensor_info(dims=(576,), kind=24, offset=32)), "offset 32"),
    "outside": (packed_file(tensor=tensor_info(dims=(576,), kind=24, offset=64)), "past the end"),
}


@pytest.mark.parametrize("name", BAD_PACKED)
def test_bad_packed_field(name: str, tmp_path: Path) -> None:
    raw, message = BAD_PACKED[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=message) as caught:
        open_packed(path)
    assert re.match(f"{re.escape(str(path))}: .*; got ", str(caught.value))


def test_good_packed_file(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(packed_file())
    model = open_packed(path)
    assert model.weights["w"].shape == (16, 64)
    np.testing.assert_array_equal(model.weights["w"].data, np.zeros(576, np.uint8))
