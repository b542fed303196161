"""`cpuinfer bench compare A B...`: which differences between two reports exceed the noise of their samples, and reports
of several machines in one table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from cpuinfer.cli.bench_peer import in_words, is_ours
from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.bench_stats import Ratio, ratio, summary

NAMES = (
    "model",
    "n_threads",
    "n_prompt",
    "n_gen",
    "n_depth",
    "n_seqs",
    "engine",
    "setting",
    "type_k",
)
"""What tells one row of a report from another."""


@dataclass(frozen=True)
class Row:
    """The samples (tokens per second) of one engine with one setting at one point; key: values of NAMES."""

    key: tuple[Any, ...]
    samples: tuple[float, ...]

    @property
    def point(self) -> tuple[Any, ...]:
        """The key without engine and setting."""
        return (*self.key[:6], *self.key[8:])

    @property
    def engine(self) -> str:
        return str(self.key[6])


@dataclass(frozen=True)
class Loaded:
    """A report of `bench --peer` or of `bench` (json, jsonl or --json). prints: fingerprints by model, KV type and level,
    which are empty where the report does not say."""

    path: Path
    rows: Mapping[tuple[Any, ...], Row]
    fingerprints: Mapping[str, str]
    prints: Mapping[tuple[str, str, str], str]
    machine: str | None
    commit: str | None

    def best(self, like: Row, engine: str) -> Row | None:
        """The engine's setting with the highest median at a row's point."""
        there = [r for r in self.rows.values() if r.engine == engine and r.point == like.point]
        return max(there, key=lambda r: summary(r.samples).median, default=None)


def load(path: Path) -> Loaded:
    """Raises ValueError for a file that is no report of speeds."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise _no_report(path, "text that is not JSON") from None
    report: dict[str, Any] = found if isinstance(found, dict) else {"results": found}
    results = report.get("results")
    if not isinstance(results, list) or not results:
        raise _no_report(path, "no list of results")
    rows: dict[tuple[Any, ...], Row] = {}
    for result in results:
        row = _row(path, result)
        if row.key in rows:
            raise _no_report(path, f"two results for {_name(row.key)}")
        rows[row.key] = row
    machine = report.get("machine")
    cpu = machine.get("cpu") if isinstance(machine, dict) else results[0].get("cpu_info")
    commit = report.get("git_commit", results[0].get("build_commit"))
    whole = report.get("fingerprints")
    whole = whole if isinstance(whole, dict) else {}
    prints = {(str(model), "", ""): str(value) for model, value in whole.items()}
    for row, result in zip(rows.values(), results, strict=True):
        if isinstance(value := result.get("fingerprint"), str):
            prints[str(row.key[0]), str(row.key[8]), str(row.key[7])] = value
    return Loaded(path, rows, whole, prints, cpu, commit)


def _row(path: Path, result: Any) -> Row:
    if not isinstance(result, dict):
        raise _no_report(path, f"a result that is a {type(result).__name__}")
    samples = result.get("samples_ts")
    if (
        not isinstance(samples, list)
        or not samples
        or not all(type(s) in (int, float) and 0 < s < float("inf") for s in samples)
    ):
        raise _no_report(path, "a result without samples_ts above 0")
    sizes = [result.get(name, 0) for name in NAMES[1:6]]
    if not all(type(size) is int for size in sizes):
        raise _no_report(path, "a result whose sizes are no numbers")
    key = (
        Path(str(result.get("model_filename", ""))).name,
        *sizes,
        str(result.get("engine", "cpuinfer")),
        str(result.get("setting", result.get("isa"))),
        str(result.get("type_k", "")),
    )
    return Row(key, tuple(samples))


def _no_report(path: Path, got: str) -> ValueError:
    return ValueError(
        f"{path}: expected a report of `cpuinfer bench` with --json, -o json or -o jsonl, got {got}"
    )


@dataclass(frozen=True)
class Difference:
    """b / a at one point: of the tokens per second; and, where both reports have the peer, of the ratio to it in the
    same round, which a machine that is busier in one report than in the other does not move."""

    key: tuple[Any, ...]
    a: float
    b: float
    ratio: Ratio
    peer: str | None = None
    beside: Ratio | None = None

    def as_json(self) -> dict[str, Any]:
        """Flat, with the names of NAMES."""
        found = {**dict(zip(NAMES, self.key, strict=True)), "a_ts": self.a, "b_ts": self.b}
        found |= {**asdict(self.ratio), "differs": self.ratio.differs}
        if self.beside is not None:
            beside = {**asdict(self.beside), "differs": self.beside.differs}
            found["beside_peer"] = {"peer": self.peer, **beside}
        return found


def differences(a: Loaded, b: Loaded) -> Iterator[Difference]:
    """Every point that both reports have, in the order of a."""
    for key, row in a.rows.items():
        other = b.rows.get(key)
        if other is None:
            continue
        medians = summary(row.samples).median, summary(other.samples).median
        peer, beside = _beside(a, b, row, other)
        yield Difference(key, *medians, ratio(other.samples, row.samples), peer, beside)


