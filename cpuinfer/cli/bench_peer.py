"""`cpuinfer bench --peer`: this engine beside others, each in a process of its own, in interleaved rounds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.bench_stats import Ratio, ratio, summary
from cpuinfer.cli.peers import LIMIT, OURS, PEERS, Start

FORMAT = 1
"""Of the report."""


class PeerError(ValueError):
    """An engine that is not there, or that failed."""


def parse_peers(given: Sequence[str]) -> dict[str, str | None]:
    """The values of --peer, NAME or NAME=PATH with commas between, as {name: path}. Raises ValueError for others."""
    found: dict[str, str | None] = {}
    for word in ",".join(given).split(","):
        name, _, path = word.strip().partition("=")
        if name not in PEERS or name in (OURS, LIMIT):
            known = ", ".join(sorted(PEERS.keys() - {OURS, LIMIT}))
            raise ValueError(f"--peer: unknown engine {name!r}; known are {known}")
        found[name] = path or None
    return found


@dataclass
class Samples:
    """Tokens per second of one engine with one of its settings at one point, in order of the rounds."""

    model: str
    threads: int
    point: Case
    engine: str
    setting: str
    tokens_per_s: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """A row of the report, with llama-bench's names where it has them."""
        found = summary(self.tokens_per_s)
        return {
            "model_filename": self.model,
            "n_threads": self.threads,
            **asdict(self.point),
            "engine": self.engine,
            "setting": self.setting,
            **{f"{key}_ts": value for key, value in asdict(found).items()},
            "samples_ts": self.tokens_per_s,
        }


