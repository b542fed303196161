"""A load on this engine, batched in one of several ways, with a look at its KV pages at every step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving_load import Item
from serving_run import Arrivals, Due, Dynamic, Policy, Static

from cpuinfer.cli.output import version
from cpuinfer.config import SamplingParams
from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.blocks import BlockPool
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.sequence import Bounds, Request
from cpuinfer.engine.sequence import Sequence as EngineSequence
from cpuinfer.llm import LLM

POLICIES = ("continuous", "dynamic", "static", "static-padded")
"""static-padded computes every sequence until the longest of its batch has ended, as Yu et al. 2022 (Orca, section 2)
describe batches; in `static` those that have ended leave, which no engine of that kind does: the stronger opponent."""
SLEEP_S = 0.001


@dataclass
class Slots:
    """KV slots over time: each sum is of slots times seconds.

    allocated: of pages that sequences hold, shared ones once. empty: those without a computed token. future: those for
    which there is no token yet, as Kwon et al. 2023 count (a prompt's slots are used from its start). whole, own: what
    the same running sequences would hold if each reserved the whole context, or (if that were known) exactly its own
    tokens to come; filled: slots that they need, shared ones counted again. shared: pages held more than once, times
    seconds; saved: pages that sharing saved.
    """

    seconds: float = 0.0
    allocated: float = 0.0
    empty: float = 0.0
    future: float = 0.0
    whole: float = 0.0
    own: float = 0.0
    filled: float = 0.0
    shared: float = 0.0
    saved: float = 0.0

    def add(
        self, running: Iterable[EngineSequence], pool: BlockPool, context: int, dt: float
    ) -> None:
        """The state of the pages, which lasted dt seconds."""
        computed: dict[int, int] = {}
        known: dict[int, int] = {}
        held = 0
        for sequence in running:
            if not sequence.pages:
                continue
            n_tokens = len(sequence.tokens)
            self.whole += context * dt
            self.own += sequence.limit * dt
            self.filled += sequence.computed * dt
            held += len(sequence.pages)
            for i, page in enumerate(sequence.pages):
                here = i * PAGE_TOKENS
                computed[page] = max(
                    computed.get(page, 0), min(sequence.computed - here, PAGE_TOKENS)
                )
                known[page] = max(known.get(page, 0), min(n_tokens - here, PAGE_TOKENS))
        slots = len(computed) * PAGE_TOKENS
        self.seconds += dt
        self.allocated += slots * dt
        self.empty += (slots - sum(max(n, 0) for n in computed.values())) * dt
        self.future += (slots - sum(max(n, 0) for n in known.values())) * dt
        self.shared += sum(pool.holders(page) > 1 for page in computed) * dt
        self.saved += (held - len(computed)) * dt

    def as_json(self) -> dict[str, float]:
        """Shares of what is allocated, and means over time."""
        if not self.allocated:
            return {}
        return {
            "kv_waste": self.future / self.allocated,
            "kv_waste_until_computed": self.empty / self.allocated,
            "kv_waste_reserving_context": 1 - self.filled / self.whole,
            "kv_waste_reserving_own_length": 1 - self.filled / self.own,
            "mean_pages": self.allocated / PAGE_TOKENS / self.seconds,
            "mean_pages_shared": self.shared / self.seconds,
            "mean_pages_saved_by_sharing": self.saved / self.seconds,
        }


class Ours:
    """An LLM's executable under an Engine of its own, which is stepped here: one thread, and every step is seen."""

    def __init__(
        self,
        model: Path,
        policy: str,
        size: int,
        window: float,
        context: int,
        prefix_caching: bool,
        **options: Any,
    ) -> None:
        self.llm = LLM(model, max_context=context, max_sequences=size, **options)
        limits = self.llm.limits
        self._bounds = Bounds(
            self.llm.program.vocab_size, context, limits.n_pages * PAGE_TOKENS, frozenset(), 1
        )
        self._engine = Engine(self.llm.executable, limits, size, prefix_caching)
        self._padded = policy == "static-padded"
        self._context = context
        self._policy = {
            "continuous": Policy(size),
            "dynamic": Dynamic(size, window),
            "static": Static(size),
            "static-padded": Static(size),
        }[policy]
        self._live: dict[int, tuple[Request, int]] = {}
        self._ended: set[int] = set()

    def about(self) -> dict[str, Any]:
        """What a reader must know to repeat it."""
        limits, device = self.llm.limits, self.llm.device
        return {
            "version": version(),
            "isa": getattr(device, "level", None),
            "threads": getattr(device, "threads", None),
            "limits": {**asdict(limits), "kv_type": str(limits.kv_type)},
        }

    def run(self, load: Sequence[Item]) -> dict[str, Any]:
        """The records of a load, in its order, and the slots."""
        arrivals, slots = Arrivals(load), Slots()
        self._ended.clear()
        waiting: deque[Due] = deque()
        begin = time.perf_counter()
        while not arrivals.done:
            now = time.perf_counter() - begin
            waiting += arrivals.due(now)
            busy = self._engine.has_work
            self._add(self._policy.start(waiting, busy, arrivals.next, now))
            if self._engine.has_work:
                self._engine.step()
                then = time.perf_counter() - begin
                running = [request.sequences[0] for request, _ in self._live.values()]
                slots.add(running, self._engine.scheduler.pool, self._context, then - now)
                self._note(arrivals, then)
            else:
                until = min(arrivals.next, self._policy.wake(waiting)) - now
                time.sleep(min(max(until, 0), SLEEP_S))
        while self._engine.has_work:  # what pads the last batch
            self._engine.step()
        records = [arrivals.records[i].as_json() for i in range(len(load))]
        return {"records": records, "slots": slots.as_json()}

    def _add(self, started: Sequence[Due]) -> None:
        longest = max((due.n_output for due in started), default=0)
        for due in started:
            n = longest if self._padded else due.n_output
            n = min(n, self._context - len(due.prompt))
            params = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)
            request = self._bounds.request(str(due.number), due.prompt, params)
            self._engine.add(request)
            self._live[due.number] = request, due.n_output

    def _note(self, arrivals: Arrivals, now: float) -> None:
        """Note new tokens and ends; a padded sequence has ended, for who waits for it, with its own last token."""
        for number, (request, n_output) in list(self._live.items()):
            record, (sequence,) = arrivals.records[number], request.sequences
            grown = min(len(sequence.tokens) - sequence.n_prompt, n_output) - len(record.times)
            record.times += [now] * grown
            record.n_output = len(record.times)
            if record.n_output == n_output and number not in self._ended:
                self._ended.add(number)
                record.tokens = sequence.generated[:n_output]
                arrivals.end(number, now)
            if request.done:
                if number not in self._ended:
                    raise RuntimeError(f"request {number} ended after {record.n_output} tokens")
                del self._live[number]
