"""Writing: one JSON object on stdout, notes and progress on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpuinfer.graph.dtypes import WeightType


def print_json(value: Any) -> None:
    """One object on stdout. Dataclasses become objects, numbers of NumPy become numbers, NaN is an error."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "item"):
        return value.item()
    return str(value)


def note(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def chosen_device(device: str, isa: str | None) -> str:
    """The device that runs what asks for `device`. What there is to say of it goes to stderr."""
    from cpuinfer.devices import choose_device

    chosen = choose_device(device, isa)
    if chosen.note:
        note(f"cpuinfer: {chosen.note}")
    return chosen.name


@contextlib.contextmanager
def working(what: str, json_only: bool = False) -> Iterator[None]:
    """Show that `what` is being done, with a spinner and the time, while stderr is a terminal."""
    if json_only or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def expansion(expanded: Mapping[str, WeightType]) -> str:
    """What to say of a model's tensors that no native kernel reads; empty where there are none."""
    if not expanded:
        return ""
    kinds = ", ".join(sorted({kind.name for kind in expanded.values()}))
    return f"{len(expanded)} tensors of types without a native kernel ({kinds}) are stored as F32"


def human_bytes(n: float) -> str:
    """A number of bytes as people write it: 98.4 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function (bytes done, bytes in all) that draws a bar on stderr; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def version() -> str:
    """The installed version, or "unknown" where the package runs uninstalled."""
    from importlib import metadata

    try:
        return metadata.version("cpuinfer")
    except metadata.PackageNotFoundError:
        return "unknown"
