"""How many threads the machine gives this process, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpuinfer.machine import cpu

CPUS = "devices/system/cpu/"


class Machine:
    """Files as Linux shows them, and an affinity of `n_cpus` processors."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, n_cpus: int) -> None:
        self.root = root / "machine"
        monkeypatch.delenv(cpu.ENVIRONMENT, raising=False)
        monkeypatch.setattr(cpu, "_affinity", lambda: frozenset(range(n_cpus)))

    def put(self, path: str, text: str) -> None:
        target = self.root / path.replace("cpus/", CPUS, 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def threads(self) -> cpu.Threads:
        return cpu.default_threads(*self._places)

    def limits(self) -> list[tuple[int, str]]:
        return [(found.count, found.reason) for found in cpu.thread_limits(*self._places)]

    @property
    def _places(self) -> tuple[Path, Path, Path]:
        return self.root / CPUS, self.root / "cgroup", self.root / "proc"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch, 8)


def test_physical_cores_not_hyperthreads(machine: Machine) -> None:
    for i in range(8):
        machine.put(f"cpus/cpu{i}/topology/thread_siblings_list", f"{i % 4},{i % 4 + 4}")
    assert machine.threads() == cpu.Threads(4, "physical cores")


def test_affinity_where_the_topology_is_unknown(machine: Machine) -> None:
    assert machine.threads().count == 8


@pytest.mark.parametrize(
    ("quota", "count"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1)]
)
def test_cgroup_2_quota(machine: Machine, quota: str, count: int) -> None:
    machine.put("proc/self/cgroup", "0::/box/inner")
    machine.put("cgroup/box/inner/cpu.max", quota)
    assert machine.threads().count == count


def test_cgroup_2_quota_of_a_group_above(machine: Machine) -> None:
    machine.put("proc/self/cgroup", "0::/box/inner")
    machine.put("cgroup/box/inner/cpu.max", "max 100000")
    machine.put("cgroup/box/cpu.max", "300000 100000")
    assert machine.threads() == cpu.Threads(3, "cgroup quota of 3 processors")


def test_cgroup_quota_at_the_root_of_a_container(machine: Machine) -> None:
    machine.put("proc/self/cgroup", "0::/not/visible/here")
    machine.put("cgroup/cpu.max", "200000 100000")
    assert machine.threads().count == 2


def test_cgroup_1_quota(machine: Machine) -> None:
    machine.put("proc/self/cgroup", "4:cpu,cpuacct:/box\n0::/")
    machine.put("cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "600000")
    machine.put("cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000")
    assert machine.threads() == cpu.Threads(6, "cgroup quota of 6 processors")
    machine.put("cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "-1")
    assert machine.threads().count == 8


def test_cpuset(machine: Machine) -> None:
    machine.put("proc/self/cgroup", "0::/box")
    machine.put("cgroup/box/cpuset.cpus.effective", "1,3-4,40-50")
    assert machine.threads() == cpu.Threads(3, "cgroup cpuset")


def test_environment_wins(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.ENVIRONMENT, " 12 ")
    assert machine.threads() == cpu.Threads(12, "CPUINFER_THREADS")
    monkeypatch.setenv(cpu.ENVIRONMENT, "")
    assert machine.threads().count == 8


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "4097", "1e3", "²", "99999999999999"])
def test_malformed_environment_is_an_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(cpu.ENVIRONMENT, value)
    with pytest.raises(ValueError, match="CPUINFER_THREADS: expected a whole number from 1"):
        machine.threads()


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0", {0}), ("0-2,7", {0, 1, 2, 7}), ("", set()), ("a-b", set()), ("1-,2", set())],
)
def test_cpu_lists(text: str, cpus: set[int]) -> None:
    assert cpu.parse_cpu_list(text) == cpus


def test_name_and_caches(machine: Machine) -> None:
    machine.put("proc/cpuinfo", "processor\t: 0\nmodel name\t: Abacus 9000\n")
    assert cpu.cpu_name(machine.root / "proc") == "Abacus 9000"
    for i, (level, kind, size, shared) in enumerate(
        [("1", "Data", "48K", "0"), ("1", "Instruction", "32K", "0"), ("3", "Unified", "8M", "0-3")]
    ):
        folder = f"cpus/cpu0/cache/index{i}"
        machine.put(f"{folder}/level", level)
        machine.put(f"{folder}/type", kind)
        machine.put(f"{folder}/size", size)
        machine.put(f"{folder}/shared_cpu_list", shared)
    assert cpu.caches(machine.root / CPUS) == (
        cpu.Cache(1, 48 << 10, 1),
        cpu.Cache(3, 8 << 20, 4),
    )
    assert cpu.caches(machine.root / "nowhere") == ()


