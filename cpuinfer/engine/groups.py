"""What is scheduled as one: the sequences of a request."""

from __future__ import annotations

import math
from collections import Counter

from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.blocks import BlockPool
from cpuinfer.engine.sequence import Request, Sequence, most_pages, pages_of


class Group:
    """The unfinished sequences of a request: they share pages, and get and lose them together.

    members: those with pages, or about to get them. unborn: those that wait until the first member, the leader, has
    computed what they begin with as well. parked: of members without pages that will be swapped in, the slots of their
    pages and the tokens computed. order: who comes first: the lower priority, then the earlier arrival. width: most
    sequences at once. deadline: when it times out, by perf_counter.
    """

    def __init__(self, request: Request, arrival: int) -> None:
        self.request = request
        self.order = (request.priority, arrival)
        first, *others = request.sequences
        self.width = max(len(request.sequences), request.width or 0)
        self.members: list[Sequence] = [first]
        self.unborn: list[Sequence] = others
        self.parked: dict[Sequence, tuple[list[int], int]] = {}
        timeout = request.timeout_s
        self.deadline = math.inf if timeout is None else request.created + timeout

    @property
    def leader(self) -> Sequence:
        """The member that computes what the unborn share."""
        return self.members[0]

    @property
    def sequences(self) -> list[Sequence]:
        """All of them."""
        return self.members + self.unborn

    @property
    def size(self) -> int:
        """Sequences that it has, or may have by forks."""
        return max(len(self.members) + len(self.unborn), self.request.width or 0)

    @property
    def most_pages(self) -> int:
        """Pages that it may need alone."""
        return most_pages(self.leader.n_prompt, self.leader.most_computed, self.size)

    @property
    def pages_missing(self) -> int:
        """Pages that its members need for their tokens beyond those they hold."""
        return sum(member.pages_missing for member in self.members)

    @property
    def pages_unborn(self) -> int:
        """Pages, at most, that the unborn will need for their tokens beyond those they share."""
        return sum(
            pages_of(len(s.tokens)) - min(s.n_prompt, s.first_row) // PAGE_TOKENS
            for s in self.unborn
        )

    def copies(self, pool: BlockPool) -> int:
        """Pages to copy before every member can write its next token: those that others hold, too.

        Of w that write to a page of h holders the last needs no copy where nobody else holds it: min(w, h - 1).
        """
        written = Counter(m.written_page for m in self.members if m.computed % PAGE_TOKENS)
        return sum(min(n, pool.holders(page) - 1) for page, n in written.items())

    def restart(self) -> None:
        """Without pages again: the first computes its tokens anew, the others wait for it."""
        first, *others = self.sequences
        self.members, self.unborn = [first], others


def common_length(a: list[int], b: list[int], most: int) -> int:
    """How many tokens, at most `most`, both lists begin with."""
    n = min(len(a), len(b), most)
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


def agree(a: Sequence, b: Sequence, begin: int) -> bool:
    """Whether both have the same tokens for the page that begins at the position `begin`; a has all of them."""
    end = begin + PAGE_TOKENS
    return a.tokens[begin:end] == b.tokens[begin:end]
