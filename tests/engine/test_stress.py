"""64 threads and 256 tasks at once on one engine: every answer is right, nothing hangs, nothing is left behind.

CPUINFER_STRESS_SECONDS=300 makes it as long, and checks that memory stays where it is; without, it is a round of
requests for each. The seed is printed; CPUINFER_STRESS_SEED repeats one. Made to run on a library built for ThreadSanitizer, too.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest
from stepping import idle

from cpuinfer import LLM, AsyncLLM, SamplingParams
from cpuinfer.engine.outputs import CompletionOutput, StreamChunk

SECONDS = float(os.environ.get("CPUINFER_STRESS_SECONDS", "0"))
SEED = int(os.environ.get("CPUINFER_STRESS_SEED") or random.randrange(1 << 32))
N_THREADS, N_TASKS, N_LOOPS = 64, 256, 4
PROMPTS = ["hello", "hello world", "w", "a prompt of more than one page of tokens, " * 2]
LIMIT_S = SECONDS + 300
"""After so long it hangs."""

Answer = list[tuple[str, list[int], str | None]]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPUINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Pages for about ten of them: they take turns, and preempt each other.
        page = 16 * 2 * 2 * 2 * 16 * 2
        with LLM(tiny_model, threads=2, max_sequences=16, kv_memory_bytes=48 * page) as made:
            yield made


def any_params(rng: random.Random) -> SamplingParams:
    """Few enough to know all answers beforehand."""
    kind = rng.randrange(4)
    if kind == 0:
        return SamplingParams(temperature=0, max_tokens=rng.choice((1, 9)), ignore_eos=True)
    if kind == 1:
        return SamplingParams(seed=7, max_tokens=20, top_k=20, repetition_penalty=1.2)
    if kind == 2:
        return SamplingParams(seed=8, max_tokens=6, logprobs=2, n=2, stop=["e"])
    return SamplingParams(seed=9, max_tokens=30, min_p=0.05, ignore_eos=True)


def key(prompt: str, params: SamplingParams) -> str:
    return f"{prompt!r} {params}"


def answer_of(outputs: list[CompletionOutput]) -> Answer:
    return [(o.text, o.token_ids, o.finish_reason) for o in outputs]


class Load:
    """Callers of all kinds, until the time is over; the first fault stops them all."""

    def __init__(self, llm: LLM, answers: dict[str, Answer]) -> None:
        self.llm, self.answers = llm, answers
        self.end = monotonic() + SECONDS
        self.faults: list[BaseException] = []
        self.n_whole = self.n_ended = 0

    def rounds(self, number: int) -> Iterator[tuple[random.Random, str, SamplingParams]]:
        """A request for each round: at least one round."""
        rng = random.Random(f"{SEED} {number}")
        while not self.faults:
            yield rng, rng.choice(PROMPTS), any_params(rng)
            if monotonic() >= self.end:
                return

    def check(self, prompt: str, params: SamplingParams, answer: Answer) -> None:
        assert answer == self.answers[key(prompt, params)]
        self.n_whole += 1

    def check_part(self, prompt: str, params: SamplingParams, chunks: list[StreamChunk]) -> None:
        """Chunks of a request that was ended begin what the whole one is."""
        for index, (text, tokens, _) in enumerate(self.answers[key(prompt, params)]):
            own = [chunk for chunk in chunks if chunk.index == index]
            read = [token for chunk in own for token in chunk.token_ids]
            assert tokens[: len(read)] == read
            if not any(
                chunk.finish_reason == "abort" for chunk in own
            ):  # lets go of what was held back
                assert text.startswith("".join(chunk.text for chunk in own))
        self.n_ended += 1

    def thread(self, number: int) -> None:
        """generate, streams read to their end or not, scores and metrics."""
        try:
            for rng, prompt, params in self.rounds(number):
                what = rng.randrange(8)
                if what < 4:
                    outputs = self.llm.generate([prompt] * (1 + what % 2), params)
                    for output in outputs:
                        self.check(prompt, params, answer_of(output.outputs))
                elif what < 6 and params.n == 1:
                    chunks, most = [], rng.randrange(12)
                    stream = self.llm.stream(prompt, params)
                    for chunk in stream:
                        chunks.append(chunk)
                        if len(chunks) > most:
                            break
                    stream.close()  # type: ignore[attr-defined]
                    self.check_part(prompt, params, chunks)
                elif what == 6:
                    assert self.llm.logits([1, 2, 3]).shape == (3, self.llm.program.vocab_size)
                else:
                    metrics = self.llm.metrics()
                    assert metrics.kv_pages_used <= metrics.kv_pages_total
        except BaseException as error:
            self.faults.append(error)

    async def task(self, llm: AsyncLLM, number: int) -> None:
        """Streams that end by themselves, by their reader, by name, and by cancellation."""
        for rng, prompt, params in self.rounds(number):
            what, chunks = rng.randrange(6), list[StreamChunk]()
            name = f"{number}"

            async def read(most: int) -> None:
                async for chunk in llm.generate(prompt, params, name):  # noqa: B023
                    chunks.append(chunk)  # noqa: B023
                    if len(chunks) > most:  # noqa: B023
                        return
                    if rng.random() < 0.1:  # noqa: B023
                        await asyncio.sleep(0.001)

            if what < 3:
                await read(1 << 20)
                output = chunks[-1].output
                assert output is not None
                self.check(prompt, params, answer_of(output.outputs))
            elif what == 3:
                await read(rng.randrange(5))
            else:
                reader = asyncio.create_task(read(1 << 20))
                await asyncio.sleep(rng.random() * 0.02)
                if what == 4:
                    llm.abort(name)
                else:
                    reader.cancel()
                with suppress(asyncio.CancelledError):
                    await reader
            self.check_part(prompt, params, chunks)
            # The iterator that was left is closed by its loop, in a turn of its own; the name is free then.
            while name in llm._tickets:
                await asyncio.sleep(0)

    def loop(self, first: int, n_tasks: int) -> None:
        """An event loop of so many tasks."""

        async def all_tasks() -> None:
            llm = AsyncLLM(self.llm)
            async with asyncio.TaskGroup() as group:
                for number in range(first, first + n_tasks):
                    group.create_task(self.task(llm, number))

        try:
            asyncio.run(all_tasks())
        except BaseException as error:
            self.faults.append(error)

    def run(self) -> None:
        """All at once."""
        per_loop = N_TASKS // N_LOOPS
        threads = [
            threading.Thread(target=self.thread, args=(i,), daemon=True) for i in range(N_THREADS)
        ] + [
            threading.Thread(
                target=self.loop, args=(N_THREADS + i * per_loop, per_loop), daemon=True
            )
            for i in range(N_LOOPS)
        ]
        for thread in threads:
            thread.start()
        end = monotonic() + LIMIT_S
        for thread in threads:
            thread.join(max(0.0, end - monotonic()))
        hanging = [thread.name for thread in threads if thread.is_alive()]
        if self.faults:
            raise self.faults[0]
        assert not hanging


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def test_stress(llm: LLM) -> None:
    print(f"CPUINFER_STRESS_SEED={SEED}")
    answers = {}
    rng = random.Random(0)
    for _ in range(200):
        prompt, params = rng.choice(PROMPTS), any_params(rng)
        if key(prompt, params) not in answers:
            answers[key(prompt, params)] = answer_of(llm.generate(prompt, params)[0].outputs)
    load = Load(llm, answers)
    memory: list[int] = []
    watcher = threading.Thread(target=_watch, args=(load, memory), daemon=True)
    watcher.start()
    load.run()
    watcher.join()
    assert idle(llm)
    assert not llm._runner._core.tickets and not llm._runner._core.places
    print(f"{load.n_whole} whole and {load.n_ended} parts; resident MiB: {memory}")
    assert load.n_whole + load.n_ended >= N_TASKS
    if len(memory) >= 8:  # the first quarter warms up
        warm = max(memory[len(memory) // 4 : len(memory) // 2])
        assert memory[-1] <= warm + 16, memory


def _watch(load: Load, memory: list[int]) -> None:
    """Resident memory every five seconds, while there is a load."""
    while not load.faults and monotonic() + 5 < load.end:
        threading.Event().wait(5)
        memory.append(resident_bytes() >> 20)
