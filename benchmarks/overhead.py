"""What Python adds to a step: scheduling, the batch's arrays, committing tokens, forking and joining the team.

Of every step the wall time less what the ops took, which the device's first thread measures, and less the call that
chooses the tokens: medians over decoding steps, by how many sequences run, greedy and sampled. The LLM's own thread and
the texts of its answers are not in it.

    python benchmarks/overhead.py MODEL.gguf [--sequences 1 8 32] [--steps 300] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
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
    """An executable and its sampler that add up the seconds of what is not Python."""

    def __init__(self, llm: LLM) -> None:
        executable = llm.executable
        if not is_measurable(executable) or executable.sampler is None:
            raise ValueError("overhead: this device does not time its ops; use the device 'native'")
        self._executable, self._sampler = executable, executable.sampler
        self.kv, self.seconds = executable.kv, 0.0
        executable.measure_ops(True)

    @property
    def sampler(self) -> Sampler:
        return self

    def run(self, batch: Batch) -> NDArray[np.float32]:
        self._executable.op_seconds()
        logits = self._executable.run(batch)
        self.seconds += float(self._executable.op_seconds().sum())
        return logits

    def choose(self, logits: NDArray[np.float32], choices: Sequence[Choice]) -> list[int]:
        begin = perf_counter()
        tokens = self._sampler.choose(logits, choices)
        self.seconds += perf_counter() - begin
        return tokens

    def score(self, logits: NDArray[np.float32], scores: Any) -> list[Scored]:
        return self._sampler.score(logits, scores)


def measure(llm: LLM, n: int, params: SamplingParams, steps: int) -> list[float]:
    """Seconds that Python added to each of so many steps in which n sequences decode."""
    limits, timed = llm.limits, Timed(llm)
    engine = Engine(timed, limits, n)  # type: ignore[arg-type]
    vocabulary = llm.program.vocab_size
    bounds = Bounds(
        vocabulary, limits.max_context, limits.n_pages * PAGE_TOKENS, frozenset(), PROMPT + steps
    )
    for i in range(n):
        prompt = [(i * PROMPT + j) * 7919 % vocabulary for j in range(PROMPT)]
        engine.add(bounds.request(str(i), prompt, params))
    found = []
    while len(found) < WARM + steps:
        timed.seconds = 0.0
        begin = perf_counter()
        decoding = len(engine.step()) == n and not any(
            len(sequence.tokens) == PROMPT for sequence in engine.scheduler.sequences
        )
        if decoding:
            found.append(perf_counter() - begin - timed.seconds)
    engine.abort_all()
    return found[WARM:]


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
    from cpuinfer.cli.bench_machine import git_commit, machine

    results = []
    print("| sequences | tokens are | median ms | p90 ms |\n|---:|---|---:|---:|")
    with LLM(options.model, threads=options.threads, max_sequences=max(options.sequences)) as llm:
        for n in options.sequences:
            for name, params in PARAMS.items():
                found = measure(llm, n, params, options.steps)
                p90 = statistics.quantiles(found, n=10)[-1]
                print(f"| {n} | {name} | {1e3 * statistics.median(found):.3f} | {1e3 * p90:.3f} |")
                results.append(
                    {
                        "sequences": n,
                        "tokens": name,
                        "samples_ms": [round(1e3 * s, 4) for s in found],
                    }
                )
    if options.json:
        report = {
            "command": [Path(word).name if "/" in word else word for word in sys.argv],
            "git_commit": git_commit(),
            "machine": machine(),
            "model": options.model.name,
            "results": results,
        }
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
