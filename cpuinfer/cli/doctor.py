"""`cpuinfer doctor`: what this machine is, what was chosen for it, and why."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from cpuinfer.cli.options import KV, Isa, Json, KVName, MaxContext, Threads


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Also say what memory it takes.")
    ] = None,
    threads: Threads = None,
    isa: Isa = None,
    kv_type: KV = KVName.f16,
    max_context: MaxContext = None,
    json: Json = False,
) -> None:
    """Show the processor, the ISA level and the threads with the reason for each; test the kernels, measure the ceilings.

    --kv-type and --max-context are of the MODEL.
    """
    from cpuinfer.cli.doctor_advice import advice
    from cpuinfer.cli.doctor_text import lines
    from cpuinfer.cli.output import print_json

    found = examine(threads, isa)
    if model is not None:
        from cpuinfer.cli.doctor_model import memory_of

        found["model"] = memory_of(model, found["threads"], isa, kv_type.value, max_context)
    found["advice"] = advice(found)
    if json:
        print_json(found)
    else:
        print("\n".join(lines(found)))


def examine(threads: int | None, isa: str | None) -> dict[str, Any]:
    """Everything but the model and the advice."""
    import platform

    from cpuinfer.cli.output import version
    from cpuinfer.machine import cpu
    from cpuinfer.machine import memory as machine
    from cpuinfer.machine.folders import cache_dir

    default = cpu.default_threads()
    fast, kind = cpu.performance_cores()
    memory = machine.memory()
    return {
        "version": version(),
        "cpu": cpu.cpu_name(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "logical_cpus": os.cpu_count(),
        "performance_cores": {"cpus": sorted(fast), "kind": kind} if fast else None,
        "caches": [
            {"level": c.level, "bytes": c.nbytes, "shared_by": c.shared_by} for c in cpu.caches()
        ],
        "numa": [
            {"node": n.number, "cpus": sorted(n.cpus), "memory_bytes": n.nbytes}
            for n in machine.nodes()
        ],
        "threads": threads or default.count,
        "threads_reason": "--threads" if threads else default.reason,
        "thread_limits": [
            {"threads": limit.count, "reason": limit.reason} for limit in cpu.thread_limits()
        ],
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "memory_limit_bytes": memory.limit,
        "huge_pages": machine.huge_pages(),
        "cache": str(cache_dir()),
        **_native(threads or default.count, isa),
    }


def _native(threads: int, isa: str | None) -> dict[str, Any]:
    """The levels, the one that was chosen, and what it reaches; the reason in `native_error` where there is none.

    Raises ValueError for a level that was asked for and cannot be.
    """
    from cpuinfer.cli.limit import machine
    from cpuinfer.machine import isa as levels

    nothing: dict[str, Any] = {"isa": None, "isa_reason": None, "build_map": {}, "ceilings": None}
    try:
        known = levels.levels()
    except (OSError, ValueError) as error:
        if isa or os.environ.get(levels.ENVIRONMENT):
            raise
        return {**nothing, "features": [], "levels": [], "native_error": str(error)}
    found = {
        "features": sorted(levels.processor_features()),
        "blocked_features": sorted(levels.blocked_features()),
        "levels": [_level(level) for level in known],
        "native_error": None,
    }
    try:
        library = levels.load(isa)
    except ValueError as error:
        if isa or os.environ.get(levels.ENVIRONMENT):
            raise
        return {**found, **nothing, "native_error": str(error)}
    measured = machine(library.level, threads, fresh=True)
    return {
        **found,
        "isa": library.level,
        "isa_reason": _isa_reason(isa),
        "build_map": library.build_map(),
        "read_bandwidth": measured.bandwidth[-1][1],
        "ceilings": measured.as_json(),
    }


def _level(level: Any) -> dict[str, Any]:
    """A level, and the result of its self-test where it can run: all of them are tested."""
    from cpuinfer.machine import isa

    why_not, test = level.why_not, None
    if not why_not:
        why_not = isa.problem(level)
        try:
            found = isa.self_test(level)
        except ValueError:  # it did not load
            pass
        else:
            test = {"cases": found.cases, "failed": found.failed, "seconds": found.seconds}
    return {
        "name": level.name,
        "runs": not why_not,
        "why_not": why_not or None,
        "self_test": test,
    }


def _isa_reason(isa: str | None) -> str:
    from cpuinfer.machine import isa as levels

    if isa:
        return "--isa"
    return levels.ENVIRONMENT if os.environ.get(levels.ENVIRONMENT) else levels.best().reason
