"""OpenVINO GenAI's LLMPipeline, which reads GGUF files itself; with both of its attention backends.

It always samples (greedily here), and keeps the keys in a type of its own choice. Its own metrics tell prompt and
generation apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import Start, Unsupported

BACKENDS = ("PA", "SDPA")


class Pipelines:
    """A pipeline for each backend. Every prompt is drawn anew, since prefixes may be cached."""

    settings = BACKENDS

    def __init__(self, start: Start) -> None:
        source = start.path or start.model
        threads = {"INFERENCE_NUM_THREADS": start.threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipelines = {
            backend: openvino_genai.LLMPipeline(source, "CPU", ATTENTION_BACKEND=backend, **threads)
            for backend in BACKENDS
        }
        self._random = np.random.default_rng(0)
        self._tokens = len(self._pipelines["PA"].get_tokenizer().get_vocab())
        self.version = openvino_genai.__version__
        self.flags = {**threads, "source": Path(source).name, "kv_type": "OpenVINO's default"}

    def seconds(self, point: Case) -> dict[str, float]:
        """One run with each backend, after one of the same sizes but for the number of tokens generated."""
        if point.n_prompt and point.n_depth:
            raise Unsupported("a prompt after a depth is one prompt to the pipeline")
        found = {}
        for backend, pipeline in self._pipelines.items():
            self._generate(pipeline, point, 2)
            first, whole = self._generate(pipeline, point, point.n_gen + 1)
            found[backend] = whole - (0.0 if point.n_prompt else first)
        return found

    def _generate(self, pipeline: Any, point: Case, n: int) -> tuple[float, float]:
        """Seconds until the first token, and until all n, of every sequence."""
        # Without a depth, generation starts after one token, as in llama-bench.
        shape = point.n_seqs, max(1, point.n_prompt or point.n_depth)
        ids = self._random.integers(0, self._tokens, shape, np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        config = openvino_genai.GenerationConfig(max_new_tokens=n, ignore_eos=True, do_sample=False)
        metrics = pipeline.generate(inputs, config).perf_metrics
        return 1e-3 * metrics.get_ttft().mean, 1e-3 * metrics.get_generate_duration().mean


def open_adapter(start: Start) -> Pipelines:
    """See peers.Adapter."""
    return Pipelines(start)
