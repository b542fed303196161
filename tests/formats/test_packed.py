"""Packing keeps every value, all metadata, and either the whole target or none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from random_weights import random_blocks

from cpuinfer.formats import FormatError, dequantize, open_gguf, open_packed, pack, replacing
from cpuinfer.graph import dtypes, r16k4
from cpuinfer.graph.dtypes import WeightType

ALL_TYPES = list(WeightType)
F32 = WeightType.F32


def some_model(write_gguf, **metadata: object) -> Path:
    tensors = [
        ("token_embd.weight", WeightType.Q8_0, (33, 96)),
        ("blk.0.attn_q.weight", WeightType.Q4_1, (17, 64)),
        ("blk.0.attn_norm.weight", F32, (96,)),
        ("blk.0.ffn_up.weight", WeightType.Q6_K, (16, 256)),
    ]
    return write_gguf(
        ((n, t, s, random_blocks(t, int(np.prod(s)), i)) for i, (n, t, s) in enumerate(tensors)),
        **metadata,
    )


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [1, 16, 50])
def test_every_type_keeps_its_values(
    write_gguf, tmp_path: Path, monkeypatch, kind, rows: int
) -> None:
    monkeypatch.setattr("cpuinfer.formats.quant_types._SLAB_ELEMENTS", 1)  # many slabs
    columns = 3 * kind.block[0] if kind.block[0] > 1 else 37
    tensors = {"matrix": (rows, columns), "vector": (columns,)}
    source = write_gguf(
        (name, kind, shape, random_blocks(kind, int(np.prod(shape)), rows))
        for name, shape in tensors.items()
    )
    model = pack(source, tmp_path / "packed.gguf")
    original = open_gguf(source).tensors
    assert {n: w.shape for n, w in model.weights.items()} == tensors
    assert model.weight_types == {"matrix": kind, "vector": F32}
    assert not model.expanded
    for name, weight in model.weights.items():
        assert weight.data.ctypes.data % 64 == 0
        assert not weight.data.flags.writeable
        np.testing.assert_array_equal(r16k4.unpack(weight), dequantize(original[name]))


def test_slabs_pack_like_the_whole(write_gguf, tmp_path: Path, monkeypatch) -> None:
    source = some_model(write_gguf)
    whole = pack(source, tmp_path / "whole.gguf")
    monkeypatch.setattr("cpuinfer.formats.quant_types._SLAB_ELEMENTS", 1)
    slabs = pack(source, tmp_path / "slabs.gguf")
    assert Path(whole.path).read_bytes() == Path(slabs.path).read_bytes()


def test_metadata_travels_along_and_gguf_reads_it(write_gguf, tmp_path: Path) -> None:
    source = some_model(write_gguf, an__int=-3, a__float=0.1, a__flag=True)
    model = pack(source, tmp_path / "packed.gguf")
    theirs = gguf.GGUFReader(source)
    packed = gguf.GGUFReader(tmp_path / "packed.gguf")
    for key, field in theirs.fields.items():
        if key not in ("GGUF.kv_count", "general.alignment"):
            assert packed.fields[key].types == field.types
            assert packed.fields[key].contents() == field.contents()
            if not key.startswith("GGUF."):
                assert key in model.metadata
    assert packed.fields["general.alignment"].contents() == 64
    assert [t.name for t in packed.tensors] == list(model.weights)
    for tensor in packed.tensors:
        assert tensor.data.tobytes() == model.weights[tensor.name].data.tobytes()


def test_packing_is_deterministic_and_reports_progress(write_gguf, tmp_path: Path) -> None:
    source = some_model(write_gguf)
    steps: list[tuple[int, int]] = []
    model = pack(source, tmp_path / "a.gguf", lambda done, total: steps.append((done, total)))
    pack(source, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert [total for _, total in steps] == [model.nbytes] * 4
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1][0] == model.nbytes == (tmp_path / "a.gguf").stat().st_size


def test_what_cannot_be_packed(write_gguf, tmp_path: Path) -> None:
    experts = write_gguf(
        [("ffn_up_exps", F32, (2, 3, 4), random_blocks(F32, 24, 0))], name="3d.gguf"
    )
    with pytest.raises(FormatError, match=r"ffn_up_exps.*matrix or a vector.*\(2, 3, 4\)"):
        pack(experts, tmp_path / "out.gguf")
    with pytest.raises(FormatError, match="without tensors"):
        pack(write_gguf(name="vocabulary.gguf"), tmp_path / "out.gguf")
    source = some_model(write_gguf)
    with pytest.raises(ValueError, match="replace its source"):
        pack(source, source)
    packed = pack(source, tmp_path / "packed.gguf")
    with pytest.raises(FormatError, match="packed file"):
        pack(packed.path, tmp_path / "again.gguf")
    with pytest.raises(FormatError, match="version 2"):
        open_packed(source)
    assert {p.name for p in tmp_path.iterdir()} == {
        "3d.gguf", "vocabulary.gguf", "model.gguf", "packed.gguf"
    }  # fmt: skip


def test_failure_leaves_the_target_as_it_was(write_gguf, tmp_path: Path, monkeypatch) -> None:
    source = some_model(write_gguf)
    target = tmp_path / "packed.gguf"
    target.write_text("precious")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, target, interrupt)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="no room for a file"),
    ):
        patch.setattr(replacing.os, "fsync", full)
        pack(source, target)
    assert target.read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"model.gguf", "packed.gguf"}


def test_no_room(write_gguf, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk; the kernel enforces both at the same
    places.
    """
    source = some_model(write_gguf)
    program = (
        "import resource, sys; from cpuinfer.formats import pack\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: pack(sys.argv[1], sys.argv[2])\n"
        "except OSError as error: print(error)\n"
    )
    target = tmp_path / "packed.gguf"
    command = [sys.executable, "-c", program, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "no room for a file of" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_memory_is_a_slab_and_not_the_model(write_gguf, tmp_path: Path, monkeypatch) -> None:
    """Sixteen tensors of 210 KiB, slabs of 13 KiB: the writer may hold a slab's temporaries, and no tensor."""
    monkeypatch.setattr("cpuinfer.formats.quant_types._SLAB_ELEMENTS", 1 << 14)
    q6, shape = WeightType.Q6_K, (256, 1024)
    source = write_gguf((f"w{i}", q6, shape, random_blocks(q6, 256 * 1024, i)) for i in range(16))
    pack(source, tmp_path / "first.gguf")  # imports
    tracemalloc.start()
    try:
        model = pack(source, tmp_path / "packed.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model.nbytes > 16 * (210 << 10)
    assert peak < 190 << 10


def test_file_mode_follows_the_umask(write_gguf, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        pack(some_model(write_gguf), tmp_path / "packed.gguf")
    finally:
        os.umask(before)
    assert (tmp_path / "packed.gguf").stat().st_mode & 0o777 == 0o640


def test_types_without_a_kernel_are_expanded_and_named(
    write_gguf, tmp_path: Path, monkeypatch
) -> None:
    """No type of the loader's list is left without one, so one is taken from the table."""
    monkeypatch.delitem(dtypes._ACTIVATIONS, WeightType.Q6_K)
    source = some_model(write_gguf)
    model = pack(source, tmp_path / "packed.gguf")
    assert model.expanded == {"blk.0.ffn_up.weight": WeightType.Q6_K}
    weight = model.weights["blk.0.ffn_up.weight"]
    assert weight.type is F32
    original = open_gguf(source).tensors[weight.name]
    np.testing.assert_array_equal(r16k4.unpack(weight), dequantize(original))
    monkeypatch.undo()
    with pytest.raises(FormatError, match="can't be packed so"):
        open_packed(tmp_path / "packed.gguf")


def test_a_packed_file_of_the_first_version_is_refused(write_gguf, tmp_path: Path) -> None:
    path = tmp_path / "packed.gguf"
    pack(some_model(write_gguf), path)
    raw = path.read_bytes()
    at = raw.index(b"cpuinfer.pack.version") + len("cpuinfer.pack.version") + 4
    path.write_bytes(raw[:at] + b"\x01" + raw[at + 1 :])
    with pytest.raises(FormatError, match=r"version 2 are read; got 1\. Pack it again"):
        open_packed(path)
