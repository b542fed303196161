"""What a benchmark runs and how it reports: llama-bench's flags, ranges, tests and field names.

Source of flags and fields: llama.cpp, tools/llama-bench (README.md and llama-bench.cpp).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")
_MOST_VALUES = 10_000


def numbers(option: str, given: Iterable[str], least: int = 0) -> list[int]:
    """The values of a list option: `1,2`, repeated, or ranges `first-last`, `first-last+step`, `first-last*factor`.

    Raises ValueError for anything else, values below `least`, and steps that lead nowhere.
    """
    values: list[int] = []
    for part in ",".join(given).split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"{option}: expected numbers or ranges such as 512 or 1-8*2, got {part!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        by, step = match[3] or "+", int(match[4] or 1)
        if last < first or step < (2 if by == "*" else 1) or (by == "*" and first == 0):
            raise ValueError(f"{option}: the range {part!r} does not go up")
        while first <= last and len(values) < _MOST_VALUES:
            values.append(first)
            first = first * step if by == "*" else first + step
    if values and min(values) < least:
        raise ValueError(f"{option}: expected at least {least}, got {min(values)}")
    if len(values) >= _MOST_VALUES:
        raise ValueError(f"{option}: more than {_MOST_VALUES} values")
    return values


def pairs(option: str, given: Iterable[str]) -> list[tuple[int, int]]:
    """The values of `-pg pp,tg`, one pair for each time it is given. Raises ValueError for anything else."""
    found = []
    for text in given:
        match = re.fullmatch(r"(\d+),(\d+)", text)
        if match is None or not int(match[1]) or not int(match[2]):
            raise ValueError(
                f"{option}: expected two positive numbers such as 512,128, got {text!r}"
            )
        found.append((int(match[1]), int(match[2])))
    return found


@dataclass(frozen=True)
class Case:
    """One test: after `n_depth` tokens, each of `n_seqs` sequences takes n_prompt tokens at once, then n_gen singly."""

    n_prompt: int
    n_gen: int
    n_depth: int
    n_seqs: int

    @property
    def context(self) -> int:
        """Positions that a sequence needs."""
        return self.n_depth + self.n_prompt + self.n_gen

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_seqs * (self.n_prompt + self.n_gen)

    @property
    def label(self) -> str:
        """llama-bench's name of the test: pp512, tg128, pp512+tg128, with the depth and the sequences."""
        parts = [f"{kind}{n}" for kind, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        depth = f" @ d{self.n_depth}" if self.n_depth else ""
        return "+".join(parts) + depth + (f" x{self.n_seqs}" if self.n_seqs > 1 else "")


def cases(
    prompts: Sequence[int],
    gens: Sequence[int],
    both: Sequence[tuple[int, int]],
    depths: Sequence[int],
    seqs: Sequence[int],
) -> Iterator[Case]:
    """Every test: prompts alone, then generations alone, then both; 0 stands for none."""
    for depth, n in itertools.product(depths, seqs):
        for n_prompt in filter(None, prompts):
            yield Case(n_prompt, 0, depth, n)
        for n_gen in filter(None, gens):
            yield Case(0, n_gen, depth, n)
        for n_prompt, n_gen in both:
            yield Case(n_prompt, n_gen, depth, n)


@dataclass(frozen=True)
class Result:
    """One line of the report; names are llama-bench's, and after `n_depth` some of our own.

    samples_ns: nanoseconds of each repetition; samples_ts: tokens per second. Both have mean and sample deviation.
    bytes_per_token, read_bandwidth (bytes/s), roofline_share: of decoding, null for prompts.
    fingerprint: of the logits, as `verify` prints it; null where not asked for.
    stats: of one more repetition, with every op timed: Stats.as_json of machine.roofline; null where not asked for.
    """

    build_commit: str
    build_number: int
    cpu_info: str
    gpu_info: str
    backends: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    type_k: str
    type_v: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_seqs: int
    device: str
    isa: str | None
    test_time: str
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    bytes_per_token: float | None = None
    read_bandwidth: float | None = None
    roofline_share: float | None = None
    samples_ns: list[int] = field(default_factory=list)
    samples_ts: list[float] = field(default_factory=list)
    fingerprint: str | None = None
    stats: dict[str, Any] | None = None


def spread(samples: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 of one sample)."""
    return statistics.fmean(samples), statistics.stdev(samples) if len(samples) > 1 else 0.0


_NOT_IN_CSV = ("samples_ns", "samples_ts", "fingerprint", "stats")


class Report:
    """The results of a run in one format: json (an array), jsonl, csv or md. Lines appear as tests end."""

    def __init__(self, form: str) -> None:
        self.form = form
        self._n = 0

    def begin(self) -> str:
        """What stands before the first result."""
        return {"json": "[\n", "md": _MD_HEAD, "csv": _csv_line(_CSV_FIELDS)}.get(self.form, "")

    def line(self, result: Result, label: str) -> str:
        """One result."""
        self._n += 1
        if self.form == "json":
            return (",\n" if self._n > 1 else "") + json.dumps(asdict(result), indent=2)
        if self.form == "jsonl":
            return json.dumps(asdict(result)) + "\n"
        if self.form == "csv":
            return _csv_line([asdict(result)[name] for name in _CSV_FIELDS])
        return _md_line(result, label)

    def end(self) -> str:
        """What stands after the last result."""
        return "\n]\n" if self.form == "json" else ""


_CSV_FIELDS = [name for name in Result.__dataclass_fields__ if name not in _NOT_IN_CSV]
_MD_HEAD = (
    "| model | size | params | backend | threads | test | t/s | of the limit |\n"
    "|---|---:|---:|---|---:|---:|---:|---:|\n"
)


def _csv_line(values: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(values)
    return out.getvalue()


def _md_line(r: Result, label: str) -> str:
    share = "" if r.roofline_share is None else f"{100 * r.roofline_share:.0f} %"
    cells = (
        r.model_type,
        f"{r.model_size / 2**20:.2f} MiB",
        f"{r.model_n_params / 1e6:.2f} M",
        f"{r.device}/{r.isa}" if r.isa else r.device,
        str(r.n_threads),
        label,
        f"{r.avg_ts:.2f} ± {r.stddev_ts:.2f}",
        share,
    )
    return "| " + " | ".join(cells) + " |\n"