def _beside(a: Loaded, b: Loaded, row: Row, other: Row) -> tuple[str | None, Ratio | None]:
    """The first peer that both reports have at this point in every round, and the ratio of the ratios to it."""
    if not is_ours(row.engine):
        return None, None
    for engine in dict.fromkeys(r.engine for r in a.rows.values() if not is_ours(r.engine)):
        mine, theirs = a.best(row, engine), b.best(row, engine)
        if mine is None or theirs is None:
            continue
        if len(mine.samples) == len(row.samples) and len(theirs.samples) == len(other.samples):
            return engine, ratio(_paired(other, theirs), _paired(row, mine))
    return None, None


def _paired(ours: Row, theirs: Row) -> list[float]:
    return [x / y for x, y in zip(ours.samples, theirs.samples, strict=True)]


def compare(paths: Sequence[str], as_json: bool, plot: Path | None = None) -> None:
    """Print what differs between two reports; of other machines, more reports or for a plot, the table of all.

    Raises ValueError for two reports of one machine that have no point in common.
    """
    from cpuinfer.cli import bench_merge
    from cpuinfer.cli.output import note, print_json

    if len(paths) < 2:
        raise typer.BadParameter(
            f"expected two reports or more, got {len(paths)}: bench compare A.json B.json",
            param_hint="compare",
        )
    reports = [load(Path(path)) for path in paths]
    a, b = reports[:2]
    merged = len(reports) > 2 or plot is not None or a.machine != b.machine
    found = list(differences(a, b)) if len(reports) == 2 else []
    if not found and not merged:
        raise ValueError(
            f"{a.path} and {b.path} have no point in common: models (by file name), tests, threads, engines and "
            "settings must be the same"
        )
    speeds, prints = bench_merge.merge(reports), bench_merge.fingerprints(reports)
    if plot is not None:
        bench_merge.draw(plot, speeds)
        note(f"speeds drawn to {plot}")
    if as_json:
        print_json((_object(a, b, found) if found else {}) | bench_merge.as_json(speeds, prints))
        return
    if merged:
        print("\n".join(bench_merge.lines(speeds, prints)))
    if found:
        print("\n".join([""] * merged + list(_lines(a, b, found))))


def _object(a: Loaded, b: Loaded, found: Sequence[Difference]) -> dict[str, Any]:
    return {
        "a": {"path": str(a.path), "cpu": a.machine, "commit": a.commit},
        "b": {"path": str(b.path), "cpu": b.machine, "commit": b.commit},
        "points": [difference.as_json() for difference in found],
        "only_in_a": [_name(key) for key in a.rows.keys() - b.rows.keys()],
        "only_in_b": [_name(key) for key in b.rows.keys() - a.rows.keys()],
        "fingerprints": [
            {"model": model, "a": first, "b": second, "equal": first == second}
            for model, first, second in _fingerprints(a, b)
        ],
    }


def _fingerprints(a: Loaded, b: Loaded) -> list[tuple[str, str | None, str | None]]:
    models = dict.fromkeys([*a.fingerprints, *b.fingerprints])
    return [(m, a.fingerprints.get(m), b.fingerprints.get(m)) for m in models]


def _lines(a: Loaded, b: Loaded, found: Sequence[Difference]) -> Iterator[str]:
    for letter, report in (("a", a), ("b", b)):
        yield f"{letter}: {report.path}, {report.machine or 'unknown CPU'}, {report.commit or 'unknown commit'}"
    if a.machine != b.machine:
        yield "The machines differ: only ratios to the same peer compare."
    yield ""
    yield "| point | a t/s | b t/s | b / a | beside the peer | |"
    yield "|---|---:|---:|---:|---:|---|"
    for d in found:
        beside = "" if d.beside is None else f"{_words(d.beside)} {d.peer}"
        verdict = {None: "too few samples", True: "differs", False: "within the noise"}
        decisive = d.ratio if d.beside is None else d.beside
        cells = (_name(d.key), f"{d.a:.2f}", f"{d.b:.2f}", _words(d.ratio), beside)
        yield "| " + " | ".join((*cells, verdict[decisive.differs])) + " |"
    yield ""
    yield (
        "Intervals: at least 95 %, of the factor between both samples, by the inverted Mann-Whitney test. The verdict is "
        "on the ratio to the peer where both reports have one."
    )
    for model, first, second in _fingerprints(a, b):
        same = "equal" if first == second else "DIFFERENT"
        yield f"fingerprint of {model}: {same}: {first or 'none'} | {second or 'none'}"
    for letter, one, other in (("a", a, b), ("b", b, a)):
        if missing := [_name(key) for key in one.rows if key not in other.rows]:
            yield f"only in {letter}: " + "; ".join(missing)


def _words(found: Ratio) -> str:
    return in_words(found.ratio, found.low, found.high)


def _name(key: tuple[Any, ...]) -> str:
    model, threads, *sizes = key[:6]
    engine, setting, kv_type = key[6:]
    label = Case(*sizes).label or "nothing"
    kv = f" {kv_type}" if kv_type else ""
    return f"{model} {label}, {threads} threads, {engine} {setting}{kv}"
