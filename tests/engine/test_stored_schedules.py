"""Stored pages, pinned prompts and preemption both ways, in pools that are too small: each request's answer is its own.

40 cases by default, 500 by `pytest -m slow`; CPUINFER_CASES and CPUINFER_SEED as in test_schedules.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from engine_cases import bounds, check, check_known, draw_params, draw_prompt, request
from fake_device import FakeExecutable
from hypothesis import strategies as st
from test_schedules import few_and_many, run_cases

from cpuinfer.config import SamplingParams
from cpuinfer.devices.base import Limits
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.pins import Pin
from cpuinfer.engine.prefix_store import Images, PageKey, PrefixStore
from cpuinfer.engine.sequence import Request


class Memory:
    """Pages in a dictionary, some of which turn out to be gone when they are read."""

    fingerprint = b"root"

    def __init__(self, draws: Random, image_bytes: int) -> None:
        self.draws = draws
        self.image_bytes = image_bytes
        self.images: dict[bytes, Images] = {}
        self.read_pages = 0

    def __len__(self) -> int:
        return len(self.images)

    def __contains__(self, name: bytes) -> bool:
        return name in self.images

    def name(self, key: PageKey) -> bytes:
        return hashlib.sha256(repr(key).encode()).digest()

    def read(self, keys: Sequence[PageKey]) -> Images:
        n = len(keys) if self.draws.random() < 0.7 else self.draws.randint(0, len(keys))
        for key in keys[n:]:
            del self.images[self.name(key)]
        self.read_pages += n
        found = [self.images[self.name(key)] for key in keys[:n]]
        return np.array(found, np.uint8).reshape(n, self.image_bytes)

    def touch(self, keys: Sequence[PageKey]) -> None:
        assert all(self.name(key) in self.images for key in keys)

    def save(self, keys: Sequence[PageKey], images: Callable[[Sequence[int]], Images]) -> int:
        new = [i for i, key in enumerate(keys) if self.name(key) not in self.images]
        for i, image in zip(new, images(new), strict=True):
            self.images[self.name(keys[i])] = image
        return len(new)


def check_pages(e: Engine) -> None:
    """Every running sequence's pages, and every known and every pinned one, hold what they should."""
    assert isinstance(e.executable, FakeExecutable)
    there, pool = e.executable.tokens_of, e.scheduler.pool
    for group in e.scheduler.running:
        for sequence in group.members:
            kept = there[np.array(sequence.pages, int)].reshape(-1)
            assert kept[: sequence.computed].tolist() == sequence.tokens[: sequence.computed]
    check_known(e)
    assert all(pool.holders(p) > 0 for pin in e.scheduler.pins._held for p in pin.pages)


def pinned(e: Engine, prompt: list[int], pins: list[Pin]) -> Request | None:
    """A request that pins its prompt, if that fits."""
    made = request(prompt, SamplingParams(max_tokens=1, temperature=0), bounds())
    try:
        pins.append(e.pin(made))
        e.add(made)
    except ValueError as error:
        assert "pin" in str(error)
        return None
    return made


def play(draws: Random) -> int:
    """An engine's life, and another after a restart; returns how many pages came from the store."""
    pages = draws.randint(8, 16)
    limits = Limits(draws.choice([8, 24, 64]), 8, pages, 200)
    memory = Memory(draws, FakeExecutable(limits).kv.image_bytes)
    heads = [draw_prompt(draws) * 3 for _ in range(2)]
    for _ in range(2):
        executable = FakeExecutable(limits)
        store = PrefixStore(memory, executable.kv)
        preemption = draws.choice(["recompute", "swap", "auto"])
        e = Engine(executable, limits, draws.randint(2, 6), True, store, preemption=preemption)
        made: list[Request] = []
        pins: list[Pin] = []
        for _ in range(draws.randint(1, 8)):
            prompt = (draws.choice(heads) + draw_prompt(draws))[: min(16 * (pages - 3), 150)]
            if draws.random() < 0.2:
                made += filter(None, [pinned(e, prompt, pins)])
            else:
                room = max(1, e.scheduler.pins.room)
                prompt = prompt[: 16 * room - 1]
                params = draw_params(draws)
                try:
                    new = request(prompt, params, bounds(200, room))
                    e.add(new)
                    made.append(new)
                except ValueError as error:
                    assert "KV pages" in str(error)
            for _ in range(draws.choice([0, 1, 3, 30])):
                if e.has_work:
                    e.step()
                    check_pages(e)
            if pins and draws.random() < 0.3:
                e.unpin(pins.pop(draws.randrange(len(pins))))
            if draws.random() < 0.1:
                e.save_prefixes()
        while e.has_work:
            e.step()
            check_pages(e)
        for one in made:
            check(one)
        for pin in pins:
            e.unpin(pin)
        assert e.scheduler.pool.n_free == pages and e.scheduler.pins.n_pages == 0
        e.close()
    return memory.read_pages


@few_and_many
def test_the_store_and_pins_change_no_answer(n: int) -> None:
    found: list[int] = []
    run_cases(n, lambda draws: found.append(play(draws)), draws=st.randoms(use_true_random=True))
    assert sum(found) > n, "the store was hardly asked"
