"""Sampling by the native library: one call chooses the tokens of all rows of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpuinfer.devices.arena import Allocator
from cpuinfer.devices.sampling import Choice, Logits, Score, Scored
from cpuinfer.machine.isa import Library


class NativeSampler:
    """A Sampler for rows of `vocab_size` logits, run by up to `threads` threads. Not thread-safe."""

    def __init__(
        self, library: Library, vocab_size: int, threads: int, allocator: Allocator
    ) -> None:
        self._ffi, self._lib = library.ffi, library.lib
        self._vocab_size = vocab_size
        self._workspace = allocator(self._lib.ci_sample_bytes(vocab_size, threads))
        self._sampling = self._ffi.new("ci_sampling *")
        self._scoring = self._ffi.new("ci_scoring *")
        for call in (self._sampling, self._scoring):
            call.vocab, call.n_threads = vocab_size, threads
            call.workspace = self._ffi.cast("void *", self._workspace.ctypes.data)
        self._choices: list[Any] = []

    def use(self, threads: int) -> None:
        """Run by so many from now on, at most those it was made for."""
        self._sampling.n_threads = self._scoring.n_threads = threads

    def choose(self, logits: Logits, choices: Sequence[Choice]) -> list[int]:
        """As Sampler.choose. Raises ValueError for logits of another shape or a row that they lack."""
        call, slots = self._sampling, self._slots(len(choices))
        edits, n_edits, last = [], 0, 0
        for c, (row, filters, seed, choice, position, edit) in zip(slots, choices, strict=False):
            last = max(row, last)
            c.row = row
            if filters.greedy:
                c.temperature = 0.0
            else:
                c.seed, c.choice, c.position = seed, choice, position
                c.temperature, c.top_p, c.min_p = filters.temperature, filters.top_p, filters.min_p
                c.top_k = min(filters.top_k, self._vocab_size)
            c.edit_begin = c.edit_end = n_edits
            if edit is not None and len(edit.ids):
                n_edits += len(edit.ids)
                c.edit_end = n_edits
                edits.append(edit)
        self._check(logits, last)
        alive = []
        if edits:
            ids = np.concatenate([edit.ids for edit in edits]).astype(np.int32)
            values = np.concatenate([edit.values for edit in edits]).astype(np.float32)
            if int(ids.min()) < 0 or int(ids.max()) >= self._vocab_size:
                raise ValueError(f"edits: an id is outside the vocabulary of {self._vocab_size}")
            call.edit_ids = self._pointer("int32_t *", ids)
            call.edit_values = self._pointer("float *", values)
            alive += [ids, values]
        call.logits, call.n = self._ffi.from_buffer("float[]", logits), len(choices)
        self._lib.ci_sample(call)
        del alive
        return [c.token for c in slots[: len(choices)]]

    def score(self, logits: Logits, scores: Sequence[Score]) -> list[Scored]:
        """As Sampler.score. Raises ValueError for logits of another shape, and a row or token that they lack."""
        self._check(logits, max(score.row for score in scores))
        if max(score.token for score in scores) >= self._vocab_size:
            raise ValueError(f"scores: a token is outside the vocabulary of {self._vocab_size}")
        call, n_listed = self._scoring, 0
        rows = self._ffi.new("ci_score[]", len(scores))
        for c, (row, token, n) in zip(rows, scores, strict=True):
            c.row, c.token, c.n, c.list_begin = row, token, min(n, self._vocab_size), n_listed
            n_listed += c.n
        ids, ranks = np.empty(n_listed, np.int32), np.empty(n_listed, np.int32)
        values = np.empty(n_listed, np.float32)
        call.ids, call.ranks = self._pointer("int32_t *", ids), self._pointer("int32_t *", ranks)
        call.values = self._pointer("float *", values)
        call.logits, call.n = self._ffi.from_buffer("float[]", logits), len(scores)
        call.scores = rows
        self._lib.ci_score_tokens(call)
        return [
            Scored(
                c.top,
                c.total,
                c.value,
                c.rank,
                ids[c.list_begin : c.list_begin + c.listed].tolist(),
                ranks[c.list_begin : c.list_begin + c.listed].tolist(),
                values[c.list_begin : c.list_begin + c.listed].tolist(),
            )
            for c in rows
        ]

    def _slots(self, n: int) -> list[Any]:
        """At least n structs ci_choice that follow each other."""
        if n > len(self._choices):
            self._sampling.choices = self._array = self._ffi.new("ci_choice[]", n)
            self._choices = [self._array[i] for i in range(n)]
        return self._choices

    def _check(self, logits: Logits, last: int) -> None:
        if logits.dtype != np.float32 or not logits.flags.c_contiguous:
            raise ValueError(f"logits: expected contiguous f32, got {logits.dtype}")
        if logits.ndim != 2 or logits.shape[1] != self._vocab_size or last >= logits.shape[0]:
            raise ValueError(
                f"logits: expected more than {last} rows of {self._vocab_size}, got {logits.shape}"
            )

    def _pointer(self, kind: str, array: Any) -> Any:
        return self._ffi.cast(kind, array.ctypes.data)
