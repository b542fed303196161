"""What becomes of a group that lost its pages: it computes them anew, or finds them where they were put."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.blocks import NO_PREFIX, BlockPool, Known
from cpuinfer.engine.groups import Group
from cpuinfer.engine.moves import Moves
from cpuinfer.engine.sequence import Sequence, pages_of
from cpuinfer.engine.swap import SwapArea

Found = list[list[Known]]
"""Of every member of a group the known pages that it begins with."""


@dataclass
class Counters:
    """What a scheduler has done so far.

    recomputed, swapped: groups that were preempted, by how they recover. swapped_pages: copied out for them. copies:
    pages copied before they were written. prefix_asked, prefix_hit: prompt tokens of all requests that started, and
    those of them whose pages were found.
    """

    recomputed: int = 0
    swapped: int = 0
    swapped_pages: int = 0
    copies: int = 0
    prefix_asked: int = 0
    prefix_hit: int = 0


class Preemption:
    """Takes the pages of groups, and says what they need to come back.

    area: where pages may wait; None: they are always computed anew. always: swap wherever the area has room, without
    asking its rule.
    """

    def __init__(
        self,
        pool: BlockPool,
        prefix_caching: bool,
        counters: Counters,
        area: SwapArea | None,
        always: bool,
    ) -> None:
        self._pool = pool
        self._prefix_caching = prefix_caching
        self._counters = counters
        self._area = area
        self._always = always

    def take(self, group: Group) -> None:
        """Free all pages of a group, putting them into the area first where that is chosen and has room."""
        fill: dict[int, int] = {}  # of every page, once: its tokens
        for member in group.members:
            for i, page in enumerate(member.pages[: pages_of(member.computed)]):
                n = min(member.computed - i * PAGE_TOKENS, PAGE_TOKENS)
                fill[page] = max(n, fill.get(page, 0))
        area, pages = self._area, list(fill)
        if area is not None and pages and len(pages) <= area.n_free:
            n_tokens, n_bytes = sum(fill.values()), len(pages) * area.slot_bytes
            if self._always or area.rule.prefers_swap(n_tokens, n_bytes):
                slots = dict(zip(pages, area.store(pages), strict=True))
                for member in group.members:
                    held = member.pages[: pages_of(member.computed)]
                    group.parked[member] = [slots[page] for page in held], member.computed
        for member in reversed(group.members):
            release(self._pool, member)
        if group.parked:
            self._counters.swapped += 1
            self._counters.swapped_pages += len(pages)
        else:
            group.restart()
            self._counters.recomputed += 1

    def find(self, group: Group) -> Found:
        """What is known of the beginning of every member of a group without pages."""
        if not self._prefix_caching:
            return [[] for _ in group.members]
        return [self._pool.find(m.tokens, self._most(group, m)) for m in group.members]

    def wanted(self, group: Group, found: Found) -> int:
        """Free pages that a group without pages needs, all members and unborn together, to go on."""
        idle = {k.page for known in found for k in known if self._pool.holders(k.page) == 0}
        wanted = len(idle) + group.pages_unborn
        if not group.parked:
            return wanted + group.pages_missing - sum(map(len, found))
        back, written = set[int](), Counter[int]()
        for member, known in zip(group.members, found, strict=True):
            slots, computed = group.parked.get(member, ([], 0))
            back.update(slots[len(known) :])
            wanted += pages_of(len(member.tokens)) - len(slots)
            if computed % PAGE_TOKENS:
                written[slots[-1]] += 1
        return wanted + len(back) + sum(n - 1 for n in written.values())

    def give_back(self, group: Group, found: Found, moves: Moves) -> None:
        """Let members begin with what was found of them, and with what waits in the area for the rest."""
        pages: dict[int, int] = {}  # of slots
        used = set[int]()
        for member, known in zip(group.members, found, strict=True):
            hold(self._pool, member, known)  # all of them, before any page is taken
        for member in group.members:
            if member not in group.parked:
                continue
            slots, computed = group.parked.pop(member)
            used.update(slots)
            for slot in slots[len(member.pages) :]:
                if slot in pages:
                    self._pool.share(pages[slot])
                else:
                    (pages[slot],) = self._pool.take(1)
                member.pages.append(pages[slot])
            member.computed = computed
        moves.bring_back({page: slot for slot, page in pages.items()}, used)

    def drop(self, group: Group, sequence: Sequence) -> None:
        """A sequence that waits without pages does so no longer: free the slots that only it needs."""
        slots, _ = group.parked.pop(sequence, ([], 0))
        if slots and self._area is not None:
            others = {slot for kept, _ in group.parked.values() for slot in kept}
            self._area.free([slot for slot in slots if slot not in others])

    @staticmethod
    def _most(group: Group, member: Sequence) -> int:
        """Most known pages that a member may begin with: what follows them it computes, or finds in the area."""
        if member in group.parked:
            return group.parked[member][1] // PAGE_TOKENS
        return member.first_row // PAGE_TOKENS


def hold(pool: BlockPool, sequence: Sequence, known: list[Known]) -> None:
    """Begin a sequence without pages with known ones."""
    for page, prefix in known:
        pool.share(page)
        sequence.pages.append(page)
        sequence.prefix = prefix
    sequence.known = len(known)
    sequence.computed = len(known) * PAGE_TOKENS


def share(pool: BlockPool, child: Sequence, parent: Sequence, n_tokens: int) -> None:
    """Begin a sequence without pages with its parent's for their first n_tokens tokens."""
    child.pages.extend(parent.pages[: pages_of(n_tokens)])
    for page in child.pages:
        pool.share(page)
    child.computed = n_tokens
    if parent.known * PAGE_TOKENS <= n_tokens:
        child.known, child.prefix = parent.known, parent.prefix


def release(pool: BlockPool, sequence: Sequence) -> None:
    """Give back all pages of a sequence."""
    # Last page first: the next sequence starts with this one's first, memory in use, and a known
    # page is forgotten after those that continue it.
    while sequence.pages:
        pool.release(sequence.pages.pop())
    sequence.computed, sequence.known, sequence.prefix = 0, 0, NO_PREFIX
