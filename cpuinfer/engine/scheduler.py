"""Who runs in a step, and with how many tokens."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from itertools import count
from operator import attrgetter
from time import perf_counter

from cpuinfer.devices.base import PAGE_TOKENS, Limits
from cpuinfer.engine.batch import Chunk, Step, make_step
from cpuinfer.engine.blocks import BlockPool, Known
from cpuinfer.engine.groups import Group, agree, common_length
from cpuinfer.engine.moves import Moves
from cpuinfer.engine.pins import Pins
from cpuinfer.engine.preemption import Counters, Preemption, hold, release, share
from cpuinfer.engine.prefix_store import PrefixStore
from cpuinfer.engine.sequence import Request, Sequence
from cpuinfer.engine.swap import SwapArea

_ORDER = attrgetter("order")
_DEADLINE = attrgetter("deadline")


class QueueFull(ValueError):
    """As many requests wait as may."""


class Scheduler:
    """First come, first served, lower priorities before, within the limits of a step.

    - What comes and goes together is a group: the sequences of a request. A running one holds pages for all tokens of
      its members. If a member needs a further page and none is free, the last of the running groups gives all of its
      pages back and waits before all new requests. Later it computes its tokens anew (to the same keys and values), or
      gets its pages back from the swap area: see Preemption. While such groups wait, nothing new is admitted.
    - The first in the queue is admitted when there are pages for all its tokens and one more for every running
      sequence, so that it is not sent back at once; and when not more than max_sequences then run. A larger group
      runs alone.
    - It starts with the pages, of any sequence that came before, that hold its beginning: of the same
      tokens keys and values have the same bits, whatever step computed them. Full pages are shared,
      and never written again.
    - Of a group's sequences the first computes what all begin with; then the others share its pages, the last of which
      may be partly filled. A page that another holds is copied before it is written: the step's moves do it.
    - In a step, sequences that decode take their one token first, then prompts take what is left,
      in order.

    No deadlock: the first of the running groups is never sent back, and every group alone fits the pool (`add` checks
    it). A request of low priority waits for as long as others come before it.

    A group ends with its last sequence: `remove` each, and its pages are free at once.
    """

    def __init__(
        self,
        limits: Limits,
        max_sequences: int,
        prefix_caching: bool,
        max_waiting: int | None = None,
        area: SwapArea | None = None,
        always_swap: bool = False,
        store: PrefixStore | None = None,
    ) -> None:
        """max_waiting: most requests in the queue. area, always_swap: Preemption's. store: where pages may come from."""
        self.limits = limits
        self.max_sequences = max_sequences
        self.max_waiting = max_waiting
        self.prefix_caching = prefix_caching
        self.area = area
        self.pool = BlockPool(limits.n_pages)
        self.pins = Pins(self.pool)
        self._store = store
        self.counters = Counters()
        self.running: list[Group] = []
        self.preempted: list[Group] = []
        self.waiting: list[Group] = []
        self._preemption = Preemption(self.pool, prefix_caching, self.counters, area, always_swap)
        self._groups: dict[Sequence, Group] = {}
        self._requests: dict[Request, Group] = {}
        self._timed: list[Group] = []  # by deadline
        self._arrivals = count()
        self._moves = Moves()
        self._repeated: Step | None = None  # all that there is decodes in it, on the same pages

    @property
    def has_work(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self._groups)

    @property
    def sequences(self) -> list[Sequence]:
        """All unfinished sequences."""
        return list(self._groups)

    @property
    def n_swapped(self) -> int:
        """Sequences whose pages are in the swap area."""
        return sum(len(group.parked) for group in self.preempted)

    @property
    def wasted_slots(self) -> int:
        """Places for tokens in held pages, shared ones counted once, that no computed token has."""
        fill: dict[int, int] = {}
        for group in self.running:
            for member in group.members:
                for i, page in enumerate(member.pages):
                    n = min(max(member.computed - i * PAGE_TOKENS, 0), PAGE_TOKENS)
                    fill[page] = max(n, fill.get(page, 0))
        return len(fill) * PAGE_TOKENS - sum(fill.values())

    def overdue(self, now: float) -> list[Sequence]:
        """The unfinished sequences of requests whose time is over, `now` by perf_counter."""
        if not self._timed:
            return []
        n = bisect_right(self._timed, now, key=_DEADLINE)
        return [sequence for group in self._timed[:n] for sequence in group.sequences]

    @property
    def most_pages(self) -> int:
        """Pages that the largest of the unfinished groups may need."""
        return max((group.most_pages for group in self._requests.values()), default=0)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises ValueError if it could outgrow the pool, QueueFull if max_waiting requests wait.
        """
        group = Group(request, next(self._arrivals))
        n_computed, wanted = group.leader.most_computed, group.most_pages
        room = self.pins.room_for(group.leader)
        if wanted > room or n_computed > self.limits.max_context:
            pinned = f" ({self.pins.n_pages} more are pinned)" if self.pins.n_pages else ""
            raise ValueError(
                f"{group.size} sequences of {n_computed} tokens need {wanted} KV pages of {PAGE_TOKENS} and that"
                f" context; there are {room} pages{pinned} and a context of {self.limits.max_context}"
            )
        if self.max_waiting is not None and len(self.waiting) >= self.max_waiting:
            raise QueueFull(
                f"the queue is full: {len(self.waiting)} requests wait, max_waiting is {self.max_waiting};"
                " try again later or raise max_waiting"
            )
        insort(self.waiting, group, key=_ORDER)
        self._repeated = None
        self._groups.update(dict.fromkeys(group.sequences, group))
        self._requests[request] = group
        if group.deadline < math.inf:
            insort(self._timed, group, key=_DEADLINE)

    def fork(self, sequence: Sequence, choice: int) -> Sequence:
        """Another completion that goes on from here, in the same group; both share all pages computed so far.

        choice: what tells its random numbers from the others'. Call it between steps, or when a step has been
        committed to `sequence` (`advance`) and before the next token is appended: append different ones to both. It
        takes no page; the next step copies a last page that is partly filled, if both go on. A completion that ends is
        taken out by `remove`, and its pages are free at once; take out those that end before those that go on fork.

        Raises ValueError if the request's `width` (or its number of sequences, where that is more) are there already,
        as pages were promised to no more, or if the prompt is not computed yet.
        """
        group = self._groups[sequence]
        if len(group.members) + len(group.unborn) >= group.width:
            raise ValueError(
                f"fork: {group.width} sequences of request {group.request.request_id} are there already;"
                " take out one that ends before, or make the request with a greater width"
            )
        if sequence.computed < sequence.n_prompt - 1:
            raise ValueError(
                f"fork: {sequence.computed} of {sequence.n_prompt} tokens of the prompt are computed;"
                " fork after the last"
            )
        self._repeated = None
        child = sequence.fork(choice)
        share(self.pool, child, sequence, sequence.computed)
        group.members.append(child)
        self._groups[child] = group
        return child

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out: it has ended, or is not wanted any more. Its pages become free."""
        self._repeated = None
        self.pins.drop(sequence)
        group = self._groups.pop(sequence)
        if sequence not in group.members:
            group.unborn.remove(sequence)
            return
        release(self.pool, sequence)
        self._preemption.drop(group, sequence)
        group.members.remove(sequence)
        if group.members:
            return
        queue = self._take_out(group)
        if group.unborn:  # their leader went before they could share anything
            group.restart()
            insort(self.waiting if queue is self.waiting else self.preempted, group, key=_ORDER)
        else:
            del self._requests[group.request]
            if group.deadline < math.inf:
                self._timed.remove(group)

    def unfinished(self, request: Request) -> list[Sequence]:
        """The unfinished sequences of a request, those it forked included; none if it is not here."""
        group = self._requests.get(request)
        return group.sequences if group else []

    def schedule(self) -> Step:
        """The next step. Its moves must be performed, once, before it runs.

        Of a sequence only what it holds changes, so a step that failed can be scheduled again. A step in which all
        there is decodes is the last one, moved on: it is valid until the next call.
        """
        if self._repeated is not None and self._repeated.move_on():
            return self._repeated
        self._extend()
        tokens, rows = self.limits.max_tokens, self.limits.max_rows
        most = min(tokens, rows)
        chunks: list[Chunk] = []
        prefill: list[Sequence] = []
        for group in self.running:
            for sequence in group.members:
                if len(sequence.tokens) - sequence.computed != 1:
                    prefill.append(sequence)
                elif len(chunks) < most:
                    chunks.append(Chunk(sequence, 1, 1))
        tokens, rows = tokens - len(chunks), rows - len(chunks)
        for sequence in prefill:
            if chunk := _chunk(sequence, tokens, rows):
                chunks.append(chunk)
                tokens, rows = tokens - chunk.n_tokens, rows - chunk.n_rows
        while tokens and (admitted := self._admit()):
            before = len(chunks)
            for sequence in admitted.members:
                if chunk := _chunk(sequence, tokens, rows):
                    chunks.append(chunk)
                    tokens, rows = tokens - chunk.n_tokens, rows - chunk.n_rows
            if len(chunks) == before:
                break
        if not chunks:
            raise ValueError(
                f"nothing can run: {len(self._groups)} sequences wait, none runs, and of {self.pool.n_pages} KV pages"
                f" {self.pool.n_free} are free"
            )
        step = make_step(chunks, self._moves)
        self._repeated = step if len(chunks) == len(self._groups) and step.only_decodes else None
        return step

    def advance(self, chunk: Chunk) -> None:
        """A chunk has been computed: others may find the pages that it filled, and siblings start from them."""
        sequence = chunk.sequence
        sequence.computed += chunk.n_tokens
        if self.prefix_caching and (sequence.known + 1) * PAGE_TOKENS <= sequence.computed:
            self._learn(sequence)
        group = self._groups[sequence]
        if group.unborn:
            self._bear(group)

    def _extend(self) -> None:
        """Give every running group the pages for its next tokens, first to last, sending back from the end."""
        position = 0
        while position < len(self.running):
            group = self.running[position]
            wanted = 0
            for member in group.members:
                if len(member.tokens) > PAGE_TOKENS * len(member.pages):
                    wanted += member.pages_missing
            if len(group.members) > 1:
                wanted += group.copies(self.pool)
            if wanted:
                while wanted > self.pool.n_free and self.running[-1] is not group:
                    self.preempt()
                if wanted > self.pool.n_free:
                    self.preempt()
                else:
                    self._supply(group)
            position += 1

    def _supply(self, group: Group) -> None:
        """Pages for all tokens of its members; and one of its own for each that would write to a shared one."""
        for member in group.members:
            if member.computed % PAGE_TOKENS and self.pool.holders(member.written_page) > 1:
                (page,) = self.pool.take(1)
                self._moves.copy(member.written_page, page)
                self.pool.release(member.written_page)
                member.pages[member.computed // PAGE_TOKENS] = page
                self.counters.copies += 1
            if missing := member.pages_missing:
                member.pages.extend(self.pool.take(missing))

    def _admit(self) -> Group | None:
        """The first in the queue, admitted, if it can run now."""
        queue = self.preempted or self.waiting
        if not queue:
            return None
        group = queue[0]
        running = sum(other.size for other in self.running)
        if running and running + group.size > self.max_sequences:
            return None
        found = self._preemption.find(group)
        soon = sum(len(other.members) + other.pages_unborn for other in self.running)
        if self._preemption.wanted(group, found) + soon > self.pool.n_free:
            return None
        del queue[0]
        insort(self.running, group, key=_ORDER)
        self._preemption.give_back(group, found, self._moves)
        started, leader = perf_counter(), group.leader
        self._supply(group)
        if self._store is not None and leader.computed == leader.known * PAGE_TOKENS:
            self._load(leader, self._store)
        if leader.started is None:
            leader.started, leader.cached = started, leader.computed
            self.counters.prefix_asked += leader.n_prompt
            self.counters.prefix_hit += leader.computed
        return group

    def _load(self, sequence: Sequence, store: PrefixStore) -> None:
        """Take the pages that come after the known ones from the store, as far as it has them."""
        first = sequence.known
        self._moves.perform(store.kv, self.area)  # a page given out now may still be to be copied
        most = sequence.first_row // PAGE_TOKENS
        sequence.computed += PAGE_TOKENS * store.load(sequence.tokens, first, most, sequence.pages)
        self._learn(sequence)

    def _bear(self, group: Group) -> None:
        """Let those of the unborn share the leader's pages that it has computed all of that it has in common with.

        A page of known content is shared only where the child has the whole of it in its tokens, too: it may write to
        the page once nobody else holds it.
        """
        leader, unborn = group.leader, group.unborn
        for child in unborn.copy():
            common = common_length(leader.tokens, child.tokens, child.first_row)
            if common > leader.computed:
                continue
            full = PAGE_TOKENS * (common // PAGE_TOKENS)
            if full < PAGE_TOKENS * leader.known and not agree(leader, child, full):
                common = full
            found = list[Known]()
            if self.prefix_caching and child.first_row - common >= PAGE_TOKENS:
                found = self.pool.find(child.tokens, child.first_row // PAGE_TOKENS)
            if len(found) * PAGE_TOKENS > common:
                hold(self.pool, child, found)
            else:
                share(self.pool, child, leader, common)
            if child.started is None:
                child.started, child.cached = perf_counter(), child.computed
            unborn.remove(child)
            group.members.append(child)

    def _learn(self, sequence: Sequence) -> None:
        """Let others find the pages that a sequence has filled. Where one is known already, that one
        is held from now on, and the sequence's own is free.
        """
        while (sequence.known + 1) * PAGE_TOKENS <= sequence.computed:
            begin, page = sequence.known * PAGE_TOKENS, sequence.pages[sequence.known]
            tokens = sequence.tokens[begin : begin + PAGE_TOKENS]
            known = self.pool.learn(sequence.prefix, tokens, page)
            if known.page != page:
                self.pool.share(known.page)
                self.pool.release(page)
                sequence.pages[sequence.known] = known.page
            sequence.known, sequence.prefix = sequence.known + 1, known.prefix

    def preempt(self) -> None:
        """Send back the last of the running groups, of which there must be one."""
        self._repeated = None
        group = self.running.pop()
        self._preemption.take(group)
        insort(self.preempted, group, key=_ORDER)

    def _take_out(self, group: Group) -> list[Group]:
        """Take a group out of the queue that it is in, and return that."""
        for queue in (self.running, self.preempted, self.waiting):
            at = bisect_left(queue, group.order, key=_ORDER)
            if at < len(queue) and queue[at] is group:
                del queue[at]
                return queue
        raise ValueError(f"the group {group.order} is in no queue")


def _chunk(sequence: Sequence, tokens: int, rows: int) -> Chunk | None:
    """The longest next chunk of at most that many tokens and rows; None if there is none."""
    if sequence.remaining == 1 and tokens and rows:
        return Chunk(sequence, 1, 1)
    before_rows = max(0, sequence.first_row - sequence.computed)  # tokens whose logits nobody wants
    n = min(sequence.remaining, tokens, before_rows + rows)
    return Chunk(sequence, n, max(0, n - before_rows)) if n > 0 else None
