"""Sliding windows, soft caps and sinks of the attention kernel, alone and together, on every level and KV type."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from attention_case import BF16, F16, F32, I8, Q8A, Rules, attend, reference
from numpy.typing import NDArray
from test_attention_kernel import BEST, LEVELS, World, rng_of

from cpuinfer.machine import isa

N = 600
SHAPES = [(9, 3, 64), (4, 4, 16), (7, 1, 16), (3, 3, 10), (2, 1, 128)]
# one key, less than a page, off and on the borders of pages, groups of 64 and chunks of 256, more than there is
WINDOWS = [0, 1, 5, 16, 40, 63, 64, 65, 100, 255, 256, 257, 300, 599, 600, 2**30]


def rules_of(window: int, softcap: float, sinks: bool, heads: int) -> Rules:
    values = 3 * rng_of("sinks", heads).standard_normal(heads, np.float32) if sinks else None
    return Rules(window, softcap, values)


@functools.cache
def whole(
    shape: tuple[int, int, int], kv_type: int, window: int, softcap: float, sinks: bool
) -> tuple[World, Rules, NDArray[Any]]:
    """A sequence and its output, all queries in one step of one thread of the best level."""
    world = World(shape, kv_type, [N])
    world.write(0)
    rules = rules_of(window, softcap, sinks, shape[0])
    return world, rules, attend(isa.load(BEST), world.pages, [world.queries(0)], rules=rules)


def check(world: World, rules: Rules, out: NDArray[Any], start: int = 0) -> None:
    _, k, v, q = world.sequences[0]
    x = world.queries(0, start)
    expected, bound = reference(world.pages, k, v, x, q.shape[2] ** -0.5, rules)
    assert (np.abs(out - expected) <= bound).all()


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 2.0, 30.0])
@pytest.mark.parametrize("window", [0, 1, 40, 100, 300])
@pytest.mark.parametrize("kv_type", [F32, F16, BF16, I8])
def test_all_combinations(kv_type: int, window: int, softcap: float, sinks: bool) -> None:
    for shape in ((9, 3, 64), (3, 3, 10)):
        world, rules, out = whole(shape, kv_type, window, softcap, sinks)
        check(world, rules, out)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_window(shape: tuple[int, int, int], window: int) -> None:
    world, rules, out = whole(shape, F16, window, 0.0, False)
    check(world, rules, out)


def test_a_window_of_all_is_none() -> None:
    plain = whole((9, 3, 64), F16, 0, 0.0, False)[2]
    for window in (600, 2**30):
        assert whole((9, 3, 64), F16, window, 0.0, False)[2].tobytes() == plain.tobytes()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("window", [1, 40, 64, 300])
@pytest.mark.parametrize("kv_type", [F16, I8])
@pytest.mark.parametrize("shape", [(9, 3, 64), (3, 3, 10)], ids=str)
def test_levels_threads_and_cuts_agree(
    shape: tuple[int, int, int], kv_type: int, window: int, level: str
) -> None:
    world, rules, expected = whole(shape, kv_type, window, 5.0, True)
    spans = [(0, 600)] if level == BEST else [(0, 20), (250, 262), (290, 310)]
    spans += [(511, 512), (555, 600), (599, 600)]
    for start, end in spans:
        for threads in (1, 2, 3):
            x = [world.queries(0, start, end)]
            out = attend(isa.load(level), world.pages, x, threads=threads, rules=rules)
            assert out.tobytes() == expected[start:end].tobytes()


@pytest.mark.parametrize("kv_type", [F16, I8])
@pytest.mark.parametrize("window", [1, 40, 300])
@pytest.mark.parametrize("step", [1, 7, 64])
def test_prefill_in_pieces_is_prefill_in_one(step: int, window: int, kv_type: int) -> None:
    """Keys are written as their step comes, and whole pages that fell out of the window are made NaN again."""
    shape, n = (6, 2, 16), 600 if step > 1 else 340
    _, rules, expected = whole(shape, kv_type, window, 0.0, True)
    world = World(shape, kv_type, [N])
    table = world.sequences[0][0]
    for start in range(0, n, step):
        end = min(start + step, n)
        world.write(0, start, end)
        world.pages.data[:, table[: max(start + 1 - window, 0) // 16]] = 0xFF
        x = [world.queries(0, start, end)]
        out = attend(isa.load(BEST), world.pages, x, threads=2, rules=rules)
        assert out.tobytes() == expected[start:end].tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_a_batch_of_many_is_each_alone(level: str) -> None:
    lengths, new = [1, 17, 63, 300, 600, 400], [1, 17, 2, 1, 40, 1]
    for kv_type in (F16, I8):
        world = World((6, 2, 16), kv_type, lengths)
        for i in range(len(lengths)):
            world.write(i)
        rules = rules_of(70, 4.0, True, 6)
        steps = [world.queries(i, n - m) for i, (n, m) in enumerate(zip(lengths, new, strict=True))]
        run = functools.partial(attend, isa.load(level), world.pages, rules=rules)
        alone = b"".join(run([x]).tobytes() for x in steps)
        for threads in (1, 2, 3):
            assert run(steps, threads=threads).tobytes() == alone


@pytest.mark.parametrize("out_type", [BF16, Q8A])
def test_output_types_keep_the_threads_apart(out_type: int) -> None:
    world, rules, _ = whole((9, 3, 64), F16, 300, 5.0, True)
    for start, end in ((300, 330), (599, 600)):
        x = [world.queries(0, start, end)]
        run = functools.partial(attend, isa.load(BEST), world.pages, x, out_type=out_type)
        assert run(rules=rules, threads=3).tobytes() == run(rules=rules).tobytes()
        assert run(rules=rules).tobytes() != run().tobytes()


@pytest.mark.parametrize("sink", [-1e30, -200.0, 200.0])
def test_far_sinks(sink: float) -> None:
    """A sink far below all scores takes nothing away; one far above takes all."""
    world, _, plain = whole((9, 3, 64), F16, 0, 0.0, False)
    rules = Rules(sinks=np.full(9, sink, np.float32))
    out = attend(isa.load(BEST), world.pages, [world.queries(0)], rules=rules)
    if sink < 0:
        assert out.tobytes() == plain.tobytes()
    else:
        assert np.isfinite(out).all() and (np.abs(out) < 1e-30).all()
