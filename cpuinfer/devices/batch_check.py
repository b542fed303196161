"""The border that every batch crosses: what a kernel may take for granted is checked here, cheaply."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.base import PAGE_TOKENS, Batch, Limits

_I32 = np.dtype(np.int32)


def check_shapes(batch: Batch, limits: Limits) -> None:
    """The part of check_batch that looks at no element: types, dimensions, sizes that fit each other and the limits."""
    for name, array in zip(Batch._fields, batch, strict=True):
        dims = 2 if name == "block_tables" else 1
        if array.dtype != _I32 or array.ndim != dims or not array.flags.c_contiguous:
            raise ValueError(
                f"batch.{name}: expected contiguous int32 of {dims} dimension(s), "
                f"got {array.dtype} of shape {array.shape}"
            )
    _check_sizes(batch, limits, batch.tokens.size, batch.q_indptr.size - 1)


def check_batch(batch: Batch, limits: Limits, vocab_size: int) -> None:
    """Raise ValueError, saying what and how much, unless the batch keeps its own invariants and the limits."""
    check_shapes(batch, limits)
    n_tokens, n_seqs = batch.tokens.size, batch.q_indptr.size - 1
    _check_range("tokens", batch.tokens, vocab_size)
    _check_range("positions", batch.positions, limits.max_context)
    if batch.logit_rows.size:
        _check_range("logit_rows", batch.logit_rows, n_tokens)
    if n_seqs == 1:
        last = int(batch.positions[-1])
        if int(batch.q_indptr[0]) != 0 or int(batch.q_indptr[1]) != n_tokens:
            raise ValueError(f"batch.q_indptr: expected [0, {n_tokens}], got {batch.q_indptr}")
        if n_tokens > 1 and (np.diff(batch.positions) != 1).any():
            raise ValueError("batch.positions: a sequence's positions must be consecutive")
        blocks = last // PAGE_TOKENS + 1
        _check_blocks(blocks, batch.block_tables.shape[1])
        _check_range("block_tables", batch.block_tables[0, :blocks], limits.n_pages)
    else:
        _check_ragged(batch, limits, n_tokens)


def _check_sizes(batch: Batch, limits: Limits, n_tokens: int, n_seqs: int) -> None:
    if not 0 < n_tokens <= limits.max_tokens:
        raise ValueError(f"batch.tokens: {n_tokens} tokens; a step takes 1 to {limits.max_tokens}")
    if batch.positions.size != n_tokens:
        raise ValueError(f"batch.positions: {batch.positions.size} for {n_tokens} tokens")
    if batch.logit_rows.size > limits.max_rows:
        raise ValueError(
            f"batch.logit_rows: {batch.logit_rows.size} rows; a step takes {limits.max_rows} at most"
        )
    if n_seqs < 1 or batch.block_tables.shape[0] != n_seqs:
        raise ValueError(
            f"batch.block_tables: {batch.block_tables.shape[0]} rows and q_indptr of {n_seqs + 1}; "
            "need one row per sequence and one sequence at least"
        )


def _check_range(name: str, values: NDArray[np.int32], end: int) -> None:
    """All values in [0, end): a negative one is large as an unsigned number."""
    if int(values.view(np.uint32).max()) >= end:
        bad = values[(values < 0) | (values >= end)][0]
        raise ValueError(f"batch.{name}: {bad} is outside 0 to {end - 1}")


def _check_blocks(needed: int, given: int) -> None:
    if needed > given:
        raise ValueError(f"batch.block_tables: {given} blocks per sequence; {needed} are needed")


def _check_ragged(batch: Batch, limits: Limits, n_tokens: int) -> None:
    bounds = batch.q_indptr
    if int(bounds[0]) != 0 or int(bounds[-1]) != n_tokens or (bounds[1:] <= bounds[:-1]).any():
        raise ValueError(
            f"batch.q_indptr: must rise from 0 to {n_tokens}, a token per sequence at least; got {bounds}"
        )
    follows = np.diff(batch.positions) == 1
    follows[bounds[1:-1] - 1] = True
    if not follows.all():
        raise ValueError("batch.positions: a sequence's positions must be consecutive")
    blocks = batch.positions[bounds[1:] - 1] // PAGE_TOKENS + 1
    _check_blocks(int(blocks.max()), batch.block_tables.shape[1])
    needed = np.arange(batch.block_tables.shape[1]) < blocks[:, None]
    outside = needed & (batch.block_tables.view(np.uint32) >= limits.n_pages)
    if outside.any():
        page = batch.block_tables[outside][0]
        raise ValueError(f"batch.block_tables: page {page} is outside 0 to {limits.n_pages - 1}")
