"""What Python adds to a step: scheduling, the batch's arrays, committing tokens.

Python: of every step the wall time less that of the device's two calls, which run the batch and choose the tokens. Call:
of the first of these the time less what its ops took, so its arguments, and the fork and join of the team. Medians over
decoding steps, by how many sequences run, greedy and sampled. The LLM's own thread and the texts of its answers are not
in it.

    python benchmarks/overhead.py MODEL.gguf [--sequences 1 8 32] [--steps 300] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer import LLM, SamplingParams
from cpuinfer.devices.base import PAGE_TOKENS, Batch
from cpuinfer.devices.meter import is_measurable
from cpuinfer.devices.sampling import Choice, Sampler, Scored
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.sequence import Bounds

PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=1 << 14, ignore_eos=True),
    "sampled": SamplingParams(seed=1, top_k=40, top_p=0.9, max_tokens=1 << 14, ignore_eos=True),
}
PROMPT = 64
"""Tokens of each prompt, all different."""
WARM = 20
"""Decoding steps that are not counted."""


class Timed:
    """An executable and its sampler that add up the seconds of their calls, and of the ops."""

    def __init__(self, llm: LLM) -> None:
        executable = llm.executable
        if not is_measurable(executable) or executable.sampler is None:
            raise ValueError("overhead: this device does not time its ops; use the device 'native'")
        self._executable, self._sampler = executable, executable.sampler
        self.kv, self.calls_s, self.ops_s, self.run_s = executable.kv, 0.0, 0.0, 0.0
        executable.measure_ops(True)

    @property
    def sampler(self) -> Sampler:
        return self

    def run(self, batch: Batch) -> NDArray[np.float32]:
        begin = perf_counter()
        logits = self._executable.run(batch)
        self.run_s = perf_counter() - begin
        self.ops_s = float(self._executable.op_seconds().sum())
        self.calls_s = perf_counter() - begin
        return logits

    def choose(self, logits: NDArray[np.float32], choices: Sequence[Choice]) -> list[int]:
        begin = perf_counter()
        tokens = self._sampler.choose(logits, choices)
        self.calls_s += perf_counter() - begin
        return tokens

    def score(self, logits: NDArray[np.float32], scores: Any) -> list[Scored]:
        return self._sampler.score(logits, scores)


def measure(
    llm: LLM, n: int, params: SamplingParams, steps: int
) -> tuple[list[float], list[float]]:
    """Seconds of Python, and of the call beside its ops, of so many steps in which n sequences decode."""
    limits, timed = llm.limits, Timed(llm)
    engine = Engine(timed, limits, n)  # type: ignore[arg-type]
    vocabulary = llm.program.vocab_size
    bounds = Bounds(
        vocabulary, limits.max_context, limits.n_pages * PAGE_TOKENS, frozenset(), PROMPT + steps
    )
    for i in range(n):
        prompt = [(i * PROMPT + j) * 7919 % vocabulary for j in range(PROMPT)]
        engine.add(bounds.request(str(i), prompt, params))
    python_s, call_s = [], []
    while len(python_s) < WARM + steps:
        begin = perf_counter()
        stepped = engine.step()
        seconds = perf_counter() - begin
        if len(stepped) == n and all(len(s.tokens) > PROMPT + 1 for s in stepped):
            python_s.append(seconds - timed.calls_s)
            call_s.append(timed.run_s - timed.ops_s)
    engine.abort_all()
    return python_s[WARM:], call_s[WARM:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the samples here")
    options = parser.parse_args()
    from cpuinfer.cli.bench_machine import command, git_commit, machine

    results = []
    print("| sequences | tokens are | Python, median ms | p90 | call, median ms |")
    print("|---:|---|---:|---:|---:|")
    with LLM(options.model, threads=options.threads, max_sequences=max(options.sequences)) as llm:
        for n in options.sequences:
            for name, params in PARAMS.items():
                python, call = (
                    [1e3 * s for s in found] for found in measure(llm, n, params, options.steps)
                )
                p90 = statistics.quantiles(python, n=10)[-1]
                middle, of_call = statistics.median(python), statistics.median(call)
                print(f"| {n} | {name} | {middle:.3f} | {p90:.3f} | {of_call:.3f} |")
                samples = {"python_ms": python, "call_ms": call}
                rounded = {key: [round(x, 4) for x in values] for key, values in samples.items()}
                results.append({"sequences": n, "tokens": name, **rounded})
    if options.json:
        report = {
            "command": command(),
            "git_commit": git_commit(),
            "machine": machine(),
            "model": options.model.name,
            "results": results,
        }
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
