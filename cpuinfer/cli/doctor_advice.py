"""What a person may do about what `cpuinfer doctor` found, in plain words."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

_SLOW = ("scalar",)


def advice(found: Mapping[str, Any]) -> list[str]:
    """Sentences; of a machine on which all is as it should be, none. found: what examine and memory_of found."""
    return [*_of_levels(found), *_of_threads(found), *_of_memory(found), *_of_model(found)]


def _of_levels(found: Mapping[str, Any]) -> Iterator[str]:
    if found["isa"] is None:
        yield _without_library(found["native_error"])
        return
    if blocked := found.get("blocked_features"):
        yield (
            f"the processor has {', '.join(blocked)}, but the operating system or the virtual machine has not switched "
            "them on: a newer kernel, or another CPU model of the virtual machine, may allow faster levels"
        )
    names = [level["name"] for level in found["levels"]]
    for level in found["levels"]:
        test = level["self_test"]
        if test and test["failed"]:
            yield (
                f"the level {level['name']} gives wrong answers ({', '.join(test['failed'][:3])}): the processor, its "
                "virtual machine or the build is at fault; please report this with the output of "
                "`cpuinfer doctor --json`"
            )
        elif level["why_not"] == "its library was not built":
            yield (
                f"the level {level['name']} would run here but was not built: install a wheel, or build with "
                "CPUINFER_NATIVE_LEVELS=all"
            )
        elif level["why_not"] and "refuses" in level["why_not"]:
            yield f"the level {level['name']} cannot be used: {level['why_not']}"
    runs = [level["name"] for level in found["levels"] if level["runs"]]
    if found["isa"] != runs[-1] and found["isa_reason"] in ("--isa", "CPUINFER_ISA"):
        yield f"{found['isa_reason']} chooses {found['isa']}; without it {_best_of(runs)} would be used"
    works = not any(
        level["self_test"] and level["self_test"]["failed"] for level in found["levels"]
    )
    if works and found["isa"] in _SLOW and names[-1] not in _SLOW and len(runs) == 1:
        yield (
            "only the scalar level runs here: answers are right, but slow; a processor with AVX2 or NEON is several "
            "times faster"
        )


def _best_of(runs: list[str]) -> str:
    return runs[-1] if "bf16" not in runs[-1] else f"{runs[-2]} or {runs[-1]}"


def _without_library(why: str) -> str:
    if importlib.util.find_spec("numba"):
        device = "the numba device is used, which reaches a part of the native kernels' speed"
    else:
        device = "without it there is only the slow reference device; `pip install 'cpuinfer[numba]'` gives a faster one"
    return f"no native library can be used ({why}): {device}; install a wheel, or build with a C compiler"


def _of_threads(found: Mapping[str, Any]) -> Iterator[str]:
    limits = found["thread_limits"]
    hardware = next(limit["threads"] for limit in limits if "cores" in limit["reason"])
    for limit in limits:
        if limit["reason"].startswith("cgroup") and limit["threads"] < hardware:
            yield (
                f"{limit['reason']}: {limit['threads']} of {hardware} cores are worth using; raise the container's limit "
                "for more"
            )
    for limit in limits:
        quota = limit["reason"].removeprefix("cgroup quota of ").removesuffix(" processors")
        if quota != limit["reason"] and float(quota) % 1:
            yield (
                f"a quota of {quota} processors is no whole number: the system stops all threads for a part of every "
                "period; whole numbers give steadier answers"
            )
    affinity = next(limit["threads"] for limit in limits if limit["reason"] == "processor affinity")
    if affinity < (found["logical_cpus"] or 0):
        yield (
            f"the process may run on {affinity} of {found['logical_cpus']} processors (affinity, as set by taskset or "
            "a cpuset)"
        )
    if found["threads"] > affinity:
        yield (
            f"{found['threads']} threads share {affinity} processors: more than one for each makes every step slower"
        )
    elif found["performance_cores"] and found["threads"] > len(found["performance_cores"]["cpus"]):
        yield (
            "more threads than performance cores: a step waits for its slowest core; "
            f"{len(found['performance_cores']['cpus'])} or fewer are usually faster"
        )
    if len(found["numa"]) > 1:
        yield (
            f"{len(found['numa'])} NUMA nodes: weights lie where they were first read; one process per node "
            "(numactl --cpunodebind=0 --membind=0 cpuinfer ...) reads local memory only"
        )


def _of_memory(found: Mapping[str, Any]) -> Iterator[str]:
    if found["huge_pages"] == "never":
        yield (
            "huge pages are set to never: as root, `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` saves "
            "page-table walks over KV pages and activations"
        )
    if found["ceilings"] and found["ceilings"]["busy"]:
        yield "others used the processors while the ceilings were measured; run doctor again on a quiet machine"


def _of_model(found: Mapping[str, Any]) -> Iterator[str]:
    from cpuinfer.cli.output import human_bytes

    model = found.get("model")
    if not model:
        return
    usable = min(found["memory_bytes"], found["memory_limit_bytes"] or found["memory_bytes"])
    need = model["total_bytes"]
    if need > usable:
        yield (
            f"the model needs {human_bytes(need)} and there are {human_bytes(usable)}: take a smaller --max-context, "
            "--kv-type int8, or a file with fewer bits a weight"
        )
    elif (available := found["memory_available_bytes"]) is not None and need > available:
        yield (
            f"the model needs {human_bytes(need)}, of which {human_bytes(available)} are free now: other programs will "
            "be pushed out of memory, or it will be slow"
        )
    if model["expanded"]:
        yield (
            f"{len(model['expanded'])} tensors are of types without a native kernel and were expanded to F32: a file "
            "quantised to Q4_0, Q4_K or Q8_0 is smaller and faster"
        )
