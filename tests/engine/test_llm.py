"""LLM whole, on a tiny model; the last test on the real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stepping import idle, stepping

from cpuinfer import LLM, SamplingParams
from cpuinfer.engine.outputs import RequestOutput
from cpuinfer.engine.sequence import Sequence
from cpuinfer.graph.dtypes import KVType

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SAMPLED = SamplingParams(seed=3, max_tokens=12, ignore_eos=True, logprobs=2)
PROMPTS = [
    "hello world",
    "hello",
    "a much longer prompt, of more than one page of tokens " * 3,
    "w",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPUINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["reference", "native"])
def llm(request: pytest.FixtureRequest, cache: None, tiny_model: Path) -> LLM:
    return LLM(tiny_model, device=request.param, token_budget=24, max_sequences=3)


def test_greedy_follows_the_logits(llm: LLM) -> None:
    (output,) = llm.generate("hello world", GREEDY)
    tokens = list(output.prompt_token_ids)
    for token in output.outputs[0].token_ids:
        assert token == llm.logits(tokens)[-1].argmax()
        tokens.append(token)
    assert output.outputs[0].finish_reason == "length"
    assert idle(llm)


def test_results_keep_their_order_and_do_not_depend_on_company(llm: LLM) -> None:
    together = llm.generate(PROMPTS, SAMPLED)
    assert [output.prompt for output in together] == PROMPTS
    for output in together:
        (alone,) = llm.generate(output.prompt_token_ids, SAMPLED)
        assert alone.outputs == output.outputs
        assert alone.prompt is None


@pytest.mark.parametrize("kv_type", list(KVType))
def test_a_known_beginning_changes_no_bit(cache: None, tiny_model: Path, kv_type: KVType) -> None:
    text = "a much longer prompt, of more than one page of tokens " * 3

    def answers(prefix_caching: bool) -> list[RequestOutput]:
        options = {"kv_type": kv_type, "token_budget": 24, "prefix_caching": prefix_caching}
        llm = LLM(tiny_model, device="native", **options)
        return [llm.generate(text + tail, SAMPLED)[0] for tail in ("one", "two", "one")]

    known, fresh = answers(True), answers(False)
    assert [output.outputs for output in known] == [output.outputs for output in fresh]
    assert [output.num_cached_tokens for output in fresh] == [0, 0, 0]
    first, other, same = (output.num_cached_tokens for output in known)
    assert first == 0 < other <= same


def test_one_params_for_each_prompt(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (1, 5, 3)]
    outputs = llm.generate(["hello"] * 3, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 3]
    with pytest.raises(ValueError, match="1 given for 2 prompts"):
        llm.generate(["a", "b"], params[:1])


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, logprobs=1, prompt_logprobs=1, seed=0, ignore_eos=True)
    (output,) = llm.generate("hello world, hello", params)
    completion = output.outputs[0]
    logits = llm.logits(output.prompt_token_ids + completion.token_ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert output.prompt_logprobs is not None and completion.logprobs is not None
    assert output.prompt_logprobs[0] is None
    listed = [*output.prompt_logprobs[1:], *completion.logprobs]
    tokens = [*output.prompt_token_ids[1:], *completion.token_ids]
    assert len(listed) == len(tokens)
    for row, entry, token in zip(logits[:-1], listed, tokens, strict=True):
        assert entry is not None and token in entry and int(row.argmax()) in entry
        for i, reported in entry.items():
            assert reported.logprob == pytest.approx(row[i], abs=1e-9)
            assert reported.decoded_token == llm.tokenizer.decode([i], skip_special=False)
    total = sum(
        e[t].logprob for e, t in zip(completion.logprobs, completion.token_ids, strict=True)
    )
    assert completion.cumulative_logprob == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("bad", [[1] * 300, "x" * 300, [], [10**6], [-1]])
def test_a_prompt_that_does_not_fit_is_refused_before_any_runs(
    llm: LLM, bad: list[int] | str
) -> None:
    with pytest.raises(ValueError, match="prompt"):
        llm.generate(["hello", bad], GREEDY)
    assert idle(llm)


def test_both_numbers_are_in_the_error(llm: LLM) -> None:
    with pytest.raises(ValueError, match="300 tokens do not fit the context of 256"):
        llm.generate([1] * 300)
    with pytest.raises(ValueError, match="257 tokens do not fit the context of 256"):
        llm.logits([1] * 257)
    assert llm.logits([1] * 256).shape == (256, llm.program.vocab_size)


@pytest.mark.parametrize("bad", [[1.5], [["a"]], [None], [True], 7])
def test_what_is_no_prompt_is_refused(llm: LLM, bad: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        llm.generate(bad)  # type: ignore[arg-type]


def test_a_stream_is_generate_in_pieces(llm: LLM) -> None:
    (output,) = llm.generate("hello", SAMPLED)
    chunks = list(llm.stream("hello", SAMPLED))
    assert "".join(chunk.text for chunk in chunks) == output.outputs[0].text
    assert [t for chunk in chunks for t in chunk.token_ids] == output.outputs[0].token_ids
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    whole = chunks[-1].output
    assert whole is not None and (whole.prompt, whole.outputs) == ("hello", output.outputs)
    assert all(chunk.output is None for chunk in chunks[:-1])


def test_a_reader_in_time_gets_every_token_by_itself(llm: LLM) -> None:
    with stepping(llm) as steps:
        stream = llm.stream("hello", SAMPLED)
        for _ in range(12):
            steps.permit()
            assert len(next(stream).token_ids) == 1


def test_what_a_slow_reader_missed_is_one_chunk(llm: LLM) -> None:
    stream = llm.stream("hello", SAMPLED)
    first = next(stream)
    while not idle(llm):
        pass
    rest = list(stream)
    assert len(rest) <= 2  # news that was there while it read the first may come alone
    (output,) = llm.generate("hello", SAMPLED)
    tokens = [token for chunk in (first, *rest) for token in chunk.token_ids]
    assert tokens == output.outputs[0].token_ids


def test_a_stream_checks_at_once(llm: LLM) -> None:
    with pytest.raises(ValueError, match="300 tokens"):
        llm.stream([1] * 300)
    with pytest.raises(ValueError, match="n: "):
        llm.stream("hello", SamplingParams(n=2))


@pytest.mark.parametrize("drop", [False, True])
def test_an_abandoned_stream_frees_its_pages_within_a_step(llm: LLM, drop: bool) -> None:
    with stepping(llm) as steps:
        stream = llm.stream("hello", SAMPLED)
        steps.permit()
        next(stream)
        if drop:
            del stream
        else:
            stream.close()  # type: ignore[attr-defined]
        steps.permit()  # for the step that may have begun
        assert idle(llm)
        assert steps.n_run <= 2


def test_chat_is_the_template_and_generate(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    output = llm.chat(messages, GREEDY)
    assert output.prompt == text
    ids = llm.tokenizer.encode(text, add_special=False)
    assert output.prompt_token_ids == ids
    assert output.outputs == llm.generate(ids, GREEDY)[0].outputs
    assert "".join(c.text for c in llm.stream_chat(messages, GREEDY)) == output.outputs[0].text


def test_many_threads(llm: LLM) -> None:
    want = [output.outputs for output in llm.generate(PROMPTS, SAMPLED)]
    got: dict[int, object] = {}

    def work(number: int) -> None:
        if number % 2:
            got[number] = llm.generate(PROMPTS[number % 4], SAMPLED)[0].outputs[0].token_ids
        else:
            chunks = list(llm.stream(PROMPTS[number % 4], SAMPLED))
            got[number] = [t for chunk in chunks for t in chunk.token_ids]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [got.get(i) for i in range(8)] == [want[i % 4][0].token_ids for i in range(8)]
    assert idle(llm)


def test_a_failing_step_ends_those_who_share_it_with_the_error(llm: LLM) -> None:
    raised: list[Exception] = []

    def generate() -> None:
        try:
            llm.generate("hello", SAMPLED)
        except OSError as error:
            raised.append(error)

    with stepping(llm) as steps:
        stream = llm.stream("hello", SAMPLED)
        steps.permit()
        next(stream)
        steps.wait_begun()
        steps.wait_begun()
        thread = threading.Thread(target=generate)
        thread.start()
        while llm._runner._core.inbox.empty():
            pass
        steps.permit()
        steps.wait_begun()  # one that both share
        steps.error = OSError("broken")
        steps.permit()
        with pytest.raises(OSError, match="broken"):
            list(stream)
        thread.join(60)
        assert raised == [steps.error]
    assert idle(llm)
    assert llm.generate("hello", SAMPLED)[0].outputs[0].finish_reason == "length"


def test_progress_timings_and_seed(llm: LLM) -> None:
    seen: list[tuple[int, int]] = []
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=4), lambda *n: seen.append(n))
    assert seen[-1] == (4, 4) and seen == sorted(seen)
    for output in outputs:
        again = SamplingParams(max_tokens=4, seed=output.seed)
        assert llm.generate(output.prompt or "", again)[0].outputs == output.outputs
        t = output.timings
        assert t.load_s == llm.load_s > 0
        assert 0 <= t.queue_s <= t.ttft_s <= t.total_s
        assert t.prefill_tok_s > 0


def test_stop_strings_and_tokens(llm: LLM) -> None:
    (free,) = llm.generate("hello", GREEDY)
    text, tokens = free.outputs[0].text, free.outputs[0].token_ids
    stop = text[4:6]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=stop)
    completion = llm.generate("hello", params)[0].outputs[0]
    assert completion.text == text[: text.index(stop)]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    params = SamplingParams(
        temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=tokens[5:6]
    )
    completion = llm.generate("hello", params)[0].outputs[0]
    assert completion.token_ids == tokens[: tokens.index(tokens[5]) + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", tokens[5])


def test_a_closed_llm_says_so(cache: None, tiny_model: Path) -> None:
    with LLM(tiny_model, device="reference", max_context=64) as llm, stepping(llm) as steps:
        assert llm.limits.max_context == 64
        stream = llm.stream("hello", GREEDY)
        steps.permit()
        next(stream)
        closer = threading.Thread(target=llm.close)
        closer.start()
        while not llm._runner._core.closed:
            pass
        steps.permit()
        closer.join(60)
        assert list(stream)[-1].finish_reason == "abort"
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("hello", GREEDY)
    assert llm.metrics().requests_finished["abort"] == 1


def test_options_that_cannot_be(cache: None, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="257.* 256"):
        LLM(tiny_model, max_context=257)
    with pytest.raises(ValueError, match="device: expected one of"):
        LLM(tiny_model, device="gpu")
    with pytest.raises(TypeError, match="contxt"):
        LLM(tiny_model, contxt=5)


@pytest.mark.model
def test_the_real_model_answers(real_model: Path) -> None:
    with LLM(real_model) as llm:
        params = SamplingParams(temperature=0, max_tokens=8)
        assert "Paris" in llm.generate("The capital of France is", params)[0].outputs[0].text
        question = [{"role": "user", "content": "What colour is the sky?"}]
        answer = llm.chat(question, SamplingParams(temperature=0, max_tokens=80)).outputs[0]
        assert "blue" in answer.text and answer.finish_reason == "stop"


def test_stats_are_kept_where_asked_for(cache: None, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="make the LLM with stats=True"):
        LLM(tiny_model, threads=1).stats()
    with pytest.raises(ValueError, match="use the device 'native'"):
        LLM(tiny_model, device="reference", stats=True)
    plain = LLM(tiny_model, threads=1).generate(PROMPTS, GREEDY)
    llm = LLM(tiny_model, threads=1, stats=True)
    outputs = llm.generate(PROMPTS, GREEDY)
    assert [o.outputs for o in outputs] == [o.outputs for o in plain]
    stats = llm.stats(reset=True)
    assert [phase.phase for phase in stats.phases] == ["prefill", "decode"]
    # The last token of each is never computed.
    computed = sum(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) - 1 for o in outputs)
    assert sum(phase.tokens for phase in stats.phases) == computed
    for phase in stats.phases:
        assert phase.python_s > 0
        shares = sum(op.share_of_time for op in phase.ops)
        assert shares + (phase.fork_join_s + phase.python_s) / phase.seconds == pytest.approx(1)
    assert llm.stats().phases == ()


def test_priority_and_time_reach_the_engine(
    cache: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []

    def work(priority: int) -> None:
        llm.generate("hello", GREEDY, priority=priority)

    def refused() -> None:
        try:
            llm.generate("hello", GREEDY)
        except ValueError as error:
            errors.append(error)

    errors: list[ValueError] = []
    options = {"threads": 1, "max_sequences": 1, "max_waiting": 3}
    with LLM(tiny_model, **options) as llm, stepping(llm) as steps:
        scheduler = llm._runner.engine.scheduler
        remove = scheduler.remove

        def noted(sequence: Sequence) -> None:
            order.append(scheduler._groups[sequence].request.priority)
            remove(sequence)

        monkeypatch.setattr(scheduler, "remove", noted)
        threads = [threading.Thread(target=work, args=(p,)) for p in (0, 2, -1, 1)]
        for thread in threads:
            thread.start()
            if thread is threads[0]:
                steps.wait_begun()
        while llm._runner._core.inbox.qsize() < 3:
            pass
        threads.append(threading.Thread(target=refused))
        threads[-1].start()
        while llm._runner._core.inbox.qsize() < 4:
            pass
        steps.permit(100)
        for thread in threads:
            thread.join(60)
        assert len(errors) == 1 and "the queue is full" in str(errors[0])
        assert order == [0, -1, 1, 2]
        chunks = list(llm.stream("hello", GREEDY, timeout_s=0))
        assert [chunk.finish_reason for chunk in chunks] == ["timeout"]
        (output,) = llm.generate("hello", GREEDY, timeout_s=0)
        assert output.outputs[0].finish_reason == "timeout"
        assert llm.metrics().requests_finished["timeout"] == 2
        assert idle(llm)
        with pytest.raises(ValueError, match="priority: expected an integer"):
            llm.chat([{"role": "user", "content": "hello"}], priority=0.5)  # type: ignore[arg-type]
