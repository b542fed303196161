"""Metrics: what is counted, and the text that Prometheus reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stepping import stepping

from cpuinfer import LLM, SamplingParams
from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.metrics import Histogram, Metrics, Recorder


def params(n_tokens: int, n: int = 1) -> SamplingParams:
    return SamplingParams(seed=1, max_tokens=n_tokens, ignore_eos=True, n=n)


@pytest.fixture
def llm(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LLM]:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
    with LLM(tiny_model, threads=1, token_budget=64, max_sequences=3) as made:
        yield made


def histograms(metrics: Metrics) -> list[Histogram]:
    return [value for value in vars(metrics).values() if isinstance(value, Histogram)]


def test_nothing_has_happened(llm: LLM) -> None:
    metrics = llm.metrics()
    assert all(h.count == 0 and h.sum == 0 and h.mean == 0 for h in histograms(metrics))
    assert metrics.kv_pages_total == llm.limits.n_pages
    reasons = ("stop", "length", "abort", "timeout", "error")
    assert dict(metrics.requests_finished) == dict.fromkeys(reasons, 0)
    assert dict(metrics.preemptions) == {"recompute": 0, "swap": 0}
    others = {
        name: value
        for name, value in vars(metrics).items()
        if not isinstance(value, Histogram) and name != "kv_pages_total"
    }
    assert not any(value for value in others.values() if isinstance(value, (int, float)))
    assert metrics.prefix_hit_rate == metrics.kv_waste == 0


def test_requests_and_tokens_are_counted(llm: LLM) -> None:
    outputs = llm.generate(["hello", "hello world", "w"], [params(5), params(3, n=2), params(1)])
    llm.logits([1, 2, 3])
    with stepping(llm) as steps:
        stream = llm.stream("hello", params(200))
        steps.permit()
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    metrics = llm.metrics()
    prompts = sum(len(output.prompt_token_ids) for output in (*outputs, outputs[0]))
    assert metrics.prompt_tokens == prompts + 3
    assert metrics.generation_tokens >= 5 + 6 + 1 + 1
    assert metrics.requests_finished["length"] == 4
    assert metrics.requests_finished["abort"] == 1
    assert metrics.requests_running == metrics.requests_waiting == metrics.kv_pages_used == 0
    assert metrics.steps > 0
    assert metrics.queue_seconds.count == metrics.request_seconds.count == 5
    assert (
        metrics.first_token_seconds.count == 4
    )  # one of n completions is the first; a scoring request has none
    assert metrics.between_tokens_seconds.count >= 4 + 2 * 2
    for histogram in histograms(metrics):
        assert histogram.sum > 0 and len(histogram.counts) == len(histogram.bounds) + 1
    with pytest.raises(AttributeError):
        metrics.steps = 0  # type: ignore[misc]


def test_beams_count_what_they_return(llm: LLM) -> None:
    from cpuinfer.config import BeamSearchParams

    (output,) = llm.beam_search("hello", BeamSearchParams(beam_width=3, max_tokens=5))
    metrics = llm.metrics()
    assert metrics.generation_tokens == sum(len(o.token_ids) for o in output.outputs)
    assert sum(metrics.requests_finished.values()) == metrics.first_token_seconds.count == 1


def test_gauges_while_requests_run(llm: LLM) -> None:
    prompt = list(range(3, 43))  # 40 tokens: three pages, the last half filled
    with stepping(llm) as steps:
        thread = threading.Thread(target=llm.generate, args=([prompt] * 5, params(3)))
        thread.start()
        steps.wait_begun()
        asked = threading.Thread(target=lambda: found.append(llm.metrics()))
        found: list[Metrics] = []
        asked.start()
        while llm._runner._core.inbox.empty():
            pass
        steps.permit()
        asked.join()
        steps.permit(100)
        thread.join()
    (metrics,) = found
    # A step of 64 tokens holds one prompt and a part of the next; the third has its pages already, or waits.
    assert metrics.requests_running + metrics.requests_waiting == 5
    assert metrics.requests_running in (2, 3)
    assert metrics.kv_pages_used >= 6 - metrics.kv_pages_shared
    # Computed: 64 tokens; whatever else is on the pages is waste until it is computed.
    held = metrics.kv_pages_used * PAGE_TOKENS
    assert 0 < metrics.kv_slots_wasted < held and metrics.kv_waste == metrics.kv_slots_wasted / held
    after = llm.metrics()
    assert after.kv_pages_known > 0 and 0 < after.prefix_hit_rate < 1
    assert after.prefix_queries == 5 * 40


def test_buckets_take_their_upper_bound() -> None:
    recorder = Recorder()
    for value in (0.001, 0.0011, 1e9):
        recorder.between.observe(value)
    histogram = recorder.between.histogram()
    assert histogram.counts[0] == histogram.counts[1] == histogram.counts[-1] == 1
    assert histogram.count == 3 and histogram.sum == pytest.approx(1e9)


def test_the_rate_is_of_whole_seconds_lately() -> None:
    recorder = Recorder()
    for second in range(100, 130):
        for tenth in range(10):
            recorder.step(4, second + tenth / 10)
    assert recorder.generation_tokens == 1200
    assert recorder.tokens_per_s(129.95) == 40
    assert recorder.tokens_per_s(134.0) == 24  # six of the ten seconds had tokens
    assert recorder.tokens_per_s(1000.0) == 0


def test_prometheus_reads_it(llm: LLM) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    llm.generate(["hello", "hello world"], params(5))
    metrics, label = llm.metrics(), 'a "model"\\of\nlines'
    families = {
        family.name: family
        for family in parser.text_string_to_metric_families(metrics.prometheus(model_name=label))
    }
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    name = ("model_name", label)
    assert all(name in key for key in samples)
    assert all(family.documentation for family in families.values())
    assert samples["cpuinfer:num_requests_running", name] == 0
    assert samples["cpuinfer:generation_tokens_total", name] == 10
    assert families["cpuinfer:generation_tokens"].type == "counter"
    assert families["cpuinfer:kv_cache_usage_perc"].type == "gauge"
    assert samples["cpuinfer:request_success_total", ("finished_reason", "length"), name] == 2
    for histogram, short in (
        (metrics.first_token_seconds, "cpuinfer:time_to_first_token_seconds"),
        (metrics.between_tokens_seconds, "cpuinfer:inter_token_latency_seconds"),
        (metrics.queue_seconds, "cpuinfer:request_queue_time_seconds"),
        (metrics.request_seconds, "cpuinfer:e2e_request_latency_seconds"),
    ):
        assert families[short].type == "histogram"
        buckets = [s for s in families[short].samples if s.name.endswith("_bucket")]
        assert [float(s.labels["le"]) for s in buckets] == [*histogram.bounds, float("inf")]
        assert [s.value for s in buckets] == sorted(s.value for s in buckets)
        assert buckets[-1].value == samples[f"{short}_count", name] == histogram.count
        assert samples[f"{short}_sum", name] == histogram.sum


def test_every_line_is_one_that_the_format_has(llm: LLM) -> None:
    """Without the peer's parser: names, labels and numbers by the grammar of the text format 0.0.4."""
    import re

    name, text = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r'"(?:[^"\\\n]|\\[\\"n])*"'
    number = r"[+-]?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|Inf)"
    sample = rf"{name}(?:{{[a-zA-Z_]\w*={text}(?:,[a-zA-Z_]\w*={text})*}})? {number}"
    comment = rf"# HELP {name} .+|# TYPE {name} (?:counter|gauge|histogram)"
    llm.generate("hello", params(3))
    plain = llm.metrics().prometheus()
    assert plain.endswith("\n")
    for line in (plain + llm.metrics().prometheus(model_name='"\\\n')).splitlines():
        assert re.fullmatch(f"{comment}|{sample}", line), line
