"""What serving.py's runs say: percentiles of each run, medians over rounds, ratios, a table and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cpuinfer.cli.bench_stats import ratio

PERCENTILES = (50, 95, 99)
FIGURES = ("output_tokens_per_s", "ttft_s", "tpot_s", "itl_s", "latency_s")
"""ttft: from the intended arrival to the first token. tpot: mean time between a request's tokens after the first. itl:
every time between two; of a server that withholds tokens of an unfinished character between what it sends. latency: from
the intended arrival to the last token."""


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One run: throughput, and percentiles over its requests. Raises ValueError for a request without a token."""
    if not records or any(not r["times"] for r in records):
        raise ValueError("a request has no token")
    last = max(r["times"][-1] for r in records)
    first = min(r["intended"] for r in records)
    n_output = sum(r["n_output"] for r in records)
    gaps = [b - a for r in records for a, b in zip(r["times"], r["times"][1:], strict=False)]
    several = [r for r in records if r["n_output"] > 1]
    return {
        "seconds": last - first,
        "output_tokens": n_output,
        "prompt_tokens": sum(r["n_prompt"] for r in records),
        "requests_per_s": len(records) / (last - first),
        "output_tokens_per_s": n_output / (last - first),
        "ttft_s": percentiles([r["times"][0] - r["intended"] for r in records]),
        "tpot_s": percentiles(
            [(r["times"][-1] - r["times"][0]) / (r["n_output"] - 1) for r in several]
        ),
        "itl_s": percentiles(gaps),
        "latency_s": percentiles([r["times"][-1] - r["intended"] for r in records]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 (linear between neighbours) and the mean; empty where there is no value."""
    if not values:
        return {}
    found = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return {**found, "mean": float(np.mean(values))}


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median over rounds of every number; of what some round lacks, nothing."""
    found: dict[str, Any] = {}
    for key, value in runs[0].items():
        if any(key not in run for run in runs):
            continue
        if isinstance(value, Mapping):
            found[key] = medians([run[key] for run in runs])
        else:
            found[key] = median(run[key] for run in runs)
    return found


def rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each load, rate and engine: medians over rounds, KV slots, and every round's figures."""
    found = []
    for result in results:
        runs = [figures(run["records"]) for run in result["runs"]]
        slots = medians([run["slots"] for run in result["runs"]])
        about = {k: v for k, v in result.items() if k != "runs"}
        found.append({**about, **medians(runs), "kv": slots, "rounds": runs})
    return found


def best(found: Sequence[Mapping[str, Any]], load: str, rate: Any, engine: str) -> Any:
    """The setting of an engine with the highest throughput at a point; None where it was not measured."""
    there = [r for r in found if (r["load"], r["rate"], r["engine"]) == (load, rate, engine)]
    return max(there, key=lambda r: float(r["output_tokens_per_s"]), default=None)


def ratios(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Continuous batching beside the best setting of everything else, at each point."""
    pairs = []
    for mine in found:
        if mine["engine"] != "continuous":
            continue
        for engine in dict.fromkeys(r["engine"] for r in found):
            theirs = best(found, mine["load"], mine["rate"], engine)
            if engine == "continuous" or theirs is None:
                continue
            speeds = [[run["output_tokens_per_s"] for run in r["rounds"]] for r in (mine, theirs)]
            late = [[run["ttft_s"]["p95"] for run in r["rounds"]] for r in (theirs, mine)]
            pairs.append(
                {
                    **{k: mine[k] for k in ("load", "rate")},
                    "beside": engine,
                    "setting": theirs["setting"],
                    "throughput": asdict(ratio(*speeds)),
                    "p95_ttft_shorter": asdict(ratio(*late)),
                }
            )
    return pairs


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """For people, in Markdown."""
    lines = [
        "| load | rate | engine | output tokens/s | TTFT p50 / p95 / p99 (s) | TPOT p50 / p95 / p99 (ms) | KV waste |"
        " reserving the context | pages shared |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        kv = row["kv"]
        cells = (
            row["load"],
            f"{row['rate']:g}",
            _name(row),
            f"{row['output_tokens_per_s']:.1f}",
            " / ".join(f"{row['ttft_s'][f'p{p}']:.2f}" for p in PERCENTILES),
            " / ".join(f"{1000 * row['tpot_s'].get(f'p{p}', 0):.0f}" for p in PERCENTILES),
            f"{100 * kv['kv_waste']:.1f} %" if kv else "",
            f"{100 * kv['kv_waste_reserving_context']:.0f} %" if kv else "",
            f"{kv['mean_pages_shared']:.1f}" if kv else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['engine']} {row['setting']}".strip()


def draw(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG: a row for each load; throughput and percentiles of latencies over the rate. Needs matplotlib.

    A load of one rate has the engines side by side instead.
    """
    from matplotlib.figure import Figure

    loads = list(dict.fromkeys(r["load"] for r in found))
    figure = Figure(figsize=(16, 3.6 * len(loads)), layout="constrained")
    for line, load in zip(figure.subplots(len(loads), 3, squeeze=False), loads, strict=True):
        own = [r for r in found if r["load"] == load]
        engines = list(dict.fromkeys(_name(r) for r in own))
        alone = len({r["rate"] for r in own}) == 1
        for n, engine in enumerate(engines):
            points = [r for r in own if _name(r) == engine]
            points.sort(key=lambda r: float(r["rate"]))
            at = [float(n)] if alone else [float(r["rate"]) for r in points]
            _draw_engine(line, at, points, f"C{n}", engine)
        line[0].set(title=f"{load}: output tokens per second")
        line[0].set_ylim(0, 1.1 * max(r["output_tokens_per_s"] for r in own))
        line[1].set(title="time to first token, s: p50, dotted p95 and p99", yscale="log")
        line[2].set(title="time per output token, ms: p50, dotted p95 and p99", yscale="log")
        for axes in line:
            if alone:
                axes.set_xticks(range(len(engines)), engines)
                axes.margins(x=0.3)
            else:
                axes.set_xlabel("requests per second, or at once")
            axes.grid(alpha=0.3)
        line[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _draw_engine(
    line: Any, at: Sequence[float], points: Sequence[Mapping[str, Any]], color: str, label: str
) -> None:
    """One engine's points, in throughput and both latencies."""
    speeds = [r["output_tokens_per_s"] for r in points]
    line[0].plot(at, speeds, color=color, marker="o", label=label)
    for axes, key, scale in ((line[1], "ttft_s", 1), (line[2], "tpot_s", 1000)):
        for percentile, marker in zip(PERCENTILES, "o^s", strict=True):
            values = [scale * r[key][f"p{percentile}"] for r in points]
            style = "-" if percentile == PERCENTILES[0] else ":"
            axes.plot(at, values, color=color, marker=marker, linestyle=style)
