"""A step as the engine and a device see it: chunks of sequences, and the same as arrays."""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

from cpuinfer.devices.base import PAGE_TOKENS, Batch
from cpuinfer.engine.moves import Moves
from cpuinfer.engine.sequence import Sequence


class Chunk(NamedTuple):
    """A sequence's part of a step: its next n_tokens tokens; logits of the last n_rows of them."""

    sequence: Sequence
    n_tokens: int
    n_rows: int


class Step(NamedTuple):
    """A step's chunks, the Batch that says the same to a device, and the moves to perform before.

    values: the memory of the batch's arrays, tokens and positions first.
    """

    chunks: list[Chunk]
    batch: Batch
    moves: Moves
    values: array[int]

    @property
    def only_decodes(self) -> bool:
        """Whether every chunk is one token, with its row."""
        n = len(self.chunks)
        return n == len(self.batch.tokens) == len(self.batch.logit_rows)

    def move_on(self) -> bool:
        """Make a step that only decodes the one after it, in place; returns False where that needs other pages.

        Between both, every sequence has been committed its token, and no page has changed hands.
        """
        n, values = len(self.chunks), self.values
        for i, (sequence, _, _) in enumerate(self.chunks):
            position = sequence.computed
            if position % PAGE_TOKENS == 0 or len(sequence.tokens) != position + 1:
                return False
            values[i] = sequence.tokens[position]
            values[n + i] = position
        return True


def make_step(chunks: list[Chunk], moves: Moves) -> Step:
    """The step of these chunks. All arrays of its batch lie in one piece of memory: most steps make them anew."""
    tokens: list[int] = []
    positions: list[int] = []
    ends = [0]
    rows: list[int] = []
    width = 0
    for sequence, n_tokens, n_rows in chunks:
        begin = sequence.computed
        if n_tokens == 1:
            tokens.append(sequence.tokens[begin])
            positions.append(begin)
        else:
            tokens += sequence.tokens[begin : begin + n_tokens]
            positions += range(begin, begin + n_tokens)
        end = len(tokens)
        ends.append(end)
        rows += range(end - n_rows, end)
        width = max(width, len(sequence.pages))
    values = array("i", tokens + positions + ends + rows)
    for chunk in chunks:
        pages = chunk.sequence.pages
        values += pages
        values.frombytes(bytes(4 * (width - len(pages))))
    whole = np.frombuffer(values, np.int32)
    at_ends = 2 * len(tokens)
    at_rows = at_ends + len(ends)
    at_tables = at_rows + len(rows)
    batch = Batch(
        tokens=whole[: len(tokens)],
        positions=whole[len(tokens) : at_ends],
        q_indptr=whole[at_ends:at_rows],
        block_tables=whole[at_tables:].reshape(len(chunks), width),
        logit_rows=whole[at_rows:at_tables],
    )
    return Step(chunks, batch, moves, values)
