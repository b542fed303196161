"""The processor that this process may use: how many threads, and what set that number."""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "CPUINFER_THREADS"
"""Sets the number of threads; empty counts as unset."""

MOST_THREADS = 4096

_FAST = 0.6  # of the fastest core
_CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


@dataclass(frozen=True)
class Threads:
    """A number of threads and the reason for it, in words."""

    count: int
    reason: str


@dataclass(frozen=True)
class Cache:
    """A data or unified cache as one processor sees it; `shared_by` processors share it."""

    level: int
    nbytes: int
    shared_by: int


def check_threads(value: int | str, source: str) -> int:
    """The value as a number of threads. Raises ValueError naming the source unless it is 1 to MOST_THREADS."""
    text = str(value).strip()
    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise ValueError(
            f"{source}: expected a whole number from 1 to {MOST_THREADS}, got {value!r}"
        )
    return int(text)


def processors() -> int:
    """How many processors this process may run on (affinity; a cpuset is one)."""
    return len(_affinity())


def default_threads(cpus: Path = _CPUS, cgroups: Path = CGROUPS, proc: Path = PROC) -> Threads:
    """$CPUINFER_THREADS, or else the least of thread_limits; of equal ones the first.

    Raises ValueError for a malformed CPUINFER_THREADS.
    """
    if given := os.environ.get(ENVIRONMENT):
        return Threads(check_threads(given, ENVIRONMENT), ENVIRONMENT)
    return min(thread_limits(cpus, cgroups, proc), key=lambda limit: limit.count)


def thread_limits(
    cpus: Path = _CPUS, cgroups: Path = CGROUPS, proc: Path = PROC
) -> tuple[Threads, ...]:
    """Everything that limits the threads worth having: the hardware, then what was laid over it.

    Physical cores that the process may run on; of processors with fast and slow cores the fast ones; affinity; and
    cpuset and quota of every cgroup that it is in. A team shares its work evenly and waits for its slowest thread.
    """
    allowed = _affinity()
    limits = [Threads(_physical_cores(allowed, cpus), "physical cores")]
    fast, kind = performance_cores(cpus)
    if fast & allowed:
        limits.append(Threads(_physical_cores(fast & allowed, cpus), f"performance cores ({kind})"))
    limits.append(Threads(len(allowed), "processor affinity"))
    for folder in cgroup_folders(cgroups, proc):
        cpuset = read_text(folder / "cpuset.cpus.effective") or read_text(
            folder / "cpuset.effective_cpus"
        )
        if shared := allowed & parse_cpu_list(cpuset):
            limits.append(Threads(len(shared), "cgroup cpuset"))
        quota = _quota(folder)
        if quota is not None:
            limits.append(Threads(threads_of_quota(quota), f"cgroup quota of {quota:g} processors"))
    return tuple(limits)


def threads_of_quota(quota: float) -> int:
    """The threads that use up a quota of processors (> 0): the next whole number, as a quota is of time and not of
    processors. benchmarks/results/threads_*.json compares the choices."""
    return max(1, math.ceil(quota))


def performance_cores(cpus: Path = _CPUS) -> tuple[frozenset[int], str]:
    """The fast processors of a machine that has slow ones too, and how they are told apart; empty for all others.

    Intel: the system's list of the core type. Others: at least 60 % of the highest cpu_capacity (Linux, Documentation/
    scheduler/sched-capacity.rst), or of the highest frequency where there are no capacities.
    """
    hybrid = parse_cpu_list(read_text(cpus.parent.parent / "cpu_core/cpus"))
    if hybrid and parse_cpu_list(read_text(cpus.parent.parent / "cpu_atom/cpus")):
        return hybrid, "not the efficient ones"
    for file, kind in (
        ("cpu_capacity", "of the higher capacity"),
        ("cpufreq/cpuinfo_max_freq", "of the higher frequency"),
    ):
        found = {
            int(folder.name[3:]): int(text)
            for folder in cpus.glob("cpu[0-9]*")
            if (text := read_text(folder / file)).isdecimal() and folder.name[3:].isdecimal()
        }
        if found:
            fast = {cpu for cpu, speed in found.items() if speed >= _FAST * max(found.values())}
            return (frozenset(fast), kind) if len(fast) < len(found) else (frozenset(), "")
    return frozenset(), ""


