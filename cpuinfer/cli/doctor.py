"""`cpuinfer doctor`: what this machine is, what was chosen for it, and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cpuinfer.cli.options import Isa, Json, Threads


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Also say what memory it takes.")
    ] = None,
    threads: Threads = None,
    isa: Isa = None,
    json: Json = False,
) -> None:
    """Show the processor, the ISA level and the threads with the reason for each, and measure memory bandwidth."""
    from cpuinfer.cli.output import print_json

    found = examine(threads, isa)
    if model is not None:
        found["model"] = memory_of(model)
    if json:
        print_json(found)
    else:
        _print(found)


def examine(threads: int | None, isa: str | None) -> dict[str, Any]:
    """Everything but the model."""
    import platform

    from cpuinfer.cli.limit import bandwidth
    from cpuinfer.cli.output import version, working
    from cpuinfer.machine import cpu
    from cpuinfer.machine import isa as levels
    from cpuinfer.machine.folders import cache_dir

    default = cpu.default_threads()
    count = threads or default.count
    library = levels.load(isa)
    with working("measuring the memory bandwidth"):
        measured = bandwidth(library.level, count, fresh=True)
    return {
        "version": version(),
        "cpu": cpu.cpu_name(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "caches": [
            {"level": c.level, "bytes": c.nbytes, "shared_by": c.shared_by} for c in cpu.caches()
        ],
        "features": sorted(levels.processor_features()),
        "levels": [
            {"name": level.name, "runs": level.runnable, "why_not": level.why_not or None}
            for level in levels.levels()
        ],
        "isa": library.level,
        "isa_reason": _isa_reason(isa),
        "build_map": library.build_map(),
        "threads": count,
        "threads_reason": "--threads" if threads else default.reason,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "huge_pages": huge_pages(),
        "read_bandwidth": measured,
        "cache": str(cache_dir()),
    }


def _isa_reason(isa: str | None) -> str:
    from cpuinfer.machine import isa as levels

    if isa:
        return "--isa"
    return levels.ENVIRONMENT if os.environ.get(levels.ENVIRONMENT) else levels.best().reason


def huge_pages(root: Path = Path("/sys/kernel/mm/transparent_hugepage")) -> str | None:
    """The system's setting for transparent huge pages: always, madvise or never; None where it does not say."""
    try:
        text = (root / "enabled").read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def memory_of(model: str) -> dict[str, Any]:
    """Bytes that a model takes: its packed file, and the KV pages of 1,000 tokens as f16."""
    from cpuinfer import hub
    from cpuinfer.cli.load import load_program
    from cpuinfer.graph.dtypes import KVType

    path = hub.resolve(model, progress=True)
    packed, program = load_program(path)
    kv = program.kv
    token = 2 * kv.n_layers * kv.n_kv_heads * kv.head_dim * KVType.F16.itemsize
    return {
        "name": model,
        "path": str(path),
        "packed_bytes": packed.nbytes,
        "expanded": {name: kind.name for name, kind in packed.expanded.items()},
        "kv_bytes_per_token": token,
        "max_positions": program.max_positions,
    }


def _print(found: dict[str, Any]) -> None:
    from cpuinfer.cli.output import human_bytes

    caches = ", ".join(
        f"L{c['level']} {human_bytes(c['bytes'])}"
        + (f" for {c['shared_by']}" if c["shared_by"] > 1 else "")
        for c in found["caches"]
    )
    rows = [
        ("cpuinfer", f"{found['version']}, Python {found['python']}"),
        ("processor", f"{found['cpu']} ({found['architecture']})"),
        ("caches", caches or "not known"),
        ("features", " ".join(found["features"])),
        ("ISA level", f"{found['isa']} ({found['isa_reason']})"),
    ]
    for level in found["levels"]:
        rows.append(("", f"{level['name']}: {'runs' if level['runs'] else level['why_not']}"))
    rows += [
        ("build map", ", ".join(f"{h}: {folder}" for h, folder in found["build_map"].items())),
        ("threads", f"{found['threads']} ({found['threads_reason']})"),
        ("memory", human_bytes(found["memory_bytes"])),
        ("huge pages", found["huge_pages"] or "not known"),
        (
            "bandwidth",
            f"{human_bytes(found['read_bandwidth'])}/s read by {found['threads']} threads",
        ),
        ("cache", found["cache"]),
    ]
    if model := found.get("model"):
        rows.append(
            (
                "model",
                f"{model['name']}: {human_bytes(model['packed_bytes'])} packed, "
                f"{human_bytes(model['kv_bytes_per_token'])} of KV per token (f16)",
            )
        )
        if model["expanded"]:
            rows.append(("", f"{len(model['expanded'])} tensors expanded to F32: no native kernel"))
    for name, value in rows:
        print(f"{name:<11} {value}")
