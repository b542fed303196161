"""onnxruntime-genai on a folder that its model builder wrote: --peer onnxruntime-genai=FOLDER.

It reads no GGUF. The weights of a GGUF file become such a folder, 4 bits in blocks of 32 with products in int8, by
benchmarks/peers/onnxruntime_genai.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime_genai

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import Start, Unsupported


class Generators:
    """One model, and a generator (with its KV cache) for every run. Batches are static."""

    settings = ("cpu",)

    def __init__(self, start: Start) -> None:
        if start.path is None or not (Path(start.path) / "genai_config.json").exists():
            raise FileNotFoundError(
                f"no folder of its model builder at {start.path}; give --peer onnxruntime-genai=FOLDER"
            )
        config = onnxruntime_genai.Config(start.path)
        threads = {"intra_op_num_threads": start.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self._model = onnxruntime_genai.Model(config)
        self._vocabulary = json.loads((Path(start.path) / "genai_config.json").read_text())[
            "model"
        ]["vocab_size"]
        self._random = np.random.default_rng(0)
        self.version = f"onnxruntime-genai {onnxruntime_genai.__version__}"
        self.flags = {**threads, "source": Path(start.path).name, "kv_type": "the model's own"}

    def seconds(self, point: Case) -> dict[str, float]:
        """A run after a shorter one, both with a cache of their own."""
        if point.n_prompt and point.n_depth:
            raise Unsupported(
                "a prompt after a depth is not asked of it: it has no chunked prefill"
            )
        self._run(Case(point.n_prompt, min(point.n_gen, 2), min(point.n_depth, 64), point.n_seqs))
        return {"cpu": self._run(point)}

    def _run(self, point: Case) -> float:
        params = onnxruntime_genai.GeneratorParams(self._model)
        # Room for every token asked for, and no end before that.
        room = max(1, point.n_depth) + point.n_prompt + point.n_gen + 2
        params.set_search_options(
            batch_size=point.n_seqs, max_length=room, min_length=room, do_sample=False
        )
        generator = onnxruntime_genai.Generator(self._model, params)
        if not point.n_prompt:  # generation starts after one token, as in llama-bench
            generator.append_tokens(self._tokens(point.n_seqs, max(1, point.n_depth)))
            generator.generate_next_token()  # chooses from the logits that are there
        begin = perf_counter()
        if point.n_prompt:
            generator.append_tokens(self._tokens(point.n_seqs, point.n_prompt))
        for _ in range(point.n_gen):
            generator.generate_next_token()
        return perf_counter() - begin

    def _tokens(self, seqs: int, n: int) -> Any:
        ids = self._random.integers(0, self._vocabulary, (seqs, n), np.int32)
        return ids if seqs > 1 else ids[0]


def open_adapter(start: Start) -> Generators:
    """See peers.Adapter."""
    return Generators(start)
