"""What a known beginning saves: time to first token of a prompt whose first tokens are a shared prefix.

    python benchmarks/prefix.py MODEL.gguf [--prefix 1500] [--rounds 5] [--json out.json]

Three ways, interleaved, each prompt with a prefix and a tail of its own round: cold (never seen), in process (another
tail came before), and after a restart (a new LLM, in a process of its own, that takes the pages from the prefix store).
Time is that of the engine from the request to its first token; loading the model is not in it, reading and checking
stored pages is. Between save and restart the files stay in the system's memory, as after a restart of the engine alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cpuinfer.cli.bench_stats import ratio, summary

WAYS = ("cold", "in_process", "after_restart")


def prompt(options: argparse.Namespace, turn: int, tail: int, vocab: int) -> list[int]:
    """The prefix of a round, and one of its tails: random tokens."""
    prefix = np.random.default_rng([turn]).integers(0, vocab, options.prefix)
    rest = np.random.default_rng([turn, tail]).integers(0, vocab, options.tail)
    return [*prefix.tolist(), *rest.tolist()]


def inside(options: argparse.Namespace) -> dict[str, Any]:
    """One process: times of a prompt by tail; a first one is cold, or comes from the store."""
    from cpuinfer import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    room = options.prefix + options.tail + 64
    with LLM(
        options.model,
        threads=options.threads,
        isa=options.isa,
        kv_type=options.kv_type,
        max_context=room,
        prefix_store=options.store,
    ) as llm:
        vocab = llm.program.vocab_size
        llm.generate([1] * 64, params)  # threads, and memory of a step
        found = []
        for tail in options.inside:
            (output,) = llm.generate(prompt(options, options.turn, tail, vocab), params)
            found.append(
                {
                    "ttft_s": output.timings.ttft_s,
                    "cached_tokens": output.num_cached_tokens,
                    "tokens": output.outputs[0].token_ids,
                }
            )
        return {"runs": found, "threads": llm.device.threads, "isa": llm.device.level}


def started(options: argparse.Namespace, store: str, turn: int, tails: Sequence[int]) -> Any:
    """`inside` in a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--store", store, "--turn", str(turn)]
    words += ["--inside", *map(str, tails)]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"prefix.py: a process failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds. Raises ValueError where a way did not find what it should, or answered otherwise."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    pages = options.prefix // 16 * 16
    about: Any = {}
    for turn in range(options.rounds):
        with tempfile.TemporaryDirectory() as store:
            first = started(options, store, turn, (0, 1))
            second = started(options, store, turn, (2, 0))
        runs = (*first["runs"], second["runs"][0])
        cached = [run["cached_tokens"] for run in runs]
        if cached != [0, pages, pages]:
            raise ValueError(f"cached tokens {cached}, expected {[0, pages, pages]}")
        if second["runs"][1]["tokens"] != runs[0]["tokens"]:
            raise ValueError("stored pages gave another answer")
        for way, run in zip(WAYS, runs, strict=True):
            times[way].append(run["ttft_s"])
        about = {"threads": first["threads"], "isa": first["isa"]}
    return {**about, "times": times}


def report(options: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """The file: every sample, medians and how many times shorter."""
    from cpuinfer.cli.bench_machine import command, git_commit, machine
    from cpuinfer.cli.output import version

    times = found["times"]
    return {
        "format": 1,
        "command": command(),
        "version": version(),
        "git_commit": git_commit(),
        "machine": machine(),
        "model": options.model.name,
        "n_threads": found["threads"],
        "isa": found["isa"],
        "kv_type": options.kv_type,
        "prefix_tokens": options.prefix,
        "tail_tokens": options.tail,
        "rounds": options.rounds,
        "ttft_s": {way: {**asdict(summary(s)), "samples": s} for way, s in times.items()},
        "times_shorter": {way: asdict(ratio(times["cold"], times[way])) for way in WAYS[1:]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--prefix", type=int, default=1500, help="tokens that prompts share")
    parser.add_argument("--tail", type=int, default=16, help="tokens of each prompt's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa")
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--json", type=Path, help="write the report, with all samples")
    for hidden, kind in (("--store", Path), ("--turn", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--inside", type=int, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options)))
        return
    try:
        found = measure(options)
    except ValueError as error:
        sys.exit(f"prefix.py: {error}")
    for way, samples in found["times"].items():
        shorter = statistics.median(found["times"]["cold"]) / statistics.median(samples)
        print(f"{way}: {1000 * statistics.median(samples):.1f} ms, {shorter:.1f} times shorter")
    if options.json:
        options.json.write_text(json.dumps(report(options, found), indent=1) + "\n")


if __name__ == "__main__":
    main()
