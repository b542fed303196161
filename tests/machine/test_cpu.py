"""How many threads the machine gives this process, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpuinfer.machine import cpu


class Machine:
    """Files as Linux shows them, and an affinity of `n_cpus` processors."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, n_cpus: int) -> None:
        self.root = root
        monkeypatch.delenv(cpu.ENVIRONMENT, raising=False)
        monkeypatch.setattr(cpu, "_affinity", lambda: frozenset(range(n_cpus)))

    def put(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def threads(self) -> cpu.Threads:
        return cpu.default_threads(self.root / "cpus", self.root / "cgroup", self.root / "proc")


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
    ("quota", "count"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)]
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
    assert cpu.caches(machine.root / "cpus") == (
        cpu.Cache(1, 48 << 10, 1),
        cpu.Cache(3, 8 << 20, 4),
    )
    assert cpu.caches(machine.root / "nowhere") == ()
