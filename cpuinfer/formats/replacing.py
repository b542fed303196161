"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cpuinfer.machine import system

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(target: Path, nbytes: int, durable: bool = True) -> Iterator[IO[bytes]]:
    """A new file of `nbytes` bytes that takes the place of `target` at once when all is written, or
    never.

    durable: wait until it is on the disk. Without, a machine that loses its power may leave a file
    of the right name and wrong content: only for what is checked when it is read.
    """
    temporary = target.with_name(f"{temporary_prefix(target)}{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                if hasattr(os, "posix_fallocate"):
                    # A full disk shows now, not after minutes.
                    os.posix_fallocate(file.fileno(), 0, nbytes)
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OSError(
            error.errno,
            f"no room for a file of {nbytes} bytes: free some, or choose another folder"
            " (CPUINFER_CACHE)",
            os.fspath(target),
        ) from error
    if durable:
        system.sync_folder(target.parent)


def temporary_prefix(target: Path) -> str:
    """What the names of `target`'s temporary files start with (they end in .tmp)."""
    return f".{target.name}."
