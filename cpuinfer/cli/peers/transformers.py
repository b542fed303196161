"""transformers on torch, in bf16 and in f32, from the weights that transformers dequantises out of the GGUF file."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import Start
from cpuinfer.machine.system import physical_memory

TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


class Transformers:
    """A model for each type that memory has room for; scaled-dot-product attention, a growing cache, no compilation."""

    def __init__(self, start: Start) -> None:
        torch.set_num_threads(start.threads)
        source = Path(start.path or start.model)
        self._models: dict[str, Any] = {}
        memory = physical_memory()
        for name, dtype in TYPES.items():
            model = _load(source, dtype)
            parameters = sum(p.numel() for p in model.parameters())
            if name == "bf16" or 6 * parameters < memory / 2:
                self._models[name] = model
        self.settings = tuple(self._models)
        self._vocabulary = int(model.config.vocab_size)
        self._random = torch.Generator().manual_seed(0)
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.flags = {
            "threads": torch.get_num_threads(),
            "attention": model.config._attn_implementation,
        }

    def seconds(self, point: Case) -> dict[str, float]:
        """One run with each type."""
        with torch.inference_mode():
            return {name: self._time(model, point) for name, model in self._models.items()}

    def _time(self, model: Any, point: Case) -> float:
        cache = transformers.DynamicCache(config=model.config)
        self._step(model, cache, point.n_seqs, point.n_depth)
        self._run(model, cache, Case(point.n_prompt, min(point.n_gen, 1), 0, point.n_seqs))
        if done := cache.get_seq_length() - point.n_depth:
            cache.crop(-done)
        begin = perf_counter()
        self._run(model, cache, point)
        return perf_counter() - begin

    def _run(self, model: Any, cache: Any, point: Case) -> None:
        self._step(model, cache, point.n_seqs, point.n_prompt)
        for _ in range(point.n_gen):
            self._step(model, cache, point.n_seqs, 1)

    def _step(self, model: Any, cache: Any, seqs: int, n: int) -> None:
        if n:
            ids = torch.randint(0, self._vocabulary, (seqs, n), generator=self._random)
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _load(source: Path, dtype: Any) -> Any:
    where = {"gguf_file": source.name} if source.is_file() else {}
    folder = source.parent if source.is_file() else source
    loader = transformers.AutoModelForCausalLM
    model: Any = loader.from_pretrained(str(folder), dtype=dtype, local_files_only=True, **where)
    return model.eval()


def open_adapter(start: Start) -> Transformers:
    """See peers.Adapter."""
    return Transformers(start)
