"""AsyncLLM: streams, their ends, several event loops, readers that are slow or gone."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from stepping import PATIENCE_S, idle, stepping

from cpuinfer import LLM, AsyncLLM, SamplingParams
from cpuinfer.engine.outputs import RequestOutput, StreamChunk

PROMPTS = ["hello world", "hello", "a much longer prompt, of more than one page of tokens " * 3]
SAMPLED = SamplingParams(seed=3, max_tokens=12, ignore_eos=True, logprobs=2)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def sync(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPUINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        with LLM(tiny_model, threads=1, token_budget=24, max_sequences=3) as made:
            yield made


@pytest.fixture
def llm(sync: LLM) -> AsyncLLM:
    return AsyncLLM(sync)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE_S))


async def collect(llm: AsyncLLM, *args: Any) -> list[StreamChunk]:
    return [chunk async for chunk in llm.generate(*args)]


def whole(chunks: list[StreamChunk]) -> RequestOutput:
    """The request's output; its chunks must add up to it."""
    output = chunks[-1].output
    assert output is not None and all(chunk.output is None for chunk in chunks[:-1])
    for completion in output.outputs:
        own = [chunk for chunk in chunks if chunk.index == completion.index]
        assert "".join(chunk.text for chunk in own) == completion.text
        assert [token for chunk in own for token in chunk.token_ids] == completion.token_ids
        assert own[-1].finish_reason == completion.finish_reason
        assert {chunk.finish_reason for chunk in own[:-1]} <= {None}
    return output


def test_many_tasks_get_what_generate_gives(sync: LLM, llm: AsyncLLM) -> None:
    async def work() -> list[list[StreamChunk]]:
        return await asyncio.gather(*(collect(llm, prompt, SAMPLED) for prompt in PROMPTS * 4))

    want = [output.outputs for output in sync.generate(PROMPTS, SAMPLED)] * 4
    assert [whole(chunks).outputs for chunks in run(work())] == want
    assert idle(sync)


def test_n_completions_and_chat(sync: LLM, llm: AsyncLLM) -> None:
    params = SamplingParams(seed=5, n=3, max_tokens=8, ignore_eos=True)
    output = whole(run(collect(llm, "hello", params)))
    assert output.outputs == sync.generate("hello", params)[0].outputs
    messages = [{"role": "user", "content": "hello"}]

    async def chat() -> list[StreamChunk]:
        return [chunk async for chunk in llm.chat(messages, SAMPLED, "a chat")]

    answer, want = whole(run(chat())), sync.chat(messages, SAMPLED)
    assert (answer.request_id, answer.prompt) == ("a chat", want.prompt)
    assert answer.outputs == want.outputs


def test_every_token_comes_as_it_is_made(sync: LLM, llm: AsyncLLM) -> None:
    async def work() -> None:
        stream = llm.generate("hello", SAMPLED)
        for _ in range(12):
            steps.permit()
            assert len((await anext(stream)).token_ids) == 1

    with stepping(sync) as steps:
        run(work())


@pytest.mark.parametrize("how", ["cancel", "close", "drop", "break", "loop"])
def test_a_reader_that_goes_frees_its_pages_within_a_step(
    sync: LLM, llm: AsyncLLM, how: str
) -> None:
    started = threading.Event()

    async def read() -> None:
        async for _ in llm.generate("hello", LONG):
            started.set()

    async def work() -> None:
        if how in ("cancel", "loop"):
            task = asyncio.create_task(read())
            while not started.is_set():
                await asyncio.sleep(0)
            if how == "cancel":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            return
        stream = llm.generate("hello", LONG)
        async for _ in stream:
            break
        if how == "close":
            await stream.aclose()
        elif how == "drop":
            del stream
            gc.collect()
            await asyncio.sleep(0)  # the loop closes it
            await asyncio.sleep(0)

    with stepping(sync) as steps:
        steps.permit()
        run(work())
        steps.permit()  # for the step that may have begun
        assert idle(sync)
        assert steps.n_run <= 2
    assert not llm._tickets


