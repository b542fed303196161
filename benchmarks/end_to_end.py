"""Speed beside other engines: same file, interleaved rounds, each engine in a process of its own; medians and spread.

    benchmarks/peers/llama_cpp.sh PEERS
    python benchmarks/end_to_end.py --peer llama.cpp=PEERS MODEL.gguf... [--suite speed depth batch] [--json out.json]
    cpuinfer bench compare out.json later.json

Suites: speed (a prompt of 512; 128 tokens generated), depth (generation after 0 to 8000 tokens, a prompt of 8000), batch
(64 tokens of each of 1 to 32 sequences after prompts of 128, also with our whole engine: scheduling and sampling). Every
peer counts with its best setting at each point. `cpuinfer bench --peer` runs any other point.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from cpuinfer.cli.bench_machine import command
from cpuinfer.cli.bench_peer import OURS, Plan, Report, measure, parse_peers, table
from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import LIMIT
from cpuinfer.machine.cpu import default_threads

SUITES = {
    "speed": (Case(0, 128, 0, 1), Case(512, 0, 0, 1)),
    "depth": (
        *(Case(0, 32, depth, 1) for depth in (0, 1024, 4096, 8000)),
        Case(8000, 0, 0, 1),
    ),
    "batch": tuple(Case(0, 64, 128, n) for n in (1, 2, 4, 8, 16, 32)),
}
WHOLE = "cpuinfer-engine"


def run(args: argparse.Namespace) -> Report:
    """All suites of all models, one after the other, in one report, which is written after each."""
    peers = parse_peers(args.peer) if args.peer else {}
    words = command()
    whole = Report(plan_of(args, tuple(args.models), args.suite, peers), words)
    for model, suite in product(args.models, args.suite):
        plan = plan_of(args, (model,), [suite], peers)
        report = measure(plan, words, lambda what: print(what, file=sys.stderr))
        whole.about += report.about
        whole.samples += report.samples
        whole.skipped += report.skipped
        whole.fingerprints |= report.fingerprints
        if args.json:
            args.json.write_text(json.dumps(whole.as_json(), indent=1) + "\n")
    return whole


def plan_of(
    args: argparse.Namespace,
    models: tuple[Path, ...],
    suites: Sequence[str],
    peers: Mapping[str, str | None],
) -> Plan:
    """What the options ask for, of some models and suites."""
    points = tuple(point for suite in suites for point in scaled(SUITES[suite], args.scale))
    whole = {WHOLE: None} if "batch" in suites else {}
    engines = {OURS: None, LIMIT: None, **whole, **peers}
    return Plan(models, tuple(args.threads), points, engines, args.rounds, args.kv_type)


def scaled(points: tuple[Case, ...], scale: int) -> tuple[Case, ...]:
    """The points with every number of tokens divided by `scale` (but not below 1): a quick run that shows it works."""

    def less(n: int) -> int:
        return max(1, n // scale) if n else 0

    return tuple(Case(less(p.n_prompt), less(p.n_gen), less(p.n_depth), p.n_seqs) for p in points)


def main() -> None:
    """Measure, print the table, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--peer", action="append", metavar="NAME[=PATH],...")
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=["speed"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[default_threads().count])
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--scale", type=int, default=1, help="divide the points' tokens by this")
    parser.add_argument("--json", type=Path, help="write the report, with all samples")
    args = parser.parse_args()
    try:
        report = run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"end_to_end.py: {error}")
    print(table(report))


if __name__ == "__main__":
    main()
