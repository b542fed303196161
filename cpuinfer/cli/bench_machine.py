"""What a reader of a benchmark needs to know of the machine and the source."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_GIT_SECONDS = 10


def machine() -> dict[str, Any]:
    """Processor, cores, caches, memory, kernel, and the frequency governor; null for what the system does not say."""
    from cpuinfer.machine.cpu import caches, cpu_name, default_threads
    from cpuinfer.machine.system import physical_memory

    usable = default_threads()
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "usable_threads": usable.count,
        "usable_threads_reason": usable.reason,
        "caches": [asdict(cache) for cache in caches()],
        "memory_bytes": physical_memory(),
        "kernel": platform.release(),
        "system": platform.platform(),
        "governor": _text(_GOVERNOR),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }


def command() -> list[str]:
    """What was called, for a report: files by their names, whatever folders they lie in."""
    return [re.sub(r"[^=,]*/", "", word) for word in sys.argv]


def git_commit(file: Path = Path(__file__)) -> str | None:
    """The commit of the source tree that `file` is of, with "+changes" where it has some; None for a file that no
    repository keeps, such as an installed one."""
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)
        commit = _git(file, "rev-parse", "HEAD")
        changes = _git(file, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def _git(file: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(file.parent), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=_GIT_SECONDS,
    )
    return done.stdout.strip()


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
