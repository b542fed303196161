"""The attention kernel of every level: against float64, bytewise between levels, threads and ways to cut the work."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from attention_case import (
    BF16,
    F16,
    F32,
    I8,
    Q8A,
    Pages,
    Queries,
    attend,
    reference,
    to_bf16,
)
from numpy.typing import NDArray

from cpuinfer.machine import isa

LEVELS = [level.name for level in isa.levels() if level.runnable]
BEST = LEVELS[-1]
KV_TYPES = [F32, F16, BF16, I8]
LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 600, 1100]
# heads, kv heads, head size: grouped, multi-head, multi-query, blocks of 32 across kv heads, sizes that fill no vector
SHAPES = [
    (9, 3, 64),
    (2, 2, 32),
    (7, 1, 16),
    (4, 4, 16),
    (6, 2, 48),
    (2, 1, 128),
    (2, 2, 256),
    (1, 1, 320),
    (3, 3, 10),
]
Past = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def rng_of(*key: object) -> np.random.Generator:
    return np.random.default_rng(list(repr(key).encode()))


class World:
    """Sequences of given lengths in pages dealt out at random: block table, k, v and q of every position."""

    def __init__(
        self, shape: tuple[int, int, int], kv_type: int, lengths: Sequence[int], seed: int = 0
    ):
        heads, kv_heads, head_dim = shape
        rng = rng_of(shape, kv_type, tuple(lengths))
        counts = [-(-n // 16) for n in lengths]
        order = np.random.default_rng(seed).permutation(sum(counts)).astype(np.int32)
        tables = np.split(order, np.cumsum(counts)[:-1])
        self.pages = Pages(kv_type, sum(counts), kv_heads, head_dim)
        self.sequences: list[Past] = []
        for table, n in zip(tables, lengths, strict=True):
            k, v = rng.standard_normal((2, n, kv_heads, head_dim), np.float32)
            q = 2 * rng.standard_normal((n, heads, head_dim), np.float32)
            self.sequences.append((table, k, v, q))

    def write(self, i: int, start: int = 0, end: int | None = None) -> None:
        """Keys and values of positions start .. end-1 of a sequence into the pages."""
        table, k, v, _ = self.sequences[i]
        self.pages.write(table, k[start:end], v[start:end], start)

    def queries(self, i: int, start: int = 0, end: int | None = None) -> Queries:
        table, _, _, q = self.sequences[i]
        return Queries(q[start:end], start, table)


@functools.cache
def whole(shape: tuple[int, int, int], kv_type: int, n: int) -> tuple[World, NDArray[Any]]:
    """A sequence of n tokens and its output, all queries in one step of one thread of the best level."""
    world = World(shape, kv_type, [n])
    world.write(0)
    return world, attend(isa.load(BEST), world.pages, [world.queries(0)])


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_attention(shape: tuple[int, int, int], kv_type: int) -> None:
    world, out = whole(shape, kv_type, 600)
    _, k, v, _ = world.sequences[0]
    x = world.queries(0)
    expected, bound = reference(world.pages, k, v, x, shape[2] ** -0.5)
    assert (np.abs(out - expected) <= bound).all()


@pytest.mark.parametrize("n", LENGTHS)
def test_every_length(n: int) -> None:
    world = World((6, 2, 16), F16, [n])
    world.write(0)
    last = world.queries(0, n - 1)
    _, k, v, _ = world.sequences[0]
    expected, bound = reference(world.pages, k, v, last, 0.25)
    for level in LEVELS:
        for threads in (1, 3):
            out = attend(isa.load(level), world.pages, [last], threads=threads)
            assert (np.abs(out - expected) <= bound).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_levels_and_threads_agree(shape: tuple[int, int, int], kv_type: int, level: str) -> None:
    _, expected = whole(shape, kv_type, 600)
    world, _ = whole(shape, kv_type, 600)
    # All queries on the best level; on the others those around chunk and page borders, a decode step, and the last.
    spans = [(0, 600)] if level == BEST else [(0, 20), (250, 262), (511, 512), (590, 600)]
    for start, end in spans:
        for threads in (1, 2, 3, 5):
            out = attend(
                isa.load(level), world.pages, [world.queries(0, start, end)], threads=threads
            )
            assert out.tobytes() == expected[start:end].tobytes()


@pytest.mark.parametrize("step", [1, 7, 64])
@pytest.mark.parametrize("shape", [(9, 3, 64), (4, 4, 16), (3, 3, 10)], ids=str)
def test_prefill_in_pieces_is_prefill_in_one(shape: tuple[int, int, int], step: int) -> None:
    """Keys are written as their step comes: what lies behind is NaN at every step."""
    n = 600 if step > 1 else 530
    _, expected = whole(shape, F16, 600)
    world = World(shape, F16, [600])
    for start in range(0, n, step):
        end = min(start + step, n)
        world.write(0, start, end)
        out = attend(isa.load(BEST), world.pages, [world.queries(0, start, end)], threads=2)
        assert out.tobytes() == expected[start:end].tobytes()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_batch_of_many_is_each_alone(level: str, kv_type: int) -> None:
    """Prefill, chunks of prefill, drafts and decode side by side, in any order, under any number of threads."""
    world = World((6, 2, 16), kv_type, LENGTHS)
    new = [1, 2, 15, 3, 1, 40, 1, 65, 4, 1, 30, 1, 1]
    for i in range(len(LENGTHS)):
        world.write(i)
    steps = [world.queries(i, n - m) for i, (n, m) in enumerate(zip(LENGTHS, new, strict=True))]
    alone = [attend(isa.load(level), world.pages, [x]) for x in steps]
    for order in (range(len(steps)), [5, 12, 0, 7, 3], [11]):
        for threads in (1, 2, 5):
            out = attend(isa.load(level), world.pages, [steps[i] for i in order], threads=threads)
            assert out.tobytes() == b"".join(alone[i].tobytes() for i in order)


@pytest.mark.parametrize("seed", [1, 2])
def test_pages_may_lie_anywhere(seed: int) -> None:
    _, expected = whole((9, 3, 64), F16, 600)
    world = World((9, 3, 64), F16, [600], seed)
    world.write(0)
    out = attend(isa.load(BEST), world.pages, [world.queries(0)], threads=2)
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [5, 255, 299])
def test_later_keys_reach_no_query(level: str, poison: float, at: int) -> None:
    """A poisoned key changes nothing before its position, in one step with queries behind it that do see it."""
    shape, n = (6, 2, 16), 300
    _, expected = whole(shape, F32, n)
    world = World(shape, F32, [n])
    world.write(0)
    bad = np.full((1, 2, 16), poison, np.float32)
    world.pages.write(world.sequences[0][0], bad, bad, at)
    first = max(0, at - 40)
    out = attend(isa.load(level), world.pages, [world.queries(0, first)], threads=2)
    assert out[: at - first].tobytes() == expected[first:at].tobytes()
    assert not np.isfinite(out[at - first]).any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(9, 3, 64), (4, 4, 16), (3, 1, 32)], ids=str)
def test_output_types(level: str, shape: tuple[int, int, int]) -> None:
    """bf16 and q8 rows are the f32 rows, rounded as the contract says, for prefill and for split decode."""
    world, plain = whole(shape, F16, 600)
    n = shape[0] * shape[2]
    for start, end in ((300, 330), (599, 600)):
        x, f32 = world.queries(0, start, end), plain[start:end]
        for threads in (1, 3):
            run = functools.partial(attend, isa.load(level), world.pages, [x], threads=threads)
            assert run(out_type=BF16)[:, : 2 * n].tobytes() == to_bf16(f32).tobytes()
            assert run(out_type=Q8A)[:, : n + n // 4].tobytes() == quantised(f32).tobytes()


def quantised(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows of [n int8][n/32 f32 scale][n/32 int32 sum]: docs/design.md, section 3."""
    blocks = x.reshape(len(x), -1, 32)
    amax = np.abs(blocks).max(2)
    q = np.rint(blocks * (np.float32(127) / amax)[..., None]).astype(np.int8)
    parts = (q, amax / np.float32(127), q.sum(2, dtype=np.int32))
    return np.concatenate([p.reshape(len(x), -1).view(np.uint8) for p in parts], axis=1)


def test_large_scores_stay_exact() -> None:
    """One key far above the rest: its value comes out, whatever chunk it lies in."""
    for at in (0, 100, 256, 599):
        world = World((2, 1, 16), F32, [600])
        table, k, v, q = world.sequences[0]
        k[at] = 100 * np.sign(q[599, 0])
        world.write(0)
        out = attend(isa.load(BEST), world.pages, [world.queries(0, 599)], threads=2)
        assert out[0, :16].tobytes() == v[at, 0].tobytes()


def test_splitting_stops_where_the_workspace_ends() -> None:
    """More partial results than the shared area holds: some tiles are split, the others not, the output is the same."""
    world = World((32, 2, 256), F16, [10240])
    table = world.sequences[0][0]
    rng = rng_of("shared")
    noise = rng.standard_normal(99_991, np.float32).astype(np.float16)
    halves = world.pages.data.reshape(-1).view(np.float16)
    halves[:] = np.resize(noise, halves.shape)
    steps = [
        Queries(rng.standard_normal((3, 32, 256), np.float32), 10237 - i, table) for i in range(6)
    ]
    one, two = (attend(isa.load(BEST), world.pages, steps, threads=t) for t in (1, 2))
    assert one.tobytes() == two.tobytes()
