"""Memory, huge pages and NUMA nodes, on made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpuinfer.machine import memory

TOTAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_available_memory_and_the_least_limit(tmp_path: Path) -> None:
    put(tmp_path / "proc/meminfo", "MemTotal:       24675256 kB\nMemAvailable:   1000 kB")
    found = memory.memory(tmp_path / "cgroup", tmp_path / "proc")
    assert found == memory.Memory(TOTAL, 1000 << 10, None)
    assert found.usable == TOTAL
    put(tmp_path / "proc/self/cgroup", "0::/box/inner")
    put(tmp_path / "cgroup/box/inner/memory.max", "max")
    put(tmp_path / "cgroup/box/memory.max", "4096000")
    put(tmp_path / "cgroup/memory.max", "8192000")
    found = memory.memory(tmp_path / "cgroup", tmp_path / "proc")
    assert (found.limit, found.usable) == (4096000, 4096000)


@pytest.mark.parametrize(("limit", "wanted"), [("2048000", 2048000), (str(2**63 - 4096), None)])
def test_limits_of_cgroup_1(tmp_path: Path, limit: str, wanted: int | None) -> None:
    put(tmp_path / "proc/self/cgroup", "4:memory:/box\n3:cpu:/other")
    put(tmp_path / "cgroup/memory/box/memory.limit_in_bytes", limit)
    put(tmp_path / "cgroup/cpu/other/memory.limit_in_bytes", "5")
    found = memory.memory(tmp_path / "cgroup", tmp_path / "proc")
    assert (found.available, found.limit) == (None, wanted)


def test_huge_pages(tmp_path: Path) -> None:
    assert memory.huge_pages(tmp_path) is None
    put(tmp_path / "enabled", "always [madvise] never")
    assert memory.huge_pages(tmp_path) == "madvise"
    put(tmp_path / "enabled", "always madvise")
    assert memory.huge_pages(tmp_path) is None


def test_nodes(tmp_path: Path) -> None:
    assert memory.nodes(tmp_path / "nowhere") == ()
    for number, cpus in ((10, ""), (0, "0-3"), (1, "4-7")):
        put(tmp_path / f"node{number}/cpulist", cpus)
        put(tmp_path / f"node{number}/meminfo", f"Node {number} MemTotal:       {number + 8} kB")
    assert memory.nodes(tmp_path) == (
        memory.Node(0, frozenset(range(4)), 8 << 10),
        memory.Node(1, frozenset(range(4, 8)), 9 << 10),
        memory.Node(10, frozenset(), 18 << 10),
    )
