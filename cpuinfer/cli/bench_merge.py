"""Reports of several machines as one table and one plot, with their fingerprints side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpuinfer.cli.bench_peer import is_ours
from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.bench_stats import summary

if TYPE_CHECKING:
    from cpuinfer.cli.bench_compare import Loaded

_COLUMNS = ("model", "test", "kv_type", "cpu", "engine", "setting", "n_threads")


@dataclass(frozen=True)
class Speed:
    """One line of the merged table. setting: an ISA level, or a peer's setting; median, mad: tokens per second."""

    model: str
    test: str
    kv_type: str
    cpu: str
    engine: str
    setting: str
    n_threads: int
    median: float
    mad: float
    samples: int
    report: str

    @property
    def who(self) -> str:
        """What ran it, in a few words."""
        engine = "" if is_ours(self.engine) else f"{self.engine} "
        return f"{self.cpu}, {engine}{self.setting}, {self.n_threads} threads"


@dataclass(frozen=True)
class Print:
    """A fingerprint of a report: of a model with a KV type on a level, where the report says so."""

    model: str
    kv_type: str
    cpu: str
    setting: str
    fingerprint: str


def merge(reports: Sequence[Loaded]) -> list[Speed]:
    """All rows of all reports, those of one model and test together, in the order in which they first come."""
    found = []
    for report in reports:
        for row in report.rows.values():
            model, threads, *sizes = row.key[:6]
            engine, setting, kv_type = row.key[6:]
            said = summary(row.samples)
            found.append(
                Speed(
                    model,
                    Case(*sizes).label or "nothing",
                    kv_type,
                    report.machine or "unknown CPU",
                    engine,
                    setting,
                    threads,
                    said.median,
                    said.mad,
                    len(row.samples),
                    str(report.path),
                )
            )
    places: dict[tuple[str, str, str], int] = {}
    for speed in found:
        places.setdefault((speed.model, speed.test, speed.kv_type), len(places))
    return sorted(found, key=lambda speed: places[speed.model, speed.test, speed.kv_type])


def fingerprints(reports: Sequence[Loaded]) -> list[Print]:
    """Every fingerprint of every report, once."""
    found: dict[Print, None] = {}
    for report in reports:
        cpu = report.machine or "unknown CPU"
        for (model, kv_type, setting), value in report.prints.items():
            found[Print(model, kv_type, cpu, setting, value)] = None
    return list(found)


def as_json(speeds: Sequence[Speed], prints: Sequence[Print]) -> dict[str, Any]:
    """The table and the fingerprints as plain values; `same_fingerprint` is null for models with fewer than two."""
    return {
        "table": [asdict(speed) for speed in speeds],
        "prints": [asdict(value) for value in prints],
        "same_fingerprint": {" ".join(filter(None, k)): v for k, v in _agree(prints).items()},
    }


def _agree(prints: Sequence[Print]) -> dict[tuple[str, str], bool | None]:
    by_model: dict[tuple[str, str], list[str]] = {}
    for value in prints:
        by_model.setdefault((value.model, value.kv_type), []).append(value.fingerprint)
    return {k: len(set(v)) == 1 if len(v) > 1 else None for k, v in by_model.items()}


def lines(speeds: Sequence[Speed], prints: Sequence[Print]) -> Iterator[str]:
    """The table, then the fingerprints, in markdown."""
    yield "| model | test | KV | processor | engine | level or setting | threads | t/s |"
    yield "|---|---|---|---|---|---|---:|---:|"
    for speed in speeds:
        cells = [str(getattr(speed, name)) for name in _COLUMNS]
        yield "| " + " | ".join([*cells, f"{speed.median:.2f} ± {speed.mad:.2f}"]) + " |"
    yield ""
    yield "t/s: median and median absolute deviation of the samples."
    if not prints:
        return
    yield ""
    yield "| model | KV | processor | level | fingerprint |"
    yield "|---|---|---|---|---|"
    for value in prints:
        yield "| " + " | ".join(asdict(value).values()) + " |"
    for (model, kv_type), same in _agree(prints).items():
        verdict = {None: "one only", True: "one fingerprint", False: "fingerprints DIFFER"}[same]
        yield f"{' '.join(filter(None, (model, kv_type)))}: {verdict}"


def draw(path: Path, speeds: Sequence[Speed]) -> None:
    """Write a PNG: bars of tokens per second, a panel for each model and test.

    Raises ValueError where matplotlib is missing or the file cannot be written.
    """
    from cpuinfer.machine.plot import check_plotting

    check_plotting(path)
    from matplotlib.figure import Figure

    panels: dict[str, list[Speed]] = {}
    for speed in speeds:
        title = " ".join(filter(None, (speed.model, speed.test, speed.kv_type)))
        panels.setdefault(title, []).append(speed)
    height = sum(1.2 + 0.35 * len(rows) for rows in panels.values())
    figure = Figure(figsize=(11, max(3.0, height)), layout="constrained")
    ratios = [1.2 + 0.35 * len(rows) for rows in panels.values()]
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})
    cpus = list(dict.fromkeys(speed.cpu for speed in speeds))
    for axes, (title, rows) in zip(grid[:, 0], panels.items(), strict=True):
        colours = [f"C{cpus.index(speed.cpu) % 10}" for speed in rows]
        bars = axes.barh(range(len(rows)), [speed.median for speed in rows], color=colours)
        axes.bar_label(bars, labels=[f"{speed.median:.1f}" for speed in rows], padding=3)
        axes.set_yticks(range(len(rows)), [speed.who for speed in rows])
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set(title=title, xlabel="tokens/s")
        axes.grid(True, axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
