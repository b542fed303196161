"""llama.cpp through llama-cpp-python's low-level functions, for machines without llama-bench."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import Start

_GGML_TYPES = {"f32": 0, "f16": 1, "bf16": 30}


class Library:
    """One model, and a context for each setting of flash attention; random tokens and no sampling, as llama-bench."""

    settings = ("fa=0", "fa=1")

    def __init__(self, start: Start) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            start.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp does not load {start.model}")
        self._tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        most = max(512, start.n_seqs)
        self._batch = llama_cpp.llama_batch_init(most, 0, 1)
        self._most = most
        self._contexts = {
            setting: self._context(start, int(setting[-1])) for setting in self.settings
        }
        self._random = np.random.default_rng(0)
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self.flags = {
            "n_threads": start.threads,
            "n_ubatch": most,
            "system": llama_cpp.llama_print_system_info().decode(),
        }

    def _context(self, start: Start, flash: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = start.n_seqs * -(-start.context // 256) * 256
        params.n_seq_max = start.n_seqs
        params.n_batch = params.n_ubatch = self._most
        params.n_threads = params.n_threads_batch = start.threads
        params.flash_attn_type = flash
        params.type_k = params.type_v = _GGML_TYPES[start.kv_type]
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise ValueError(f"llama.cpp makes no context of {params.n_ctx} tokens")
        return context

    def seconds(self, point: Case) -> dict[str, float]:
        """One run with each setting."""
        return {setting: self._time(point, context) for setting, context in self._contexts.items()}

    def _time(self, point: Case, context: Any) -> float:
        memory = llama_cpp.llama_get_memory(context)
        llama_cpp.llama_memory_clear(memory, False)
        self._prefill(context, 0, point.n_depth, point.n_seqs)
        self._run(context, Case(point.n_prompt, min(point.n_gen, 1), point.n_depth, point.n_seqs))
        for sequence in range(point.n_seqs):
            llama_cpp.llama_memory_seq_rm(memory, sequence, point.n_depth, -1)
        begin = perf_counter()
        self._run(context, point)
        return perf_counter() - begin

    def _run(self, context: Any, point: Case) -> None:
        self._prefill(context, point.n_depth, point.n_prompt, point.n_seqs)
        begin = point.n_depth + point.n_prompt
        for at in range(begin, begin + point.n_gen):
            self._decode(context, [at] * point.n_seqs, range(point.n_seqs))

    def _prefill(self, context: Any, begin: int, n: int, seqs: int) -> None:
        for sequence in range(seqs):
            for at in range(begin, begin + n, self._most):
                count = min(self._most, begin + n - at)
                self._decode(context, range(at, at + count), [sequence] * count)

    def _decode(self, context: Any, positions: Sequence[int], sequences: Sequence[int]) -> None:
        """One batch; logits of each sequence's last token."""
        batch = self._batch
        batch.n_tokens = len(positions)
        tokens = self._random.integers(0, self._tokens, len(positions)).tolist()
        for i, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
            batch.token[i], batch.pos[i] = tokens[i], position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = i + 1 == len(positions) or sequences[i + 1] != sequence
        status = llama_cpp.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        llama_cpp.llama_synchronize(context)
