"""What an engine has done and how it stands: counters, gauges and histograms, also as Prometheus reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType

from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.scheduler import Scheduler
from cpuinfer.engine.sequence import Request

PREFIX = "cpuinfer:"
RATE_SECONDS = 10
"""tokens_per_s is over the last so many whole seconds."""
FINISH_REASONS = ("stop", "length", "abort", "timeout", "error")
"""Those that are counted from the start, so that a counter does not begin at its first event."""

# Seconds; vLLM's bounds, less those that a CPU does not reach.
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)  # fmt: skip
_WHOLE = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)  # fmt: skip


@dataclass(frozen=True)
class Histogram:
    """counts[i]: observations above bounds[i - 1] and at most bounds[i]; the last count is of those above all bounds.

    sum: of all observations.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean, 0 where there are none."""
        return self.sum / self.count if self.count else 0.0


@dataclass(frozen=True)
class Metrics:
    """An engine between two steps. Gauges are of now, all others count from the start.

    requests_running: with KV pages; waiting: without; swapped: those of them whose pages are kept elsewhere meanwhile.
    kv_pages_used: held by requests; shared: of these by several sequences; known: full pages that the prefix index
    finds, held or free. kv_slots_wasted: places for tokens on used pages that hold no computed token.
    prefix_queries, prefix_hits: prompt tokens of requests that started, and those whose keys and values were there.
    preemptions: by how the pages come back. requests_finished: by finish_reason. tokens_per_s: generated, over the
    last RATE_SECONDS. Histograms are in seconds, from when the engine was given the request: until its first step
    (queue), its first token and its end; and between two tokens of a completion.
    """

    requests_running: int
    requests_waiting: int
    requests_swapped: int
    kv_pages_total: int
    kv_pages_used: int
    kv_pages_shared: int
    kv_pages_known: int
    kv_slots_wasted: int
    prefix_queries: int
    prefix_hits: int
    preemptions: Mapping[str, int]
    requests_finished: Mapping[str, int]
    steps: int
    prompt_tokens: int
    generation_tokens: int
    tokens_per_s: float
    queue_seconds: Histogram
    first_token_seconds: Histogram
    between_tokens_seconds: Histogram
    request_seconds: Histogram

    @property
    def prefix_hit_rate(self) -> float:
        """Of prompt tokens, 0 where there were none."""
        return self.prefix_hits / self.prefix_queries if self.prefix_queries else 0.0

    @property
    def kv_waste(self) -> float:
        """The share of used pages' places that no token has, 0 where none is used."""
        used = self.kv_pages_used * PAGE_TOKENS
        return self.kv_slots_wasted / used if used else 0.0

    def prometheus(self, **labels: str) -> str:
        """Prometheus' text format 0.0.4, each sample with these labels. Names are vLLM's where it has them.

        Serve it with the content type `text/plain; version=0.0.4; charset=utf-8`.
        """
        return "".join(_exposition(self, labels))


