"""The loop: schedule, run, sample, commit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter

from cpuinfer.devices.base import Executable, Limits
from cpuinfer.engine.batch import Step
from cpuinfer.engine.beam import BeamSearch
from cpuinfer.engine.pins import Pin
from cpuinfer.engine.prefix_store import PrefixStore
from cpuinfer.engine.sampling import Sampled, sample_step
from cpuinfer.engine.scheduler import Scheduler
from cpuinfer.engine.sequence import Request, Sequence
from cpuinfer.engine.swap import CostRule, SwapArea


class Engine:
    """Runs requests on an executable, many at once. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        executable: Executable,
        limits: Limits,
        max_sequences: int,
        prefix_caching: bool = True,
        store: PrefixStore | None = None,
        *,
        max_waiting: int | None = None,
        preemption: str = "auto",
        swap_bytes: int | None = None,
        swap_path: Path | None = None,
    ) -> None:
        """The options are EngineConfig's. Raises OSError where swap_path does not take swap_bytes."""
        self.executable = executable
        self.store = store
        self.costs = CostRule()
        kv, area = executable.kv, None
        if preemption != "recompute":
            n_slots = limits.n_pages if swap_bytes is None else swap_bytes // kv.image_bytes
            area = SwapArea(kv, n_slots, swap_path, self.costs)
        self.scheduler = Scheduler(
            limits, max_sequences, prefix_caching, max_waiting, area, preemption == "swap", store
        )

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Queue a request made by Bounds, which has checked that it fits.

        Raises QueueFull, a ValueError, if as many requests wait as may.
        """
        self.scheduler.add(request)

    def pin(self, request: Request) -> Pin:
        """Have the full pages of a request's prompt stay when it has ended, until `unpin`; call it before `add`.

        Raises ValueError where they do not fit beside what is pinned and what is in flight.
        """
        if not self.scheduler.prefix_caching:
            raise ValueError("pin: prefix_caching is off, so no request would find the pages")
        (sequence,) = request.sequences
        return self.scheduler.pins.add(sequence, self.scheduler.most_pages)

    def unpin(self, pin: Pin) -> None:
        """Let go of a pin's pages, or of what is reserved for it. It may have been let go of before."""
        self.scheduler.pins.remove(pin)

    def save_prefixes(self) -> int:
        """Keep all known pages in the store; returns how many it did not have. Raises OSError.

        Raises ValueError for an engine without one.
        """
        if self.store is None:
            raise ValueError(
                "prefix_store: this engine has none; give a folder to keep prefixes in"
            )
        return self.store.save(self.scheduler.pool)

    def abort(self, request: Request) -> None:
        """End what is unfinished of a request, with finish_reason "abort".

        Its pages become free.
        """
        self._end(self.scheduler.unfinished(request), "abort")
        for sequence in request.sequences:
            if sequence.finish_reason is None:  # it was never added
                sequence.finish("abort")

    def abort_all(self) -> None:
        """End every unfinished request as abort does."""
        self._end(self.scheduler.sequences, "abort")

    def close(self) -> None:
        """Keep the known pages where there is a store; warns where that fails. The last call."""
        if self.store is not None:
            try:
                self.save_prefixes()
            except OSError as error:
                warnings.warn(f"prefix_store: prefixes are not kept: {error}", stacklevel=3)

    def step(self) -> list[Sequence]:
        """Run one step; returns the sequences that took part. Call it only while has_work.

        First, what is unfinished of requests whose time is over ends with finish_reason "timeout"; it is returned, too.
        A step that raises (ValueError: logits that are not finite; whatever the device raises) has
        committed nothing.
        """
        stepped = self.scheduler.overdue(perf_counter())
        if stepped:
            self._end(stepped, "timeout")
            if not self.has_work:
                return stepped
        step = self.scheduler.schedule()
        step.moves.perform(self.executable.kv, self.scheduler.area)
        begin = perf_counter()
        logits = self.executable.run(step.batch)
        self.costs.add_step(len(step.batch.tokens), len(step.chunks), perf_counter() - begin)
        sampled = sample_step(step.chunks, logits, self.executable.sampler)
        self._commit(step, sampled, stepped)
        return stepped

    def _commit(self, step: Step, sampled: list[Sampled], stepped: list[Sequence]) -> None:
        searches: list[BeamSearch] = []
        for chunk, result in zip(step.chunks, sampled, strict=True):
            sequence = chunk.sequence
            stepped.append(sequence)
            self.scheduler.advance(chunk)
            if sequence.search is not None:
                if result.likeliest and sequence.search.take(sequence, result.likeliest):
                    searches.append(sequence.search)
                continue
            if sequence.prompt_logprobs is not None and result.prompt_logprobs is not None:
                sequence.prompt_logprobs += result.prompt_logprobs
            if result.token is not None:
                sequence.append(result.token, result.logprobs)
            elif result.error is not None:
                sequence.finish("error", result.error)
            elif sequence.logits is not None and sequence.remaining == 0:
                sequence.finish("length")
            if sequence.finish_reason is not None:
                self.scheduler.pins.keep(sequence)
                self.scheduler.remove(sequence)
        for search in searches:
            search.advance(self.scheduler)

    def _end(self, sequences: Iterable[Sequence], reason: str) -> None:
        for sequence in sequences:
            self.scheduler.remove(sequence)
            sequence.finish(reason)
