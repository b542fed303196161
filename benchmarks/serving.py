"""Many requests on one machine: continuous, dynamic and static batching of this engine, and llama.cpp's server.

    benchmarks/peers/llama_cpp.sh PEERS
    python benchmarks/serving.py MODEL.gguf --load sharegpt --rate 0.5 1 2 --llama PEERS --json out.json --plot out.png

Loads (serving_load.py states their distributions): sharegpt (Poisson arrivals), bursts, streams (--size requests at
once, each followed by the next), agents (a common prefix), chats (turns that repeat what was said). A rate is requests
per second, `inf` all at once. Arrivals are virtual and open-loop: a request is due whether or not the engine keeps up,
and all waiting counts. Prompts are pieces of an English text in the model's tokens, answers greedy and of given length.

Ways to batch: continuous joins a request to the next step; static waits for --size requests and runs them to their end;
dynamic waits for --size or --window seconds; static-padded also computes every sequence of a batch until its longest has
ended. Each run is a process of its own; rounds are interleaved and who goes first changes. Our KV slots are measured
at every step, beside what reserving the whole context for each running sequence would take.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import serving_http
from serving_load import KINDS, Spec, items
from serving_report import draw, ratios, rows, table

TEXT = Path(__file__).parent / "data" / "english.txt"
LLAMA = "llama-server"
OURS = ("continuous", "dynamic", "static", "static-padded")


def load_of(options: argparse.Namespace, kind: str, rate: float) -> Spec:
    """The load of a point, in the model's tokens."""
    from cpuinfer.formats.cache import load_model
    from cpuinfer.hub import resolve
    from cpuinfer.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(load_model(resolve(str(options.model))).metadata)
    text = tuple(tokenizer.encode(TEXT.read_text(), add_special=False))
    return Spec(
        kind,
        options.requests,
        rate,
        options.seed,
        options.scale,
        options.context,
        text,
        options.size,
    )


def inside(options: argparse.Namespace) -> dict[str, Any]:
    """One run, in a process of its own: an engine, a way, a load."""
    engine, setting, kind, rate = options.inside
    load = items(load_of(options, kind, float(rate)))
    warm = [load[0].__class__(load[0].prompt[:16], 4, 0.0)]
    if engine == LLAMA:
        program = serving_http.find_server(options.llama)
        more = serving_http.SETTINGS[setting] + options.llama_args.split()
        with serving_http.Server(
            program,
            options.model,
            options.size,
            options.context,
            options.threads,
            options.kv_type,
            more,
        ) as server:
            client = serving_http.Client(server.port)
            client.run(warm)
            name = Path(server.command[0]).name
            about = {
                "version": serving_http.version(program),
                "command": [name, *server.command[3:]],
            }
            return {**client.run(load), "about": about}
    from serving_ours import Ours

    ours = Ours(
        options.model,
        engine,
        options.size,
        options.window,
        options.context,
        not options.no_prefix_caching,
        threads=options.threads,
        isa=options.isa,
        kv_type=options.kv_type,
        token_budget=options.token_budget,
        kv_memory_bytes=options.kv_bytes,
    )
    ours.run(warm)
    return {**ours.run(load), "about": ours.about()}


