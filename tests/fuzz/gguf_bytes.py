"""GGUF files as bytes: written field by field, walked field by field, and spoiled."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the numeric value types, by their number in the file."""
STRING, ARRAY, U8, U32, BOOL = 8, 9, 0, 4, 7

# Types of every kind; a row of each is one or two blocks.
_TENSORS = {
    "token_embd.weight": ("Q8_0", (20, 64)),
    "blk.0.attn_q.weight": ("Q4_1", (16, 64)),
    "blk.0.attn_k.weight": ("Q4_0", (17, 32)),
    "blk.0.attn_v.weight": ("F16", (3, 40)),
    "blk.0.attn_output.weight": ("BF16", (3, 33)),
    "blk.0.ffn_up.weight": ("Q6_K", (2, 256)),
    "blk.0.ffn_gate.weight": ("Q3_K", (2, 256)),
    "blk.0.ffn_down.weight": ("IQ4_XS", (2, 256)),
    "blk.0.attn_norm.weight": ("F32", (64,)),
    "blk.0.ffn_norm.weight": ("F16", (64,)),
}


def write_tiny_model(path: Path) -> None:
    """A small valid model with a vocabulary and a key of every value type."""
    types = gguf.GGUFValueType
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_custom_alignment(32)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(16)), "\u2581the"]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b", "\u00e9 c"])
    for kind in types:
        if kind is not types.ARRAY:
            value = "text" if kind is types.STRING else kind is types.BOOL or 3
            writer.add_key_value(f"one.{kind.name}", value, kind)
            writer.add_key_value(f"many.{kind.name}", [value] * 3, types.ARRAY, sub_type=kind)
    writer.add_key_value("nested", [[1, 2], [3]], types.ARRAY)
    for name, (type_name, shape) in _TENSORS.items():
        kind = gguf.GGMLQuantizationType[type_name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        row = shape[-1] // elements * size
        writer.add_tensor(name, rng.integers(0, 120, (*shape[:-1], row), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def string(text: bytes) -> bytes:
    """A string as it lies in a file."""
    return struct.pack("<Q", len(text)) + text


def key_value(key: bytes, kind: int, value: bytes) -> bytes:
    """A key-value pair; `value` is its encoded value."""
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes) -> bytes:
    """The encoded value of an array."""
    return struct.pack("<IQ", kind, count) + elements


def tensor_info(
    name: bytes = b"w", dims: tuple[int, ...] = (64,), kind: int = 0, offset: int = 0
) -> bytes:
    """A tensor's entry; `dims` as in the file, K first."""
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


def gguf_file(
    key_values: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = bytes(256),
    start: bytes = b"GGUF\3\0\0\0",
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file of these parts; `counts` (tensors, keys) are the true ones unless given."""
    header = start + struct.pack("<QQ", *(counts or (len(tensors), len(key_values))))
    header += b"".join(key_values) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + (data if tensors else b"")


@dataclass(frozen=True)
class Field:
    """A number in the header: where it lies and how many bytes it has."""

    at: int
    size: int


def fields(raw: bytes) -> list[Field]:
    """Every count, length, type, scalar, dimension and offset in the header of a valid file."""
    found: list[Field] = []
    at = 0

    def number(size: int) -> int:
        nonlocal at
        found.append(Field(at, size))
        at += size
        return int.from_bytes(raw[at - size : at], "little")

    def text() -> None:
        nonlocal at
        length = number(8)
        at += length

    def value(kind: int) -> None:
        if kind == STRING:
            text()
        elif kind == ARRAY:
            inner = number(4)
            for _ in range(number(8)):
                value(inner)
        else:
            number(SIZES[kind])

    number(4)
    number(4)
    n_tensors, n_keys = number(8), number(8)
    for _ in range(n_keys):
        text()
        value(number(4))
    for _ in range(n_tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return found


def spoil(raw: bytes, header: list[Field], rng: random.Random) -> bytes:
    """`raw` with one to three faults of random kinds."""
    faults = (_truncate, _flip_bits, _absurd_number, _absurd_number, _swap_numbers, _splice, _zeros)
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(faults)(out, header, rng)
    return bytes(out)


def _truncate(out: bytearray, header: list[Field], rng: random.Random) -> None:
    del out[rng.randrange(len(out) + 1) :]


def _header_byte(out: bytearray, header: list[Field], rng: random.Random) -> int:
    """A place in the file, three times in four in its header."""
    end = header[-1].at + header[-1].size if rng.random() < 0.75 else len(out)
    return rng.randrange(max(1, min(end, len(out))))


def _flip_bits(out: bytearray, header: list[Field], rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 16))):
        if out:
            out[_header_byte(out, header, rng)] ^= 1 << rng.randrange(8)


def _absurd_number(out: bytearray, header: list[Field], rng: random.Random) -> None:
    field = rng.choice(header)
    old = int.from_bytes(out[field.at : field.at + field.size], "little")
    top = 1 << (8 * field.size)
    near = (old + 1, old - 1, old * 2, old // 2, old ^ 0x80, old + 32, 0, 1, len(out))
    limits = (top - 1, top // 2, top // 2 - 1, 1 << 31, (1 << 31) - 1, 1 << 32, top // 4 + 1)
    new = rng.choice((*near, *limits, rng.randrange(top), rng.randrange(64)))
    out[field.at : field.at + field.size] = (new % top).to_bytes(field.size, "little")


def _swap_numbers(out: bytearray, header: list[Field], rng: random.Random) -> None:
    one = rng.choice(header)
    other = rng.choice([field for field in header if field.size == one.size])
    first, second = (bytes(out[f.at : f.at + f.size]) for f in (one, other))
    out[one.at : one.at + one.size] = second
    out[other.at : other.at + other.size] = first


def _splice(out: bytearray, header: list[Field], rng: random.Random) -> None:
    """Delete, repeat or insert a stretch of bytes, so that all that follows is out of step."""
    at, length = _header_byte(out, header, rng), rng.choice((1, 4, 8, 40, rng.randrange(300)))
    kind = rng.randrange(3)
    if kind == 0:
        del out[at : at + length]
    else:
        out[at:at] = out[at : at + length] if kind == 1 else rng.randbytes(length)


def _zeros(out: bytearray, header: list[Field], rng: random.Random) -> None:
    at, length = _header_byte(out, header, rng), rng.randrange(64)
    length = min(length, len(out) - at)
    out[at : at + length] = bytes([rng.choice((0, 0xFF))]) * length
