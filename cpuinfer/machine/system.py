"""What differs between operating systems, in one place: memory, locks, and renames that last.

Linux is where all of this has been run; the branches for macOS and Windows follow the documentation.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from pathlib import Path
from typing import IO


def physical_memory() -> int:
    """Bytes of memory that the machine has."""
    if sys.platform == "win32":
        return _windows_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def map_zeros(nbytes: int) -> mmap.mmap:
    """Private zero pages, on huge pages where the system gives them on request.

    Raises OSError, OverflowError or MemoryError where the system does not give them.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(mapping, "MADV_HUGEPAGE")
    return mapping


def read_ahead(mapping: mmap.mmap) -> None:
    """Have the disk read a mapped file from now on, where the system can be told; returns at once."""
    _advise(mapping, "MADV_WILLNEED")


def lock(file: IO[bytes]) -> None:
    """Wait for the file's lock, which closing the file gives back. The file must be open for writing."""
    if sys.platform == "win32":
        _windows_lock(file)
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable; Windows opens no folder, and its file systems keep a journal of them."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _advise(mapping: mmap.mmap, name: str) -> None:
    advice = getattr(mmap, name, None)
    if sys.platform != "win32" and advice is not None:
        with contextlib.suppress(OSError):  # a kernel built without it
            mapping.madvise(advice)


if sys.platform == "win32":
    import ctypes
    import msvcrt
    import time

    class _MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX."""

        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total_physical", ctypes.c_ulonglong),
            ("others", ctypes.c_ulonglong * 6),
        )

    def _windows_memory() -> int:
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise ctypes.WinError()
        return int(status.total_physical)

    def _windows_lock(file: IO[bytes]) -> None:
        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                return
            except OSError:
                time.sleep(0.1)
