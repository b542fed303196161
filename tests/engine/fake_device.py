"""An executable whose logits are a hash of the tokens it finds in its own KV pages."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.base import PAGE_TOKENS, Batch, Limits
from cpuinfer.devices.kv_memory import KVMemory

VOCAB = 67


_STEPS = np.arange(1, 1 << 10, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def hash_logits(tokens: list[int], vocab: int = VOCAB) -> NDArray[np.float32]:
    """Logits [vocab], -6 to 6, that any change of any token changes: splitmix64 from a hash of the tokens.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    return _logits(tuple(tokens), vocab)


@lru_cache(1 << 13)
def _logits(tokens: tuple[int, ...], vocab: int) -> NDArray[np.float32]:
    bits = np.uint64(hash(tokens) & 0xFFFFFFFFFFFFFFFF) + _STEPS[:vocab]
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    logits = (bits >> np.uint64(40)).astype(np.float32) * np.float32(12 / (1 << 24)) - np.float32(6)
    logits.flags.writeable = False
    return logits


class FakeExecutable:
    """Keeps tokens where a device keeps keys and values, so a wrong or stolen page gives other logits.

    Checks of every batch what the contract promises.
    """

    sampler = None

    def __init__(self, limits: Limits, vocab: int = VOCAB) -> None:
        self.limits = limits
        self.vocab = vocab
        self.tokens_of = np.full((limits.n_pages, PAGE_TOKENS), -1)
        self.kv = KVMemory(self.tokens_of.view(np.uint8)[None, None])
        self.steps = 0
        self.tokens = 0
        self.most_tokens = 0

    def run(self, batch: Batch) -> NDArray[np.float32]:
        limits, indptr = self.limits, batch.q_indptr
        n = len(batch.tokens)
        assert 0 < n <= limits.max_tokens
        assert len(batch.logit_rows) <= limits.max_rows
        assert indptr[0] == 0 and indptr[-1] == n and (np.diff(indptr) > 0).all()
        assert all(a.dtype == np.int32 for a in batch)
        assert sorted(set(batch.logit_rows.tolist())) == batch.logit_rows.tolist()
        written: set[tuple[int, int]] = set()
        past: dict[int, list[int]] = {}
        for table, begin, end in zip(batch.block_tables, indptr[:-1], indptr[1:], strict=True):
            positions = batch.positions[begin:end]
            assert (np.diff(positions) == 1).all() and positions[-1] < limits.max_context
            for t in range(begin, end):
                p = int(batch.positions[t])
                place = int(table[p // PAGE_TOKENS]), p % PAGE_TOKENS
                assert place not in written, "two tokens of a step share a place"
                written.add(place)
                self.tokens_of[place] = batch.tokens[t]
            for t in set(range(begin, end)) & set(batch.logit_rows.tolist()):
                p = int(batch.positions[t])
                past[t] = self.tokens_of[table].reshape(-1)[: p + 1].tolist()
        self.steps += 1
        self.tokens += n
        self.most_tokens = max(self.most_tokens, n)
        rows = [hash_logits(past[t], self.vocab) for t in batch.logit_rows.tolist()]
        return np.array(rows, np.float32).reshape(len(rows), self.vocab)

    def read(self, buffer: str) -> NDArray[np.float32]:
        raise ValueError(buffer)

    def op_seconds(self) -> NDArray[np.float64]:
        return np.zeros(0)


class FakeDetokenizer:
    """Token i is TEXT[i]: letters, some longer pieces, so that stop strings fall across tokens."""

    TEXT = [*"abcdefgh", "ab", "bc", "cab", "", *(chr(0x4E00 + i) for i in range(VOCAB - 12))]

    def push(self, token: int) -> str:
        return self.TEXT[token]

    def flush(self) -> str:
        return ""

    def fork(self) -> FakeDetokenizer:
        return self