class Process:
    """A process that answers JSON lines with JSON lines, from its start to its end; a context manager."""

    def __init__(self, name: str, command: Sequence[str], threads: int) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (until close)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a message. Raises PeerError where it is an error, or none comes."""
        stdin, stdout = _pipes(self._process)
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            raise PeerError(f"{self.name} ended without an answer: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(str(answer["error"]))
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        words = " ".join(self._errors.read().split()[-40:])
        return words or f"exit code {self._process.wait(10)}"

    def close(self) -> None:
        """End the process."""
        stdin, stdout = _pipes(self._process)
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class Engine(Process):
    """An engine of PEERS with a model open."""

    def __init__(self, name: str, start: Start) -> None:
        command = [sys.executable, "-P", "-m", "cpuinfer.cli.peers.serve", name]
        super().__init__(name, command, start.threads)
        try:
            self.about = self.ask(asdict(start))
        except BaseException:
            self.close()
            raise

    def seconds(self, point: Case) -> dict[str, float] | str:
        """Seconds of one run with each setting, or why there is none."""
        answer = self.ask({"point": asdict(point)})
        if "unsupported" in answer:
            return str(answer["unsupported"])
        return {str(key): float(value) for key, value in answer["seconds"].items()}


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    return process.stdin, process.stdout


@dataclass(frozen=True)
class Plan:
    """What is measured: every point of every model with every number of threads. engines: {name: path or None}."""

    models: tuple[Path, ...]
    threads: tuple[int, ...]
    points: tuple[Case, ...]
    engines: Mapping[str, str | None]
    rounds: int
    kv_type: str = "f16"
    isa: str | None = None
    ubatch: int = 512


@dataclass
class Report:
    """What was measured; `as_json` is the file that `bench compare` reads."""

    plan: Plan
    command: Sequence[str]
    about: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def limit(self, samples: Samples) -> float | None:
        """The machine's limit at the samples' point, in tokens per second; None where none was measured."""
        found = best(self.samples, samples, LIMIT)
        return None if found is None else summary(found.tokens_per_s).median

    def ratios(self) -> list[dict[str, Any]]:
        """Our engines beside the best setting of each peer, point by point."""
        rows = []
        for mine in self.samples:
            if not is_ours(mine.engine):
                continue
            for peer in dict.fromkeys(s.engine for s in self.samples):
                theirs = best(self.samples, mine, peer)
                if theirs is None or is_ours(peer) or peer == LIMIT:
                    continue
                found = ratio(mine.tokens_per_s, theirs.tokens_per_s)
                rows.append(_ratio_row(mine, theirs, found))
        return rows

    def as_json(self) -> dict[str, Any]:
        """The whole report."""
        from cpuinfer.cli.bench_machine import git_commit, machine

        return {
            "format": FORMAT,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": list(self.command),
            "git_commit": git_commit(),
            "machine": machine(),
            "rounds": self.plan.rounds,
            "engines": self.about,
            "fingerprints": self.fingerprints,
            "results": [{**s.as_json(), "limit_ts": self.limit(s)} for s in self.samples],
            "ratios": self.ratios(),
            "skipped": self.skipped,
        }


def is_ours(engine: str) -> bool:
    """Whether it is this engine, run in whichever way."""
    return engine.startswith(OURS)


def best(samples: Sequence[Samples], like: Samples, engine: str) -> Samples | None:
    """The setting of `engine` with the highest median at the point of `like`; None where it was not measured."""
    there = [
        s
        for s in samples
        if s.engine == engine
        and (s.model, s.threads, s.point) == (like.model, like.threads, like.point)
    ]
    return max(there, key=lambda s: summary(s.tokens_per_s).median, default=None)


def _ratio_row(mine: Samples, theirs: Samples, found: Ratio) -> dict[str, Any]:
    return {
        "model_filename": mine.model,
        "n_threads": mine.threads,
        **asdict(mine.point),
        "engine": mine.engine,
        "peer": theirs.engine,
        "peer_setting": theirs.setting,
        **asdict(found),
        "differs": found.differs,
    }


def measure(
    plan: Plan, command: Sequence[str], progress: Callable[[str], None] = lambda what: None
) -> Report:
    """Run the plan, a model and a number of threads at a time, with all engines open side by side.

    In each round each engine runs each point once; who goes first changes from round to round. Raises PeerError where
    an engine is not there or fails.
    """
    report = Report(plan, command)
    for model in plan.models:
        report.fingerprints[model.name] = fingerprint(model, plan)
        for threads in plan.threads:
            start = Start(
                str(model), threads, plan.points, plan.kv_type, None, plan.isa, plan.ubatch
            )
            with contextlib.ExitStack() as stack:
                engines = []
                for name, path in plan.engines.items():
                    progress(f"opening {model.name} with {name}")
                    engines.append(stack.enter_context(Engine(name, replace(start, path=path))))
                    about = {"engine": name, "model_filename": model.name, "n_threads": threads}
                    report.about.append({**about, **engines[-1].about})
                _rounds(report, engines, model.name, threads, progress)
    return report


def fingerprint(model: Path, plan: Plan) -> str:
    """What `verify` prints for the model, in a process of its own. Raises PeerError where that fails."""
    isa = ["--isa", plan.isa] if plan.isa else []
    words = [sys.executable, "-P", "-m", "cpuinfer.cli", "verify", str(model), *isa]
    words += ["--kv-type", plan.kv_type, "--threads", str(max(plan.threads))]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise PeerError(f"{OURS}: {' '.join(done.stderr.split()[-40:])}")
    return done.stdout.strip()


def _rounds(
    report: Report,
    engines: list[Engine],
    model: str,
    threads: int,
    progress: Callable[[str], None],
) -> None:
    found: dict[tuple[Case, str, str], Samples] = {}
    skipped: set[tuple[Case, str]] = set()
    shown = -1
    for turn, point, engine in turns(report.plan, engines):
        if (point, engine.name) in skipped:
            continue
        if turn > shown:
            shown = turn
            progress(f"{model}, {threads} threads, round {turn + 1} of {report.plan.rounds}")
        answer = engine.seconds(point)
        if isinstance(answer, str):
            skipped.add((point, engine.name))
            row = {"model_filename": model, "n_threads": threads, **asdict(point)}
            report.skipped.append({**row, "engine": engine.name, "why": answer})
            continue
        for setting, seconds in answer.items():
            samples = found.setdefault(
                (point, engine.name, setting), Samples(model, threads, point, engine.name, setting)
            )
            samples.tokens_per_s.append(point.n_tokens / seconds)
    order = [engine.name for engine in engines]
    places = {point: i for i, point in enumerate(report.plan.points)}
    report.samples += sorted(
        found.values(), key=lambda s: (places[s.point], order.index(s.engine), s.setting)
    )


def turns(plan: Plan, engines: Sequence[Engine]) -> Iterator[tuple[int, Case, Engine]]:
    """(round, point, engine) in the order of running: the engines take turns in going first."""
    for turn in range(plan.rounds):
        first = turn % len(engines)
        for point in plan.points:
            for engine in (*engines[first:], *engines[:first]):
                yield turn, point, engine


def table(report: Report) -> str:
    """The report for people: a row for each point and engine, in Markdown."""
    lines = [
        "| model | threads | test | engine | t/s (median ± MAD) | min - max | of the limit | ours / theirs |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    ratios = {
        _key(row, row["peer"], row["peer_setting"]): row
        for row in report.ratios()
        if row["engine"] == OURS
    }
    for s in report.samples:
        found = summary(s.tokens_per_s)
        row = ratios.get(_key(s.as_json(), s.engine, s.setting))
        limit = report.limit(s)
        cells = (
            s.model,
            str(s.threads),
            s.point.label,
            f"{s.engine} {s.setting}",
            f"{found.median:.2f} ± {found.mad:.2f}",
            f"{found.min:.2f} - {found.max:.2f}",
            "" if limit is None else f"{100 * found.median / limit:.0f} %",
            "" if row is None else in_words(row["ratio"], row["low"], row["high"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        f"skipped: {row['engine']}, {Case(**{k: row[k] for k in Case.__dataclass_fields__}).label}: {row['why']}"
        for row in report.skipped
    ]
    return "\n".join(lines)


def _key(row: Mapping[str, Any], engine: str, setting: str) -> tuple[Any, ...]:
    names = ("model_filename", "n_threads", "n_prompt", "n_gen", "n_depth", "n_seqs")
    return (*(row[name] for name in names), engine, setting)


def in_words(ratio: float, low: float | None, high: float | None) -> str:
    """1.84 (1.79 - 1.90), or without the interval where there is none."""
    return f"{ratio:.2f}" + ("" if low is None or high is None else f" ({low:.2f} - {high:.2f})")


def beside(
    peers: Sequence[str],
    models: Sequence[str],
    threads: Sequence[int],
    points: Sequence[Case],
    rounds: int,
    kv_type: str,
    isa: str | None,
    ubatch: int,
    form: str,
) -> None:
    """`bench --peer`: measure and print, as a table ("md") or as one object ("json")."""
    from cpuinfer import hub
    from cpuinfer.cli.bench_machine import command
    from cpuinfer.cli.boundary import usage
    from cpuinfer.cli.output import note, print_json

    with usage("--peer"):
        engines = {OURS: None, LIMIT: None, **parse_peers(peers)}
    paths = tuple(hub.resolve(name, progress=True) for name in models)
    plan = Plan(paths, tuple(threads), tuple(points), engines, rounds, kv_type, isa, ubatch)
    report = measure(plan, command(), note)
    if form == "json":
        print_json(report.as_json())
    else:
        print(table(report))
