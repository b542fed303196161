"""CTranslate2 on a folder that its converter wrote: --peer ctranslate2=FOLDER.

It reads no GGUF. The weights of a GGUF file become such a folder, int8 with a scale a row, by
benchmarks/peers/ctranslate2_int8.py. It always samples (greedily here).
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import ctranslate2
import numpy as np

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import Start, Unsupported


class Generators:
    """One model. Every run has a cache of its own, and batches are static."""

    settings = ("int8",)

    def __init__(self, start: Start) -> None:
        if start.path is None or not (Path(start.path) / "vocabulary.json").exists():
            raise FileNotFoundError(
                f"no folder of its converter at {start.path}; give --peer ctranslate2=FOLDER"
            )
        threads = {"inter_threads": 1, "intra_threads": start.threads}
        self._model = ctranslate2.Generator(start.path, "cpu", compute_type="int8", **threads)
        self._words = json.loads((Path(start.path) / "vocabulary.json").read_text())
        self._random = np.random.default_rng(0)
        self.version = f"ctranslate2 {ctranslate2.__version__}"
        self.flags = {
            **threads,
            "source": Path(start.path).name,
            "compute_type": self._model.compute_type,
            "kv_type": "f32",
        }

    def seconds(self, point: Case) -> dict[str, float]:
        """A run after a shorter one. A prompt's time has its first token's sampling in it; a generation's is that of
        n_gen tokens after the one which ends the prompt."""
        if point.n_prompt and point.n_depth:
            raise Unsupported("a prompt after a depth is one prompt to it")
        prompt = max(1, point.n_prompt or point.n_depth)
        before = self._run(point.n_seqs, prompt, 1)
        whole = self._run(point.n_seqs, prompt, point.n_gen + 1)
        return {"int8": whole - (0.0 if point.n_prompt else before)}

    def _run(self, seqs: int, prompt: int, n: int) -> float:
        """Seconds of a prompt of random tokens and n generated ones, of every sequence."""
        ids = self._random.integers(0, len(self._words), (seqs, prompt))
        words = [[self._words[i] for i in row] for row in ids]
        begin = perf_counter()
        found = self._model.generate_batch(
            words,
            max_length=n,
            min_length=n,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=0,
        )
        seconds = perf_counter() - begin
        if any(len(row.sequences_ids[0]) != n for row in found):
            raise RuntimeError(f"{n} tokens wanted, other numbers generated")
        return seconds


def open_adapter(start: Start) -> Generators:
    """See peers.Adapter."""
    return Generators(start)