def test_all_limits_are_listed_and_the_least_counts(machine: Machine) -> None:
    for i in range(8):
        machine.put(f"cpus/cpu{i}/topology/thread_siblings_list", f"{i % 4},{i % 4 + 4}")
    machine.put("proc/self/cgroup", "2:cpuset:/box\n1:cpu:/\n0::/")
    machine.put("cgroup/cpuset/box/cpuset.effective_cpus", "0-2")
    machine.put("cgroup/cpu/cpu.cfs_quota_us", "150000")
    machine.put("cgroup/cpu/cpu.cfs_period_us", "100000")
    assert machine.limits() == [
        (4, "physical cores"),
        (8, "processor affinity"),
        (3, "cgroup cpuset"),
        (2, "cgroup quota of 1.5 processors"),
    ]
    assert machine.threads() == cpu.Threads(2, "cgroup quota of 1.5 processors")


@pytest.mark.parametrize(
    ("quota", "threads"), [(0.01, 1), (0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (7.2, 8)]
)
def test_a_quota_is_used_up(quota: float, threads: int) -> None:
    assert cpu.threads_of_quota(quota) == threads


def test_performance_cores_of_intel(machine: Machine) -> None:
    """2 cores with two threads each, and 4 efficient ones."""
    for i in range(8):
        siblings = f"{i // 2 * 2}-{i // 2 * 2 + 1}" if i < 4 else str(i)
        machine.put(f"cpus/cpu{i}/topology/thread_siblings_list", siblings)
    machine.put("devices/cpu_core/cpus", "0-3")
    assert machine.threads() == cpu.Threads(6, "physical cores")
    machine.put("devices/cpu_atom/cpus", "4-7")
    assert machine.threads() == cpu.Threads(2, "performance cores (not the efficient ones)")
    assert machine.limits()[0] == (6, "physical cores")


@pytest.mark.parametrize(
    ("file", "speeds", "fast"),
    [
        ("cpu_capacity", (306, 306, 306, 306, 871, 871, 871, 1024), {4, 5, 6, 7}),
        ("cpu_capacity", (446, 446, 446, 446, 1024, 1024, 1024, 1024), {4, 5, 6, 7}),
        ("cpu_capacity", (1024,) * 8, set()),
        ("cpufreq/cpuinfo_max_freq", (1_400_000,) * 4 + (2_400_000,) * 4, {4, 5, 6, 7}),
        ("cpufreq/cpuinfo_max_freq", (5_200_000, 5_400_000) * 4, set()),
    ],
)
def test_performance_cores_of_others(
    machine: Machine, file: str, speeds: tuple[int, ...], fast: set[int]
) -> None:
    for i, speed in enumerate(speeds):
        machine.put(f"cpus/cpu{i}/{file}", str(speed))
    assert cpu.performance_cores(machine.root / CPUS)[0] == fast
    assert machine.threads().count == len(fast or speeds)
    assert machine.threads().reason.startswith("performance" if fast else "physical")


def test_slow_cores_alone_are_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(8):
        machine.put(f"cpus/cpu{i}/cpu_capacity", "400" if i < 4 else "1024")
    monkeypatch.setattr(cpu, "_affinity", lambda: frozenset({1, 2}))
    assert machine.limits() == [(2, "physical cores"), (2, "processor affinity")]
    monkeypatch.setattr(cpu, "_affinity", lambda: frozenset({1, 2, 5}))
    assert machine.threads() == cpu.Threads(1, "performance cores (of the higher capacity)")


def test_staying_on_performance_cores(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[int]] = []
    monkeypatch.setattr(cpu.os, "sched_setaffinity", lambda pid, cpus: asked.append(set(cpus)))
    assert cpu.stay_on_performance_cores(machine.root / CPUS) == frozenset() and not asked
    for i in range(8):
        machine.put(f"cpus/cpu{i}/cpu_capacity", "400" if i < 4 else "1024")
    assert cpu.stay_on_performance_cores(machine.root / CPUS) == {4, 5, 6, 7}
    assert asked == [{4, 5, 6, 7}]
    for allowed in ({4, 5}, {0, 1}):  # there already; nothing but slow ones
        monkeypatch.setattr(cpu, "_affinity", lambda allowed=allowed: frozenset(allowed))
        assert cpu.stay_on_performance_cores(machine.root / CPUS) == frozenset()
    assert len(asked) == 1
