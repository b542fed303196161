"""Who runs in a step, and with how many tokens."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from cpuinfer.devices.base import PAGE_TOKENS, Batch, Limits
from cpuinfer.engine.blocks import NO_PREFIX, BlockPool, Known
from cpuinfer.engine.pins import Pins
from cpuinfer.engine.prefix_store import PrefixStore
from cpuinfer.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """A sequence's part of a step: its next n_tokens tokens; logits of the last n_rows of them."""

    sequence: Sequence
    n_tokens: int
    n_rows: int


@dataclass(frozen=True)
class Step:
    """A step's chunks, and the Batch that says the same to a device."""

    chunks: tuple[Chunk, ...]
    batch: Batch


class Scheduler:
    """First come, first served, within the limits of a step.

    - A running sequence holds pages for all its tokens. One that needs a further page takes it; if
      none is free, the latest of the running sequences gives all of its pages back, waits as the
      first in the queue, and later computes its tokens anew (to the same keys and values).
    - The first in the queue is admitted when there are pages for all its tokens and one more for
      every running sequence, so that it is not sent back at once.
    - It starts with the pages, of any sequence that came before, that hold its beginning: of the same
      tokens keys and values have the same bits, whatever step computed them. Full pages are shared,
      and never written again.
    - In a step, sequences that decode take their one token first, then prompts take what is left,
      in order of arrival.

    No deadlock: the earliest running sequence is never sent back while another runs, and every
    sequence alone fits the pool (the caller checks that). Sequences that run are always earlier
    than those that wait.
    """

    def __init__(
        self,
        limits: Limits,
        max_sequences: int,
        prefix_caching: bool,
        store: PrefixStore | None = None,
    ) -> None:
        self.limits = limits
        self.max_sequences = max_sequences
        self.prefix_caching = prefix_caching
        self.pool = BlockPool(limits.n_pages)
        self.pins = Pins(self.pool)
        self._store = store
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()

    @property
    def has_work(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises ValueError if it could outgrow the pool."""
        n_computed = sequence.most_computed
        if n_computed > min(self.pins.room * PAGE_TOKENS, self.limits.max_context):
            pinned = f" ({self.pins.n_pages} more are pinned)" if self.pins.n_pages else ""
            raise ValueError(
                f"{n_computed} tokens do not fit {self.pins.room} KV pages of {PAGE_TOKENS}{pinned}"
                f" and a context of {self.limits.max_context}"
            )
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its pages become free."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pins.drop(sequence)
        self._release(sequence)

    def schedule(self) -> Step:
        """The next step.

        Of a sequence only what it holds changes, so a step that failed can be scheduled again.
        """
        self._extend()
        tokens, rows = self.limits.max_tokens, self.limits.max_rows
        chunks: list[Chunk] = []
        decoding = [sequence for sequence in self.running if sequence.remaining == 1]
        prefill = (
            [sequence for sequence in self.running if sequence.remaining > 1]
            if len(decoding) < len(self.running)
            else []
        )
        for sequence in decoding + prefill:
            if chunk := _chunk(sequence, tokens, rows):
                chunks.append(chunk)
                tokens, rows = tokens - chunk.n_tokens, rows - chunk.n_rows
        while tokens and (found := self._admissible()) is not None:
            chunk = _chunk(self._admit(found), tokens, rows)
            if chunk is None:
                break
            chunks.append(chunk)
            tokens, rows = tokens - chunk.n_tokens, rows - chunk.n_rows
        return Step(tuple(chunks), make_batch(chunks))

    def _extend(self) -> None:
        """Give every running sequence pages for its tokens, earliest first, sending back latest."""
        position = 0
        while position < len(self.running):
            sequence = self.running[position]
            missing = sequence.pages_missing
            while missing > self.pool.n_free and self.running[-1] is not sequence:
                self._send_back()
            if missing > self.pool.n_free:
                self._send_back()
            elif missing:
                sequence.pages.extend(self.pool.take(missing))
            position += 1

    def _admissible(self) -> list[Known] | None:
        """What is known of the first in the queue, if it can run now; else None."""
        if not self.waiting or len(self.running) >= self.max_sequences:
            return None
        first, found = self.waiting[0], list[Known]()
        if self.prefix_caching:
            found = self.pool.find(first.tokens, first.first_row // PAGE_TOKENS)
        held = sum(self.pool.holders(known.page) > 0 for known in found)
        wanted = first.pages_missing - held + len(self.running)
        return found if wanted <= self.pool.n_free else None

    def _admit(self, found: list[Known]) -> Sequence:
        sequence = self.waiting.popleft()
        for known in found:
            self.pool.share(known.page)
            sequence.pages.append(known.page)
            sequence.prefix = known.prefix
        sequence.known = len(found)
        sequence.computed = len(found) * PAGE_TOKENS
        started = perf_counter()
        sequence.pages.extend(self.pool.take(sequence.pages_missing))
        if self._store is not None:
            most = sequence.first_row // PAGE_TOKENS
            images = self._store.fetch(sequence.tokens, len(found), most)
            self._store.write(sequence.pages[len(found) : len(found) + len(images)], images)
            sequence.computed += len(images) * PAGE_TOKENS
            self.learn(sequence)
        if sequence.started is None:
            sequence.started, sequence.cached = started, sequence.computed
        self.running.append(sequence)
        return sequence

    def learn(self, sequence: Sequence) -> None:
        """Let others find the pages that a sequence has filled. Where one is known already, that one
        is held from now on, and the sequence's own is free.
        """
        while self.prefix_caching and (sequence.known + 1) * PAGE_TOKENS <= sequence.computed:
            begin, page = sequence.known * PAGE_TOKENS, sequence.pages[sequence.known]
            tokens = sequence.tokens[begin : begin + PAGE_TOKENS]
            known = self.pool.learn(sequence.prefix, tokens, page)
            if known.page != page:
                self.pool.share(known.page)
                self.pool.release(page)
                sequence.pages[sequence.known] = known.page
            sequence.known, sequence.prefix = sequence.known + 1, known.prefix

    def _send_back(self) -> None:
        sequence = self.running.pop()
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        # Last page first: the next sequence starts with this one's first, memory in use, and a known
        # page is forgotten after those that continue it.
        while sequence.pages:
            self.pool.release(sequence.pages.pop())
        sequence.computed, sequence.known, sequence.prefix = 0, 0, NO_PREFIX


def _chunk(sequence: Sequence, tokens: int, rows: int) -> Chunk | None:
    """The longest next chunk of at most that many tokens and rows; None if there is none."""
    if sequence.remaining == 1 and tokens and rows:
        return Chunk(sequence, 1, 1)
    before_rows = max(0, sequence.first_row - sequence.computed)  # tokens whose logits nobody wants
    n = min(sequence.remaining, tokens, before_rows + rows)
    return Chunk(sequence, n, max(0, n - before_rows)) if n > 0 else None


def make_batch(chunks: list[Chunk]) -> Batch:
    """The chunks as arrays."""
    tokens: list[int] = []
    positions: list[int] = []
    indptr = [0]
    rows: list[int] = []
    width = max(len(chunk.sequence.pages) for chunk in chunks)
    tables: list[bytes] = []
    for chunk in chunks:
        sequence, begin = chunk.sequence, chunk.sequence.computed
        if chunk.n_tokens == 1:
            tokens.append(sequence.tokens[begin])
            positions.append(begin)
        else:
            tokens += sequence.tokens[begin : begin + chunk.n_tokens]
            positions += range(begin, begin + chunk.n_tokens)
        indptr.append(len(tokens))
        rows += range(len(tokens) - chunk.n_rows, len(tokens))
        tables.append(sequence.pages.tobytes().ljust(4 * width, b"\0"))
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        q_indptr=np.array(indptr, np.int32),
        block_tables=np.frombuffer(b"".join(tables), np.int32).reshape(len(tables), width),
        logit_rows=np.array(rows, np.int32),
    )
