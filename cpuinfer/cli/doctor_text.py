"""What `cpuinfer doctor` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

_WIDTH = 110


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A name and a value a line, of what examine, memory_of and advice found."""
    for name, value in _rows(found):
        yield from textwrap.wrap(
            value,
            _WIDTH,
            initial_indent=f"{name:<13} ",
            subsequent_indent=" " * 14,
            break_long_words=False,
        )


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from cpuinfer.cli.output import human_bytes

    caches = ", ".join(
        f"L{c['level']} {_size(c['bytes'])}"
        + (f" for {c['shared_by']}" if c["shared_by"] > 1 else "")
        for c in found["caches"]
    )
    yield "cpuinfer", f"{found['version']}, Python {found['python']}"
    yield (
        "processor",
        f"{found['cpu']} ({found['architecture']}), {found['logical_cpus']} processors",
    )
    if fast := found["performance_cores"]:
        yield "", f"performance cores ({fast['kind']}): {ranges(fast['cpus'])}"
    yield "caches", caches or "not known"
    for node in found["numa"]:
        size = human_bytes(node["memory_bytes"])
        yield "NUMA node", f"{node['node']}: processors {ranges(node['cpus'])}, {size}"
    yield "features", " ".join(found["features"]) or "not known"
    if blocked := found.get("blocked_features"):
        yield "", f"not switched on by the operating system: {' '.join(blocked)}"
    yield from _levels(found)
    yield "threads", f"{found['threads']} ({found['threads_reason']})"
    for limit in found["thread_limits"]:
        yield "", f"{limit['threads']} by {limit['reason']}"
    yield from _memory(found)
    yield "cache", found["cache"]
    yield from _ceilings(found)
    yield from _model(found)
    for number, text in enumerate(found["advice"]):
        yield "" if number else "advice", text


def _levels(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if found["isa"]:
        yield "ISA level", f"{found['isa']} ({found['isa_reason']})"
    else:
        yield "ISA level", f"none: {found['native_error']}"
    for level in found["levels"]:
        test = level["self_test"]
        if level["runs"] and test:
            seconds = f"{1e3 * test['seconds']:.0f} ms"
            yield "", f"{level['name']}: runs; {test['cases']} kernels tested in {seconds}"
        else:
            yield "", f"{level['name']}: {level['why_not']}"
    by_folder: dict[str, list[str]] = {}
    for header, folder in found["build_map"].items():
        by_folder.setdefault(folder, []).append(header)
    for number, (folder, headers) in enumerate(by_folder.items()):
        yield "" if number else "headers", f"of {folder}: {', '.join(headers)}"


def _memory(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from cpuinfer.cli.output import human_bytes

    text = human_bytes(found["memory_bytes"])
    if found["memory_available_bytes"] is not None:
        text += f", {human_bytes(found['memory_available_bytes'])} available"
    if found["memory_limit_bytes"] is not None:
        text += f", cgroup limit {human_bytes(found['memory_limit_bytes'])}"
    yield "memory", text
    yield "huge pages", found["huge_pages"] or "not known"


def _ceilings(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    ceilings = found["ceilings"]
    if ceilings is None:
        return
    sizes = {level["name"]: level["bytes"] for level in ceilings["levels"]}
    busy = " (others used the processors meanwhile: too low)" if ceilings["busy"] else ""
    yield "ceilings", f"{ceilings['threads']} threads, {ceilings['isa']}{busy}"
    for name, rate in ceilings["bandwidth_by_level"].items():
        size = f", {_size(sizes[name])}" if name in sizes else ""
        yield f"{name} read", f"{1e-9 * rate:.1f} GB/s{size}"
    for name, rate in ceilings["peaks"].items():
        yield f"{name} peak", f"{1e-9 * rate:.1f} GOP/s"


def _model(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from cpuinfer.cli.output import human_bytes

    model = found.get("model")
    if not model:
        return
    yield "model", f"{model['name']}: {human_bytes(model['total_bytes'])} for one sequence"
    yield "weights", human_bytes(model["packed_bytes"])
    if model["expanded"]:
        yield "", f"{len(model['expanded'])} tensors expanded to F32: no native kernel"
    yield (
        "KV",
        f"{human_bytes(model['kv_bytes'])} for {model['max_positions']} tokens "
        f"({human_bytes(model['kv_bytes_per_token'])} each, {model['kv_type']}); an engine reserves "
        f"{human_bytes(model['kv_reserved_bytes'])} for several sequences and touches what it uses",
    )
    activations = model["activation_bytes"]
    yield "activations", "not known" if activations is None else human_bytes(activations)


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:g} MiB" if nbytes >= 1 << 20 else f"{nbytes / 2**10:g} KiB"


def ranges(numbers: list[int]) -> str:
    """Sorted numbers as Linux writes lists of processors: 0-3,8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
