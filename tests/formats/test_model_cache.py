"""A model is packed once, found again without being read, and packed again when what is cached is
unsound.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from random_weights import random_blocks

from cpuinfer.formats import FormatError, cache, load_model, open_gguf, pack
from cpuinfer.graph.dtypes import WeightType


@pytest.fixture
def model_file(write_gguf) -> Path:
    data = random_blocks(WeightType.Q4_0, 64 * 64, 1)
    return write_gguf([("w", WeightType.Q4_0, (64, 64), data)])


@pytest.fixture
def packings(monkeypatch) -> list[str]:
    """The sources that were packed, in order."""
    done: list[str] = []
    write = cache.write_packed

    def counted(model, *arguments, **options) -> None:
        done.append(model.path)
        write(model, *arguments, **options)

    monkeypatch.setattr(cache, "write_packed", counted)
    return done


def the_packed_file(folder: Path) -> Path:
    (path,) = (folder / "packed").glob("*.gguf")
    return path


def test_second_load_reads_nothing_of_the_source(
    model_file, tmp_path, packings, monkeypatch
) -> None:
    first = load_model(model_file, tmp_path / "cache")
    monkeypatch.delattr(cache, "read_header")  # what any reading of the source starts with
    second = load_model(model_file, tmp_path / "cache")
    assert packings == [str(model_file)]
    assert first.path == second.path == str(the_packed_file(tmp_path / "cache"))
    assert first.weights["w"].data.tobytes() == second.weights["w"].data.tobytes()


def test_same_content_elsewhere_is_not_packed_again(model_file, tmp_path, packings) -> None:
    first = load_model(model_file, tmp_path / "cache")
    copy, link = tmp_path / "copy.gguf", tmp_path / "link.gguf"
    shutil.copy(model_file, copy)
    link.symlink_to(model_file)
    for other in (copy, link):
        assert load_model(other, tmp_path / "cache").path == first.path
    assert packings == [str(model_file)]


def test_a_changed_source_is_packed_again(model_file, tmp_path, packings, write_gguf) -> None:
    before = load_model(model_file, tmp_path / "cache")
    data = random_blocks(WeightType.Q4_0, 64 * 64, 2)
    write_gguf([("w", WeightType.Q4_0, (64, 64), data)])
    after = load_model(model_file, tmp_path / "cache")
    assert len(packings) == 2
    assert before.source_sha256 != after.source_sha256
    assert before.weights["w"].data.tobytes() != after.weights["w"].data.tobytes()


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 64)


def _set_version(path: Path, version: bytes) -> None:
    raw = path.read_bytes()
    at = raw.index(b"cpuinfer.pack.version") + len("cpuinfer.pack.version") + 4
    path.write_bytes(raw[:at] + version + raw[at + 1 :])


def _raise_version(path: Path) -> None:
    _set_version(path, b"\x09")


def _first_version(path: Path) -> None:
    _set_version(path, b"\x01")


def _other_source(path: Path) -> None:
    raw = path.read_bytes()
    at = raw.index(b"cpuinfer.pack.source_sha256") + len("cpuinfer.pack.source_sha256") + 12
    path.write_bytes(raw[:at] + b"0" * 64 + raw[at + 64 :])


def _garbage(path: Path) -> None:
    path.write_bytes(b"garbage")


@pytest.mark.parametrize(
    "damage", [_truncate, _raise_version, _first_version, _other_source, _garbage, os.unlink]
)
def test_an_unsound_entry_is_packed_again(
    model_file, tmp_path, packings, damage: Callable[[Path], None]
) -> None:
    load_model(model_file, tmp_path / "cache")
    sound = the_packed_file(tmp_path / "cache").read_bytes()
    damage(the_packed_file(tmp_path / "cache"))
    load_model(model_file, tmp_path / "cache")
    assert len(packings) == 2
    assert the_packed_file(tmp_path / "cache").read_bytes() == sound


@pytest.mark.parametrize(
    "change",
    [
        lambda note: b"",
        lambda note: b"\xff\xfe",
        lambda note: b"[]",
        lambda note: json.dumps(note | {"sha256": "../" * 21 + "x"}).encode(),
        lambda note: json.dumps(note | {"sha256": 5}).encode(),
        lambda note: json.dumps(note | {"size": 1}).encode(),
        lambda note: json.dumps({}).encode(),
    ],
)
def test_a_damaged_index_costs_a_hash_and_no_packing(
    model_file, tmp_path, packings, change
) -> None:
    load_model(model_file, tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "index").iterdir()
    sound = index.read_bytes()
    index.write_bytes(change(json.loads(sound)))
    load_model(model_file, tmp_path / "cache")
    assert len(packings) == 1
    assert index.read_bytes() == sound


def test_a_packed_file_is_opened_where_it_is(model_file, tmp_path) -> None:
    packed = pack(model_file, tmp_path / "packed.gguf")
    assert load_model(packed.path, tmp_path / "cache").path == packed.path
    assert not (tmp_path / "cache").exists()


def test_a_source_that_changes_meanwhile_is_not_remembered(model_file, tmp_path) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(model_file, ns=(1, 1))

    with pytest.raises(FormatError, match="must not change"):
        load_model(model_file, tmp_path / "cache", touch)
    assert not list((tmp_path / "cache" / "packed").glob("*.gguf"))
    assert not (tmp_path / "cache" / "index").exists()


def test_leftovers_of_a_killed_process_are_removed(model_file, tmp_path) -> None:
    load_model(model_file, tmp_path / "cache")
    path = the_packed_file(tmp_path / "cache")
    left = path.with_name(f".{path.name}.0123.tmp")
    left.write_bytes(b"half")
    path.unlink()
    load_model(model_file, tmp_path / "cache")
    assert not left.exists()


def test_processes_at_once(model_file, tmp_path) -> None:
    """Four processes start together: one packs, none sees a half-written file, nothing is left
    over.
    """
    program = (
        "import sys; from cpuinfer.formats import cache, load_model\n"
        "write = cache.write_packed\n"
        "cache.write_packed = lambda *a: (print('packed'), write(*a))\n"
        "sys.stdin.read()\n"  # all start when the last is ready
        "model = load_model(sys.argv[1], sys.argv[2])\n"
        "print(model.weights['w'].data.tobytes().hex())\n"
    )
    command = [sys.executable, "-c", program, str(model_file), str(tmp_path / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in running:
        process.stdin.close()
    outputs = [process.stdout.read().split() for process in running]
    assert [process.wait() for process in running] == [0] * 4
    for process in running:
        process.stdout.close()
    expected = pack(model_file, tmp_path / "alone.gguf").weights["w"].data.tobytes().hex()
    assert [lines[-1] for lines in outputs] == [expected] * 4
    assert sorted(len(lines) for lines in outputs) == [1, 1, 1, 2]
    assert {p.suffix for p in (tmp_path / "cache" / "packed").iterdir()} == {".gguf", ".lock"}


def test_a_folder_that_cannot_be_written(model_file, tmp_path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(OSError, match="cache"):
        load_model(model_file, tmp_path / "cache")
    assert open_gguf(model_file).tensors
