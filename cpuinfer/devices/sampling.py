"""How a device chooses tokens from its own logits; one that cannot leaves it to the engine's NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class Filters(Protocol):
    """What narrows a distribution, as SamplingParams has it: temperature, then top-k, typical, top-p and min-p."""

    @property
    def greedy(self) -> bool:
        """Take the largest logit, the lowest id of equals; the rest then says nothing."""

    @property
    def temperature(self) -> float:
        """Logits are divided by it."""

    @property
    def top_k(self) -> int:
        """The k largest stay, and the equals of the last; 0 or less: all."""

    @property
    def typical_p(self) -> float:
        """The share that locally typical sampling keeps; a device's sampler is never asked for less than 1: all."""

    @property
    def top_p(self) -> float:
        """Those stay before which, in order of weight, less than this share comes; 1: all."""

    @property
    def min_p(self) -> float:
        """Those stay that weigh at least this share of the heaviest; 0: all."""


class Edits(NamedTuple):
    """Logits that are others for one choice: distinct token ids [n], and the values there [n]."""

    ids: NDArray[np.int32]
    values: NDArray[np.float32]


class Choice(NamedTuple):
    """A token to choose from a row of logits, by the bits of (seed, choice, position)."""

    row: int
    filters: Filters
    seed: int
    choice: int
    position: int
    edits: Edits | None = None


class Score(NamedTuple):
    """A token whose likelihood a row of logits says, and how many of the most likely ones to list."""

    row: int
    token: int
    n: int


class Scored(NamedTuple):
    """Of a Score: the largest logit, the sum of all integer weights at temperature 1 (-1 where the largest logit is
    not finite), the token's own logit and rank; ids, ranks and logits of the n most likely, equals by id. Equals share
    a rank.
    """

    top: float
    total: int
    value: float
    rank: int
    ids: list[int]
    ranks: list[int]
    values: list[float]


class Sampler(Protocol):
    """Chooses and scores, all rows of a step in one call. Integer weights make its answers those of engine/sampler.py."""

    def choose(self, logits: Logits, choices: Sequence[Choice]) -> list[int]:
        """The token of every choice, from logits [R, V]; -1 where the largest logit is not finite.

        No two choices have the same row. Logits are used up to edit them, and are then as before.
        """
        ...

    def score(self, logits: Logits, scores: Sequence[Score]) -> list[Scored]:
        """What logits [R, V] say of every score's token."""
        ...