class _Tally:
    """A histogram that grows."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def histogram(self) -> Histogram:
        return Histogram(self.bounds, tuple(self.counts), self.sum)


class Progress:
    """A request as the Recorder follows it: of each sequence its tokens, prompt included, and when the last came."""

    __slots__ = ("begun", "last", "n_tokens")

    def __init__(self, request: Request) -> None:
        self.begun = False
        self.n_tokens = [len(sequence.tokens) for sequence in request.sequences]
        self.last = [0.0] * len(self.n_tokens)


class Recorder:
    """Counts what happens to requests, at less than a microsecond a token. One thread at a time."""

    def __init__(self) -> None:
        self.finish_reasons = Counter(dict.fromkeys(FINISH_REASONS, 0))
        self.steps = self.prompt_tokens = self.generation_tokens = 0
        self.queue, self.first = _Tally(_WHOLE), _Tally(_FIRST)
        self.between, self.whole = _Tally(_BETWEEN), _Tally(_WHOLE)
        self._seconds: deque[tuple[int, int]] = deque(maxlen=RATE_SECONDS + 1)

    def token(self, request: Request, progress: Progress, i: int, now: float) -> int:
        """Sequence i of a request has new tokens; returns how many."""
        if progress.last[i]:
            self.between.observe(now - progress.last[i])
        elif not progress.begun:
            self.first.observe(now - request.created)
            self._begin(request, progress)
        progress.last[i] = now
        before = progress.n_tokens[i]
        progress.n_tokens[i] = n_tokens = len(request.sequences[i].tokens)
        return n_tokens - before

    def step(self, new_tokens: int, now: float) -> None:
        """A step is done, and gave so many tokens."""
        self.steps += 1
        self.generation_tokens += new_tokens
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            new_tokens += self._seconds.pop()[1]
        self._seconds.append((second, new_tokens))

    def finished(self, request: Request, progress: Progress) -> None:
        """A request is done."""
        if not progress.begun and request.sequences[0].started is not None:
            self._begin(request, progress)
        completions = request.completions
        if request.sequences[0].search is not None:
            self.generation_tokens += sum(len(s.tokens) - s.n_prompt for s in completions)
        self.finish_reasons[completions[0].finish_reason or "abort"] += 1
        ends = [sequence.finished for sequence in completions if sequence.finished]
        self.whole.observe(max(ends, default=request.created) - request.created)

    def tokens_per_s(self, now: float) -> float:
        """Over the last RATE_SECONDS whole seconds; the running one is not whole."""
        end = int(now)
        return sum(n for at, n in self._seconds if end - RATE_SECONDS <= at < end) / RATE_SECONDS

    def _begin(self, request: Request, progress: Progress) -> None:
        progress.begun = True
        first = request.sequences[0]
        self.prompt_tokens += first.n_prompt
        if first.started is not None:
            self.queue.observe(first.started - request.created)


def snapshot(recorder: Recorder, scheduler: Scheduler) -> Metrics:
    """What was recorded, and how the scheduler stands."""
    pool, counters = scheduler.pool, scheduler.counters
    holders = Counter(pool.holders(page) for page in range(pool.n_pages))
    return Metrics(
        requests_running=len(scheduler.running),
        requests_waiting=len(scheduler.waiting) + len(scheduler.preempted),
        requests_swapped=sum(bool(group.parked) for group in scheduler.preempted),
        kv_pages_total=pool.n_pages,
        kv_pages_used=pool.n_pages - holders[0],
        kv_pages_shared=pool.n_pages - holders[0] - holders[1],
        kv_pages_known=pool.n_known,
        kv_slots_wasted=scheduler.wasted_slots,
        prefix_queries=counters.prefix_asked,
        prefix_hits=counters.prefix_hit,
        preemptions=MappingProxyType({"recompute": counters.recomputed, "swap": counters.swapped}),
        requests_finished=MappingProxyType(dict(recorder.finish_reasons)),
        steps=recorder.steps,
        prompt_tokens=recorder.prompt_tokens,
        generation_tokens=recorder.generation_tokens,
        tokens_per_s=recorder.tokens_per_s(perf_counter()),
        queue_seconds=recorder.queue.histogram(),
        first_token_seconds=recorder.first.histogram(),
        between_tokens_seconds=recorder.between.histogram(),
        request_seconds=recorder.whole.histogram(),
    )


def _exposition(metrics: Metrics, labels: Mapping[str, str]) -> Iterator[str]:
    """The lines of each metric."""
    for name, kind, help_text, value in (
        ("num_requests_running", "gauge", "Requests that hold KV pages.", metrics.requests_running),
        ("num_requests_waiting", "gauge", "Requests that wait for KV pages.", metrics.requests_waiting),
        ("num_requests_swapped", "gauge", "Requests whose KV pages are swapped out.", metrics.requests_swapped),
        ("kv_cache_usage_perc", "gauge", "Used KV pages, 1 is all.", metrics.kv_pages_used / metrics.kv_pages_total),
        ("kv_pages", "gauge", "KV pages.", metrics.kv_pages_total),
        ("kv_pages_used", "gauge", "KV pages that requests hold.", metrics.kv_pages_used),
        ("kv_pages_shared", "gauge", "KV pages that several sequences hold.", metrics.kv_pages_shared),
        ("kv_pages_known", "gauge", "Full KV pages that the prefix index finds.", metrics.kv_pages_known),
        ("kv_slots_wasted", "gauge", "Places for tokens on used KV pages that no token has.", metrics.kv_slots_wasted),
        ("generation_tokens_per_second", "gauge", f"Over the last {RATE_SECONDS} s.", metrics.tokens_per_s),
        ("prefix_cache_queries_total", "counter", "Prompt tokens looked for in the prefix index.", metrics.prefix_queries),
        ("prefix_cache_hits_total", "counter", "Prompt tokens found there.", metrics.prefix_hits),
        ("prompt_tokens_total", "counter", "Prompt tokens.", metrics.prompt_tokens),
        ("generation_tokens_total", "counter", "Generated tokens.", metrics.generation_tokens),
        ("engine_steps_total", "counter", "Steps.", metrics.steps),
    ):  # fmt: skip
        yield _head(name, kind, help_text)
        yield _sample(name, labels, value)
    for name, help_text, key, counts in (
        ("num_preemptions_total", "Preemptions, by how the KV pages come back.", "kind", metrics.preemptions),
        ("request_success_total", "Finished requests.", "finished_reason", metrics.requests_finished),
    ):  # fmt: skip
        yield _head(name, "counter", help_text)
        for which, count in counts.items():
            yield _sample(name, {**labels, key: which}, count)
    for name, help_text, histogram in (
        ("request_queue_time_seconds", "From a request's arrival until its first step.", metrics.queue_seconds),
        ("time_to_first_token_seconds", "From a request's arrival.", metrics.first_token_seconds),
        ("inter_token_latency_seconds", "Between two tokens of a completion.", metrics.between_tokens_seconds),
        ("e2e_request_latency_seconds", "From a request's arrival until its end.", metrics.request_seconds),
    ):  # fmt: skip
        yield _head(name, "histogram", help_text)
        total = 0
        for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
            total += count
            yield _sample(f"{name}_bucket", {**labels, "le": str(bound)}, total)
        yield _sample(f"{name}_sum", labels, histogram.sum)
        yield _sample(f"{name}_count", labels, total)


def _head(name: str, kind: str, help_text: str) -> str:
    return f"# HELP {PREFIX}{name} {help_text}\n# TYPE {PREFIX}{name} {kind}\n"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    listed = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{PREFIX}{name}{{{listed}}} {value}\n" if listed else f"{PREFIX}{name} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
