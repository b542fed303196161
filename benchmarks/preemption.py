"""Swap or recompute: what it takes a preempted sequence to come back, by its length, and what the engine's rule picks.

A sequence of each length decodes beside a short one, loses its pages, and comes back at once: by copies out and back,
or by computing its tokens anew (nothing of it is found in the index of prefixes). What is measured are the seconds
until its next token beyond those of as many decoding steps. Rounds are interleaved. The machine should have nothing
else to do.

    python benchmarks/preemption.py MODEL.gguf --lengths 16 64 256 1024 --json out.json --plot out.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpuinfer import LLM, SamplingParams
from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.sequence import Bounds, pages_of
from cpuinfer.engine.swap import CostRule

WAYS = ("swap", "recompute")
LEAST_MS = 0.01
"""What is drawn of a difference that noise made zero or less."""
BESIDE = 16
"""Prompt tokens of the sequence that runs on."""


class Pair:
    """A sequence of `length` tokens that decodes beside a short one, in an engine of its own."""

    def __init__(self, llm: LLM, length: int, most: int, folder: Path | None) -> None:
        limits = llm.limits
        self.engine = Engine(llm.executable, limits, 2, False, preemption="auto", swap_path=folder)
        self.rule = self.engine.costs
        vocabulary, n_tokens = llm.program.vocab_size, limits.n_pages * PAGE_TOKENS
        bounds = Bounds(vocabulary, limits.max_context, n_tokens, frozenset(), most)
        params = SamplingParams(temperature=0, max_tokens=most, ignore_eos=True)
        prompts = [[i * 7919 % vocabulary for i in range(n)] for n in (BESIDE, length)]
        beside, asked = (bounds.request(str(i), p, params) for i, p in enumerate(prompts))
        (self.sequence,) = asked.sequences
        self.engine.add(beside)
        self.engine.step()
        self.engine.add(asked)
        while len(self.sequence.tokens) == length:
            self.engine.step()

    def decode_s(self, steps: int) -> float:
        """Seconds of a step in which both decode: the median of some."""
        found = []
        for _ in range(steps):
            begin = time.perf_counter()
            self.engine.step()
            found.append(time.perf_counter() - begin)
        return statistics.median(found)

    def away_s(self, way: str) -> float:
        """Seconds that it costs to lose all pages and come back that way."""
        self.engine.costs.prefers_swap = lambda *_: way == "swap"  # type: ignore[method-assign]
        decode = self.decode_s(2)
        n, steps = len(self.sequence.tokens), 0
        begin = time.perf_counter()
        self.engine.scheduler.preempt()
        while len(self.sequence.tokens) == n:
            self.engine.step()
            steps += 1
        return time.perf_counter() - begin - steps * decode


def measure(llm: LLM, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Samples of both ways at one length, and what the rule says after them."""
    most = 4 * (options.rounds + 1) * len(WAYS) + 4
    pair = Pair(llm, length, 64 + 8 * most, options.swap_path)
    samples: dict[str, list[float]] = {way: [] for way in WAYS}
    lengths = []
    for i in range(options.rounds + 1):
        for way in WAYS:
            seconds = pair.away_s(way)
            lengths.append(pair.sequence.computed)
            if i:  # the first touches memory that nothing has touched
                samples[way].append(seconds)
    length = round(statistics.median(lengths))  # it has grown meanwhile
    n_bytes = pages_of(length) * llm.executable.kv.image_bytes
    estimates = {"swap": pair.rule.swap_s(n_bytes), "recompute": pair.rule.recompute_s(length)}
    picks = CostRule.prefers_swap(pair.rule, length, n_bytes)
    pair.engine.abort_all()
    return {
        "length": length,
        "samples": samples,
        "median": {way: statistics.median(samples[way]) for way in WAYS},
        "estimate": estimates,
        "picked": "swap" if picks else "recompute",
    }


def crossovers(found: Sequence[dict[str, Any]]) -> list[float]:
    """Lengths at which the medians cross, straight lines between those that were measured."""
    gaps = [(row["length"], row["median"]["recompute"] - row["median"]["swap"]) for row in found]
    return [
        a + (b - a) * x / (x - y)
        for (a, x), (b, y) in zip(gaps, gaps[1:], strict=False)
        if (x < 0) != (y < 0)
    ]


def rows(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line of a table for each length, in milliseconds."""
    yield "| tokens | swap ms | recompute ms | the rule's swap | the rule's recompute | cheaper | picked |"
    yield "|---:|---:|---:|---:|---:|---|---|"
    for row in found:
        times = [*row["median"].values(), *row["estimate"].values()]
        cheaper = min(WAYS, key=row["median"].__getitem__)
        cells = [str(row["length"]), *(f"{1e3 * s:.2f}" for s in times), cheaper, row["picked"]]
        yield "| " + " | ".join(cells) + " |"
    at = crossovers(found)
    yield "crossover at " + ", ".join(f"{n:.0f} tokens" for n in at) if at else "no crossover"


def plot(found: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Both ways over the length, the rule's estimates dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lengths = [row["length"] for row in found]
    for way, colour in zip(WAYS, ("tab:blue", "tab:orange"), strict=True):
        medians = [max(1e3 * row["median"][way], LEAST_MS) for row in found]
        axes.plot(lengths, medians, "o-", color=colour, label=way)
        estimates = [1e3 * row["estimate"][way] for row in found]
        axes.plot(lengths, estimates, "--", color=colour, label=f"{way}, by the rule")
    for at in crossovers(found):
        axes.axvline(at, color="grey", linewidth=0.8)
        axes.annotate(f" {at:.0f}", (at, axes.get_ylim()[0]))
    axes.set(xscale="log", yscale="log", xlabel="tokens of the sequence")
    axes.set(ylabel="ms until it goes on", title=title)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[1, 4, 16, 64, 256, 1024, 4096], metavar="N"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--swap-path", type=Path, help="a folder: swap to a file in it")
    parser.add_argument("--json", type=Path, help="write the samples here")
    parser.add_argument("--plot", type=Path, help="draw them here (needs matplotlib)")
    options = parser.parse_args()
    from cpuinfer.cli.bench_machine import git_commit, machine

    with LLM(options.model, threads=options.threads, kv_type=options.kv_type) as llm:
        found = [measure(llm, length, options) for length in sorted(options.lengths)]
        threads = llm.device.threads
    print("\n".join(rows(found)))
    if options.json:
        report = {
            "machine": machine(),
            "git_commit": git_commit(),
            "model": Path(options.model).name,
            "threads": threads,
            "kv_type": options.kv_type,
            "swap": "file" if options.swap_path else "memory",
            "crossovers": crossovers(found),
            "lengths": found,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(found, options.plot, f"{Path(options.model).name}, KV {options.kv_type}")


if __name__ == "__main__":
    main()