def one_run(way: tuple[str, str], kind: str, rate: float) -> Any:
    """`inside` of a new process. Raises RuntimeError where it fails."""
    words = [sys.executable, __file__, *sys.argv[1:], "--inside", *way, kind, str(rate)]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = " ".join(done.stderr.split()[-60:])
        raise RuntimeError(f"{' '.join(way)}, {kind} at {rate:g}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The points of each load and rate; every way once a round, who goes first changes."""
    ways = [(engine, "") for engine in options.engines]
    if options.llama:
        ways += [(LLAMA, setting) for setting in options.llama_settings]
    for kind, rate in product(options.load, options.rate):
        results = []
        runs: dict[tuple[str, str], list[Any]] = {way: [] for way in ways}
        for turn in range(options.rounds):
            first = turn % len(ways)
            for way in (*ways[first:], *ways[:first]):
                what = " ".join(way).strip()
                print(f"{kind} at {rate:g}, round {turn + 1}: {what}", file=sys.stderr)
                runs[way].append(one_run(way, kind, rate))
        for (engine, setting), made in runs.items():
            about = made[0].pop("about")
            point = {"load": kind, "rate": rate, "engine": engine, "setting": setting}
            results.append({**point, "about": about, "runs": made})
        yield results


def report(options: argparse.Namespace, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The file. Times of single tokens are left out: they are 100 times the rest."""
    from serving_load import LEAST, MOST, SHAREGPT_OUTPUT, SHAREGPT_PROMPT, SIGMA

    from cpuinfer.cli.bench_machine import command, git_commit, machine

    return {
        "format": 1,
        "command": command(),
        "git_commit": git_commit(),
        "machine": machine(),
        "model": options.model.name,
        "n_threads": options.threads,
        "kv_type": options.kv_type,
        "size": options.size,
        "window_s": options.window,
        "context": options.context,
        "requests": options.requests,
        "lengths": {
            "log_normal_means": [
                SHAREGPT_PROMPT / options.scale,
                SHAREGPT_OUTPUT / options.scale,
            ],
            "sigma": SIGMA,
            "clipped_to": [LEAST, min(MOST / options.scale, options.context // 2 - 1)],
        },
        "seed": options.seed,
        "results": [{**row, "rate": finite(row["rate"])} for row in found],
        "ratios": [{**row, "rate": finite(row["rate"])} for row in ratios(found)],
    }


def finite(rate: float) -> float | str:
    """A number that JSON has."""
    return "inf" if math.isinf(rate) else rate


def parser() -> argparse.ArgumentParser:
    """The options."""
    from cpuinfer.machine.cpu import default_threads

    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model", type=Path)
    made.add_argument("--load", nargs="+", choices=KINDS, default=["sharegpt"])
    made.add_argument("--rate", nargs="+", type=float, default=[1.0], metavar="PER_SECOND")
    made.add_argument("--requests", type=int, default=64)
    made.add_argument("--engines", nargs="*", choices=OURS, default=list(OURS))
    made.add_argument("--size", type=int, default=16, help="sequences at once, slots, a batch")
    made.add_argument("--window", type=float, default=0.5, help="seconds of dynamic batching")
    made.add_argument("--context", type=int, default=2048, help="most tokens of a sequence")
    made.add_argument("--scale", type=float, default=1.0, help="divide lengths by this")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--threads", type=int, default=default_threads().count)
    made.add_argument("--isa")
    made.add_argument("--kv-type", default="f16")
    made.add_argument("--kv-bytes", type=int, default=1 << 31, help="of our KV pages, at most")
    made.add_argument("--token-budget", type=int, default=512, help="most tokens of our steps")
    made.add_argument("--no-prefix-caching", action="store_true")
    made.add_argument("--llama", type=Path, help="llama-server, or the folder that it is in")
    settings = list(serving_http.SETTINGS)
    made.add_argument("--llama-settings", nargs="+", choices=settings, default=settings)
    made.add_argument("--llama-args", default="", help="more options for llama-server")
    made.add_argument("--json", type=Path, help="write the report")
    made.add_argument("--plot", type=Path, help="write pictures, a PNG (needs matplotlib)")
    made.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    return made


def main() -> None:
    """Measure, print the table, write the report."""
    options = parser().parse_args()
    if options.inside:
        print(json.dumps(inside(options)))
        return
    try:
        if options.plot:
            from cpuinfer.machine.plot import check_plotting

            check_plotting(options.plot)
        if options.llama:
            serving_http.find_server(options.llama)
        points, found = [], []
        for more in measure(options):
            points += more
            found = rows(points)
            if options.json:  # what was measured stays, whatever becomes of the rest
                options.json.write_text(json.dumps(report(options, found), indent=1) + "\n")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"serving.py: {error}")
    print(table(found))
    if options.plot:
        draw(options.plot, found)


if __name__ == "__main__":
    main()
