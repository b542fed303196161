"""Models by path, packed on first use: a content-addressed cache of packed files.

`packed/<sha256 of the source>.gguf` are the packed files. `index/<sha256 of the source's
path>.json` remembers what a path held (size, modification time, inode and content hash), so a model
is found again without reading it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpuinfer.formats import gguf, packed
from cpuinfer.formats.gguf import PACK_VERSION_KEY, GGUFFile
from cpuinfer.formats.header import FormatError, map_file, read_header
from cpuinfer.formats.packed import PackedModel, open_packed
from cpuinfer.formats.packer import Progress, write_packed
from cpuinfer.formats.replacing import replacing, temporary_prefix
from cpuinfer.machine import system
from cpuinfer.machine.folders import cache_dir as default_cache_dir


def load_model(
    path: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PackedModel:
    """Open a model, packed or plain GGUF, as a mapped packed file; a plain one is packed into the
    cache on first use.

    The cache is `cache_dir`, by default `machine.folders.cache_dir()`. A cached file that is
    truncated, of another version or otherwise unsound is packed again. `progress` is called while
    packing. Raises FormatError for a model that can't be read, OSError where a file can't be read
    or written.
    """
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    real = os.path.realpath(path)
    status = os.stat(real)
    index = folder / "index" / f"{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"
    identity = _identity(real, status)
    if (sha256 := _recall(index, identity)) and (model := _cached(folder, sha256)):
        return model
    mapping = map_file(path)
    header = read_header(path, mapping)
    if PACK_VERSION_KEY in header.metadata:
        return packed.from_header(mapping, header)
    with gguf.from_header(mapping, header) as source:
        sha256 = hashlib.sha256(mapping).hexdigest()
        model = _packed_once(source, sha256, folder, progress)
    if _identity(real, os.stat(real)) != identity:
        Path(model.path).unlink(missing_ok=True)
        raise FormatError(
            path, "a model must not change while it is packed", "another size or time", "Try again."
        )
    _remember(index, identity | {"sha256": sha256})
    return model


def content_sha256(
    path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None
) -> str:
    """SHA-256 of a file, 64 hex digits; computed once and noted in the cache, as long as the file's size, time and inode
    stay. Raises OSError where it can't be read; a cache that can't be written is done without.
    """
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    real = os.path.realpath(path)
    note = folder / "index" / f"content-{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"
    with open(real, "rb") as file:
        identity = _identity(real, os.fstat(file.fileno()))
        if sha256 := _recall(note, identity):
            return sha256
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if _identity(real, os.fstat(file.fileno())) == identity:
            with contextlib.suppress(OSError):
                _remember(note, identity | {"sha256": sha256})
    return sha256


def _packed_once(
    source: GGUFFile, sha256: str, folder: Path, progress: Progress | None
) -> PackedModel:
    """The cached packed file of this content, written now unless another process was first."""
    target = _packed_path(folder, sha256)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        if model := _cached(folder, sha256):
            return model
        for stale in target.parent.glob(f"{temporary_prefix(target)}*.tmp"):
            stale.unlink()  # of a process that was killed: who writes here holds the lock
        write_packed(source, sha256, target, progress)
        return open_packed(target)


def _packed_path(folder: Path, sha256: str) -> Path:
    return folder / "packed" / f"{sha256}.gguf"


def _cached(folder: Path, sha256: str) -> PackedModel | None:
    """The cached packed file of this content, if there is a sound one."""
    try:
        model = open_packed(_packed_path(folder, sha256))
    except (FormatError, OSError):
        return None
    return model if model.source_sha256 == sha256 else None


def _identity(real: str, status: os.stat_result) -> dict[str, Any]:
    return {
        "path": os.fsdecode(real),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }


def _recall(index: Path, identity: dict[str, Any]) -> str | None:
    """The content hash noted for a file of this identity; None where none is, or the note is
    damaged.
    """
    try:
        note = json.loads(index.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict) or any(note.get(key) != value for key, value in identity.items()):
        return None
    sha256 = note.get("sha256")
    # The hash becomes a file name: nothing but hex digits may.
    is_hash = (
        isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
    )
    return sha256 if is_hash else None


def _remember(index: Path, note: dict[str, Any]) -> None:
    index.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    raw = json.dumps(note).encode()
    with replacing(index, len(raw)) as file:
        file.write(raw)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock: one process packs, the others wait. The file stays, as removing it
    would be a race.
    """
    with open(path, "ab") as file:
        system.lock(file)
        yield