def stay_on_performance_cores(cpus: Path = _CPUS) -> frozenset[int]:
    """Let this thread, and those that it starts later, run on performance cores alone, where some are not.

    Returns the processors it was restricted to; empty where nothing was changed, as on most machines. It is for whoever
    owns the process: the command line calls it, the library does not.
    """
    fast, _ = performance_cores(cpus)
    allowed = _affinity()
    if not fast & allowed or allowed <= fast or not hasattr(os, "sched_setaffinity"):
        return frozenset()
    os.sched_setaffinity(0, fast & allowed)
    return fast & allowed


def cpu_name(proc: Path = PROC) -> str:
    """The processor's model name, or the architecture where the system does not say."""
    for line in read_text(proc / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def caches(cpus: Path = _CPUS) -> tuple[Cache, ...]:
    """Data and unified caches of the first processor, nearest first; empty where the system does not say."""
    found = []
    for index in sorted(cpus.glob("cpu0/cache/index*")):
        level, size = read_text(index / "level"), read_text(index / "size")
        if read_text(index / "type") == "Instruction" or not level.isdecimal() or not size:
            continue
        unit = {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
        number = size.rstrip("KMG")
        if number.isdecimal():
            shared = len(parse_cpu_list(read_text(index / "shared_cpu_list"))) or 1
            found.append(Cache(int(level), int(number) << unit, shared))
    return tuple(sorted(found, key=lambda cache: cache.level))


def parse_cpu_list(text: str) -> frozenset[int]:
    """The processors of a list such as "0-3,8"; empty for text that is none."""
    found: set[int] = set()
    for part in text.strip().split(","):
        ends = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if ends is None:
            return frozenset()
        found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return frozenset(found)


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _physical_cores(allowed: frozenset[int], cpus: Path) -> int:
    """Cores that the allowed processors belong to; processors without a known sibling count as cores."""
    cores = set()
    for cpu in allowed:
        siblings = parse_cpu_list(read_text(cpus / f"cpu{cpu}/topology/thread_siblings_list"))
        cores.add(min(siblings, default=cpu))
    return len(cores)


def cgroup_folders(
    cgroups: Path, proc: Path, wanted: tuple[str, ...] = ("cpu", "cpuset")
) -> list[Path]:
    """Folders of this process's groups and all groups above them: version 2's tree, and version 1's of the wanted
    controllers. Inside a container the paths are often not visible; then the roots are all there is."""
    folders = []
    for line in read_text(proc / "self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            roots = [cgroups, cgroups / "unified"]
        elif set(wanted) & set(controllers.split(",")):
            roots = [cgroups / name for name in (controllers, *controllers.split(","))]
        else:
            continue
        relative = Path(path.lstrip("/"))
        for root in roots:
            folders += [root / relative, *(root / parent for parent in relative.parents)]
    return list(dict.fromkeys(folders))


def _quota(folder: Path) -> float | None:
    """Processors' worth of time that a group gets; None where it has no limit."""
    quota, period = (*read_text(folder / "cpu.max").split(), "", "")[:2]
    if not quota:
        quota, period = (
            read_text(folder / "cpu.cfs_quota_us"),
            read_text(folder / "cpu.cfs_period_us"),
        )
    if quota.isdecimal() and period.isdecimal() and int(period) > 0 and int(quota) > 0:
        return int(quota) / int(period)
    return None


def read_text(path: Path) -> str:
    """A file of the system without its last newline; empty where there is none to read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
