"""The memory that this process may use, its huge pages, and the nodes it is on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cpuinfer.machine import system
from cpuinfer.machine.cpu import CGROUPS, PROC, cgroup_folders, parse_cpu_list, read_text

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Memory:
    """Bytes: of the machine, of it free for new work (None where the system does not say), and the least limit of the
    process's cgroups (None without one)."""

    total: int
    available: int | None
    limit: int | None

    @property
    def usable(self) -> int:
        """The most that this process can have."""
        return self.total if self.limit is None else min(self.total, self.limit)


@dataclass(frozen=True)
class Node:
    """A NUMA node: its number, processors and bytes of memory."""

    number: int
    cpus: frozenset[int]
    nbytes: int


def memory(cgroups: Path = CGROUPS, proc: Path = PROC) -> Memory:
    """What the machine has and what is left for this process."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", read_text(proc / "meminfo"))
    limits = []
    for folder in cgroup_folders(cgroups, proc, ("memory",)):
        limit = read_text(folder / "memory.max") or read_text(folder / "memory.limit_in_bytes")
        if limit.isdecimal():
            limits.append(int(limit))
    total = system.physical_memory()
    least = min(limits, default=total)  # version 1 says "no limit" with a number beyond any memory
    return Memory(
        total, int(available[1]) << 10 if available else None, least if least < total else None
    )


def huge_pages(root: Path = _HUGE_PAGES) -> str | None:
    """The system's setting for transparent huge pages: always, madvise or never; None where it does not say."""
    return read_text(root / "enabled").partition("[")[2].partition("]")[0] or None


def nodes(root: Path = _NODES) -> tuple[Node, ...]:
    """NUMA nodes by number; empty where the system does not say."""
    found = []
    for folder in root.glob("node[0-9]*"):
        size = re.search(r"MemTotal:\s+(\d+) kB", read_text(folder / "meminfo"))
        cpus = parse_cpu_list(read_text(folder / "cpulist"))
        found.append(Node(int(folder.name[4:]), cpus, int(size[1]) << 10 if size else 0))
    return tuple(sorted(found, key=lambda node: node.number))
