"""A folder of KV pages: what comes back is what was kept, or nothing and a warning."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cpuinfer.formats.kv_folder import SUFFIX, PageFolder, PageKey, name_of

ROOT = b"f" * 32
IMAGE = 96
N = 4


def folder(path: Path, fingerprint: bytes = ROOT, pages: int = 100) -> PageFolder:
    size = PageFolder(path, fingerprint, N, IMAGE, 1).file_bytes
    return PageFolder(path, fingerprint, N, IMAGE, pages * size)


def chain(*pages: int, root: bytes = ROOT) -> list[PageKey]:
    """The keys of a text of N equal tokens for each number."""
    keys: list[PageKey] = []
    for number in pages:
        keys.append((root, (number,) * N))
        root = name_of(keys[-1])
    return keys


def image(key: PageKey) -> np.ndarray:
    return np.frombuffer(name_of(key) * (IMAGE // 32), np.uint8)


def save(to: PageFolder, keys: Sequence[PageKey]) -> int:
    return to.save(keys, lambda chosen: np.stack([image(keys[i]) for i in chosen]))


def read(made: PageFolder, keys: Sequence[PageKey]) -> int:
    """How many come back, each with its own bytes; nothing may be said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = made.read(keys)
    assert all((got == image(key)).all() for got, key in zip(images, keys, strict=False))
    return len(images)


def file_of(path: Path, key: PageKey) -> Path:
    return path / f"{name_of(key).hex()}{SUFFIX}"


def test_pages_come_back_in_another_folder_object(tmp_path: Path) -> None:
    keys = chain(1, 2, 3)
    first = folder(tmp_path / "new" / "store")
    assert save(first, keys) == 3 and save(first, keys) == 0
    second = folder(tmp_path / "new" / "store")
    assert len(second) == 3 and all(name_of(key) in second for key in keys)
    assert read(second, keys) == 3
    assert name_of(chain(2)[0]) not in second
    assert {p.suffix for p in (tmp_path / "new" / "store").iterdir()} == {"", SUFFIX}


def test_every_truncation_and_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    (key,) = chain(7)
    save(folder(tmp_path), [key])
    path = file_of(tmp_path, key)
    raw = path.read_bytes()
    damaged = [raw[:n] for n in range(len(raw))] + [raw + b"x", b"\0" * len(raw)]
    for at in range(len(raw)):
        bits = bytearray(raw)
        bits[at] ^= 1 << at % 8
        damaged.append(bytes(bits))
    for wrong in damaged:
        path.write_bytes(wrong)
        made = folder(tmp_path)
        with pytest.warns(UserWarning, match=f"{path.name}: .*It is not used"):
            assert len(made.read([key])) == 0
        assert name_of(key) not in made, "asked for once"
        assert path.read_bytes() == wrong, "the file stays"
    assert save(made, [key]) == 1, "and is written anew"
    assert read(folder(tmp_path), [key]) == 1


def test_an_absurd_size_allocates_nothing(tmp_path: Path) -> None:
    keys = chain(1, 2)
    save(folder(tmp_path), keys)
    path = file_of(tmp_path, keys[1])
    os.truncate(path, 1 << 40)
    made = folder(tmp_path)
    with pytest.warns(UserWarning, match="got 1099511627776 bytes"):
        assert len(made.read(keys)) == 1
    with pytest.warns(UserWarning, match="more than the whole store may have.*It is removed"):
        folder(tmp_path).save([], lambda chosen: np.empty(0, np.uint8))
    assert not path.exists() and read(folder(tmp_path), keys[:1]) == 1


def test_a_page_under_another_name_is_refused(tmp_path: Path) -> None:
    other = b"o" * 32
    save(folder(tmp_path), chain(1, 2))
    (mine,) = chain(1)
    (theirs,) = chain(1, root=other)
    file_of(tmp_path, theirs).write_bytes(file_of(tmp_path, mine).read_bytes())
    with pytest.warns(UserWarning, match="another fingerprint"):
        assert len(folder(tmp_path, other).read([theirs])) == 0
    (elsewhere,) = chain(2)
    file_of(tmp_path, elsewhere).write_bytes(file_of(tmp_path, mine).read_bytes())
    with pytest.warns(UserWarning, match="another tokens"):
        assert len(folder(tmp_path).read([elsewhere])) == 0
    second = chain(1, 2)[1]
    file_of(tmp_path, elsewhere).write_bytes(file_of(tmp_path, second).read_bytes())
    with pytest.warns(UserWarning, match="another parent"):
        assert len(folder(tmp_path).read([elsewhere])) == 0


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    link, pipe, directory = chain(1, 1, 1)
    target = tmp_path / "target"
    target.write_bytes(b"x")
    file_of(tmp_path, link).symlink_to(target)
    os.mkfifo(file_of(tmp_path, pipe))
    file_of(tmp_path, directory).mkdir()
    made = folder(tmp_path)
    for key in (link, pipe, directory):
        with pytest.warns(UserWarning, match="prefix store"):
            assert len(made.read([key])) == 0


def test_a_page_that_went_meanwhile_is_no_fault(tmp_path: Path) -> None:
    keys = chain(1, 2)
    save(folder(tmp_path), keys)
    made = folder(tmp_path)
    file_of(tmp_path, keys[1]).unlink()
    assert read(made, keys) == 1
    assert name_of(keys[1]) not in made


def test_the_longest_unused_make_room_and_no_page_goes_before_what_continues_it(
    tmp_path: Path,
) -> None:
    made = folder(tmp_path, pages=4)
    old, new = chain(1, 2, 3), chain(4, 5)
    assert save(made, old) == 3
    assert save(made, new) == 2
    assert [name_of(key) in made for key in (*old, *new)] == [True, True, False, True, True]
    made.touch(old[:2])
    assert save(made, chain(6)) == 1
    assert [name_of(key) in made for key in (*old, *new)] == [True, True, False, True, False]
    assert sum(p.stat().st_size for p in tmp_path.glob(f"*{SUFFIX}")) == 4 * made.file_bytes
    assert save(made, chain(*range(10, 20))) == 4
    assert read(made, chain(*range(10, 20))[:4]) == 4


def test_only_own_files_are_touched(tmp_path: Path) -> None:
    foreign = tmp_path / f"{'A' * 64}{SUFFIX}"
    stale = tmp_path / f".{'a' * 64}{SUFFIX}.0123.tmp"
    for path in (foreign, stale):
        path.write_bytes(b"x" * 10_000)
    assert save(folder(tmp_path, pages=1), chain(1)) == 1
    assert foreign.exists() and not stale.exists()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="is no folder"):
        folder(tmp_path / "file")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(ValueError, match="everybody may write"):
        folder(open_to_all)


def work(path: Path, number: int) -> None:
    made = folder(path, pages=12)
    for turn in range(20):
        keys = chain(number % 2, turn, number)
        save(made, keys)
        assert read(folder(path, pages=12), keys[:1]) <= 1


def test_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(tmp_path, i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    files = list(tmp_path.glob(f"*{SUFFIX}"))
    assert 0 < len(files) <= 12
    assert not list(tmp_path.glob("*.tmp"))
    made = folder(tmp_path)
    for turn in range(20):
        for number in range(4):
            read(made, chain(number % 2, turn, number))