def test_a_loop_that_died_ends_its_requests(sync: LLM, llm: AsyncLLM) -> None:
    loop = asyncio.new_event_loop()
    before = sync.metrics().requests_finished["abort"]
    with stepping(sync) as steps:
        stream = llm.generate("hello", LONG)
        steps.permit()
        loop.run_until_complete(anext(stream))
        loop.close()  # with no word to the reader
        steps.permit(3)
        while sync.metrics().requests_finished["abort"] == before:
            pass
        assert idle(sync)


def test_abort_by_name(sync: LLM, llm: AsyncLLM) -> None:
    async def work() -> None:
        stream = llm.generate("hello", LONG, request_id="mine")
        first = await anext(stream)
        with pytest.raises(ValueError, match="'mine' is in use"):
            llm.generate("hello", LONG, request_id="mine")
        llm.abort("mine")
        llm.abort("nobody's")
        steps.permit()
        rest = [chunk async for chunk in stream]
        output = whole([first, *rest])
        assert output.request_id == "mine"
        assert output.outputs[0].finish_reason == "abort"
        steps.permit(20)
        assert whole(await collect(llm, "hello", SAMPLED, "mine")).request_id == "mine"

    with stepping(sync) as steps:
        steps.permit()
        run(work())


def test_a_slow_reader_holds_up_nobody(sync: LLM, llm: AsyncLLM) -> None:
    async def work() -> None:
        slow = llm.generate("hello", LONG)
        chunks = [await anext(slow)]
        # All of this loop's requests but the slow one go on, and it gets the rest in one piece.
        assert whole(await collect(llm, "hello world", LONG)).outputs[0].finish_reason == "length"
        while (await llm.metrics()).requests_running:
            await asyncio.sleep(0.01)
        chunks += [chunk async for chunk in slow]
        assert len(chunks) <= 3
        assert whole(chunks).outputs == sync.generate("hello", LONG)[0].outputs

    run(work())


def test_several_loops_and_threads(sync: LLM, llm: AsyncLLM) -> None:
    want = [output.outputs for output in sync.generate(PROMPTS, SAMPLED)]
    got: dict[int, Any] = {}

    def work(number: int) -> None:
        async def all_of_them() -> list[Any]:
            both = await asyncio.gather(*(collect(llm, prompt, SAMPLED) for prompt in PROMPTS))
            return [whole(chunks).outputs for chunks in both]

        if number % 2:
            got[number] = run(all_of_them())
        else:
            got[number] = [output.outputs for output in sync.generate(PROMPTS, SAMPLED)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert got == {i: want for i in range(6)}
    gc.collect()
    assert not llm._tickets and not llm._mailboxes


def test_a_failing_step_raises_in_the_task(sync: LLM, llm: AsyncLLM) -> None:
    async def work() -> None:
        stream = llm.generate("hello", LONG)
        await anext(stream)
        steps.error = OSError("broken")
        steps.permit()
        with pytest.raises(OSError, match="broken"):
            await anext(stream)

    with stepping(sync) as steps:
        steps.permit()
        run(work())
    assert idle(sync)


def test_bad_requests_are_refused_at_once(llm: AsyncLLM, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="300 tokens"):
        llm.generate([1] * 300)
    with pytest.raises(ValueError, match="threads: options of an LLM"):
        AsyncLLM(llm.llm, threads=2)


def test_closing_ends_what_runs(sync: LLM, tiny_model: Path) -> None:
    async def work() -> None:
        async with AsyncLLM(tiny_model, threads=1) as llm:
            stream = llm.generate("hello", LONG)
            chunks = [await anext(stream)]
        chunks += [chunk async for chunk in stream]
        assert whole(chunks).outputs[0].finish_reason in ("abort", "length")
        with pytest.raises(RuntimeError, match="closed"):
            llm.generate("hello")

    run(work())
