"""What swapping and recomputing cost by what was measured, and the area that pages wait in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.engine.swap import CostRule, SwapArea


def measured(prompt_s: float = 1.0, copy_s: float = 1e-6) -> CostRule:
    """Steps of 101 tokens take prompt_s + 0.01 seconds, of one 0.01; bytes take copy_s, each way."""
    rule = CostRule()
    rule.add_step(101, 1, prompt_s + 0.01)
    rule.add_step(1, 1, 0.01)
    rule.add_out(1000, 1000 * copy_s)
    rule.add_back(1000, 1000 * copy_s)
    return rule


def test_tokens_cost_what_they_add_to_a_step() -> None:
    assert measured().recompute_s(50) == pytest.approx(0.5)
    rule = CostRule()
    assert rule.recompute_s(50) is None
    rule.add_step(1, 1, 0.01)
    assert rule.recompute_s(50) == pytest.approx(0.5), "as if each took a step"
    rule = CostRule()
    rule.add_step(100, 1, 0.2)
    assert rule.recompute_s(50) == pytest.approx(0.1)


def test_copies_cost_their_bytes_both_ways() -> None:
    rule = CostRule()
    assert rule.swap_s(10) is None
    rule.add_out(100, 1.0)
    assert rule.swap_s(10) == pytest.approx(0.2), "back as out"
    rule.add_back(100, 3.0)
    assert rule.swap_s(10) == pytest.approx(0.4)


def test_the_latest_measurements_weigh_most() -> None:
    rule = measured()
    for _ in range(60):
        rule.add_out(1000, 1.0)
        rule.add_back(1000, 1.0)
    assert rule.swap_s(1000) == pytest.approx(2.0, rel=0.01)


def test_the_cheaper_one_is_picked() -> None:
    assert CostRule().prefers_swap(1, 10**9), "what was never measured is tried"
    assert measured().prefers_swap(100, 400_000)
    assert not measured().prefers_swap(100, 600_000)
    assert measured(prompt_s=3.0).prefers_swap(100, 600_000)


def test_what_was_refused_long_enough_is_tried_again() -> None:
    rule = measured(copy_s=1.0)
    picks = [rule.prefers_swap(1, 1000) for _ in range(33)]
    assert picks == [False] * 32 + [True]


@pytest.mark.parametrize("on_disk", [False, True])
def test_pages_come_back_as_they_went(on_disk: bool, tmp_path: Path) -> None:
    memory = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 5), np.uint8)
    kv = KVMemory(memory)
    rule = CostRule()
    area = SwapArea(kv, 4, tmp_path if on_disk else None, rule)
    before = kv.read(range(8))
    slots = area.store([1, 6, 3])
    assert area.n_free == 1 and len(set(slots)) == 3 and rule.swap_s(1) is not None
    with pytest.raises(ValueError, match="2 swap slots wanted, 1 free"):
        area.store([0, 2])
    area.load([slots[2], slots[0]], [0, 5])
    assert (kv.read([0, 5]) == before[[3, 1]]).all()
    area.free(slots)
    assert area.n_free == area.n_slots == 4
    assert not list(tmp_path.iterdir())
