"""Decode and prefill speed beside llama.cpp: same file, one run, interleaved, each engine in a process of its own.

Build the peer first: benchmarks/peers/llama_cpp.sh FOLDER. llama.cpp counts with its better setting of flash attention.

    python benchmarks/end_to_end.py --llama-bench FOLDER/llama-bench MODEL.gguf... [--rounds 5] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

Samples = dict[tuple[str, str], list[float]]


def machine() -> dict[str, str]:
    """What a reader needs to judge the numbers."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def run(command: list[str]) -> list[dict[str, Any]]:
    """The JSON rows that a bench command prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def one_round(args: argparse.Namespace, model: Path, samples: Samples) -> None:
    """Each engine once, one after the other; tokens per second are added to samples."""
    common = ["-m", str(model), "-p", str(args.prompt), "-n", str(args.generate)]
    common += ["-t", str(args.threads), "-r", "1", "-o", "json"]
    if args.depth:
        common += ["-d", str(args.depth)]
    engines = {
        "llama.cpp fa=0": [str(args.llama_bench), "-fa", "0", *common],
        "llama.cpp fa=1": [str(args.llama_bench), "-fa", "1", *common],
        "cpuinfer": [sys.executable, "-m", "cpuinfer.cli", "bench", *common],
    }
    for engine, command in engines.items():
        for row in run(command):
            test = "prefill" if row["n_prompt"] else "decode"
            samples.setdefault((engine, test), []).append(row["avg_ts"])


def summarise(samples: Samples) -> dict[str, Any]:
    """Medians, spread, and the ratio to the better of the peer's two settings."""
    out: dict[str, Any] = {}
    for test in ("decode", "prefill"):
        rows = {
            engine: {
                "median": statistics.median(xs),
                "min": min(xs),
                "max": max(xs),
                "samples": xs,
            }
            for (engine, kind), xs in samples.items()
            if kind == test
        }
        best = max(r["median"] for e, r in rows.items() if e != "cpuinfer")
        out[test] = {**rows, "ratio": rows["cpuinfer"]["median"] / best}
    return out


def main() -> None:
    """Run the rounds and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": machine(),
        "command": [Path(word).name for word in sys.argv],
        "models": {},
    }
    all_samples: dict[Path, Samples] = {model: {} for model in args.models}
    for _ in range(args.rounds):
        for model in args.models:
            one_round(args, model, all_samples[model])
    for model, samples in all_samples.items():
        report["models"][model.name] = summary = summarise(samples)
        for test, rows in summary.items():
            figures = ", ".join(f"{e} {r['median']:.1f}" for e, r in rows.items() if e != "ratio")
            print(f"{model.name} {test}: {figures} tokens/s; ratio {rows['ratio']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
