"""AsyncLLM: an LLM for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from cpuinfer.config import SamplingParams
from cpuinfer.engine.outputs import RequestOutput, StreamChunk
from cpuinfer.engine.results import Reader
from cpuinfer.engine.runner import Ticket
from cpuinfer.engine.sequence import Request
from cpuinfer.llm import LLM, Message, Prompt

if TYPE_CHECKING:
    from cpuinfer.engine.metrics import Metrics

Loop = asyncio.AbstractEventLoop


class AsyncLLM:
    """An LLM for asyncio: completions are async iterators; requests of all tasks, event loops and threads share steps.

    model: as LLM's; or an LLM, which this one then uses beside its other users. The keyword arguments are EngineConfig's.

    A reader never holds up the engine: what came while it was busy, it gets as one chunk. A request ends when its
    reader does: when its task is cancelled, its iterator closed, or its event loop gone, its KV pages are free before
    the next step. Methods that ask the engine raise RuntimeError as those of LLM do.

    >>> async with AsyncLLM("smollm2-135m") as llm:
    ...     async for chunk in llm.generate("The capital of France is", SamplingParams(max_tokens=8)):
    ...         print(chunk.text, end="")
    """

    def __init__(self, model: str | Path | LLM, **options: Any) -> None:
        if isinstance(model, LLM) and options:
            raise ValueError(f"{', '.join(options)}: options of an LLM that is there already")
        self.llm = model if isinstance(model, LLM) else LLM(model, **options)
        self._tickets: dict[str, Ticket] = {}
        self._mailboxes: WeakValueDictionary[Loop, _LoopMailbox] = WeakValueDictionary()

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[StreamChunk, None]:
        """Chunks as the completions of a prompt (text or token ids) grow; StreamChunk.index says of which of params.n.

        The texts and tokens of a completion's chunks, one after the other, are the completion. The request's last chunk
        has all of it in `output`. request_id: a name for `abort`; one that is in use is refused.
        priority, timeout_s: as LLM.generate's.

        Raises ValueError, at once, as LLM.generate does, and for params.best_of. The request begins when the iterator is asked first.
        """
        text = prompt if isinstance(prompt, str) else None
        return self._stream(self._request(prompt, params, request_id, priority, timeout_s), text)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[StreamChunk, None]:
        """`generate` of the answer to a conversation, put into the model's own chat template."""
        ids, text = self.llm._chat_prompt(messages)
        return self._stream(self._request(ids, params, request_id, priority, timeout_s), text)

    def abort(self, request_id: str) -> None:
        """End a request before the next step: its last chunk has finish_reason "abort".

        From any thread. Does nothing where no such request runs.
        """
        if ticket := self._tickets.get(request_id):
            self.llm._runner.abort([ticket])

    async def metrics(self) -> Metrics:
        """LLM.metrics, without holding up the event loop for the rest of a step."""
        return await asyncio.to_thread(self.llm.metrics)

    async def close(self) -> None:
        """LLM.close: end all requests with finish_reason "abort"; later ones raise RuntimeError."""
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None,
        priority: int,
        timeout_s: float | None,
    ) -> Request:
        if request_id in self._tickets:
            raise ValueError(f"request_id: {request_id!r} is in use by a request that runs")
        params = params or SamplingParams()
        if params.n_drawn > params.n:
            raise ValueError(
                "best_of: only the end says which completions are best; use LLM.generate"
            )
        return self.llm._request(prompt, params, request_id, priority, timeout_s)

    async def _stream(
        self, request: Request, prompt: str | None
    ) -> AsyncGenerator[StreamChunk, None]:
        runner = self.llm._runner
        mailbox = self._mailbox()
        ticket = Ticket(request, mailbox, follows=True)
        reader, news = Reader(ticket), asyncio.Event()
        name = request.request_id
        if self._tickets.setdefault(name, ticket) is not ticket:
            raise ValueError(f"request_id: {name!r} is in use by a request that runs")

        def whole() -> RequestOutput:
            return self.llm._output(request, prompt)

        mailbox.readers[ticket] = news
        try:
            runner.submit([ticket])
            ended = False
            while not ended:
                runner.check_fork()
                await news.wait()
                news.clear()
                for chunk in reader.chunks(whole):
                    ended = chunk.output is not None
                    yield chunk
        finally:
            del mailbox.readers[ticket], self._tickets[name]
            if not ticket.done:
                runner.abort([ticket])

    def _mailbox(self) -> _LoopMailbox:
        loop = asyncio.get_running_loop()
        mailbox = self._mailboxes.get(loop)
        if mailbox is None:
            mailbox = self._mailboxes[loop] = _LoopMailbox(loop)
        return mailbox


class _LoopMailbox:
    """Where the engine's thread puts tickets whose readers run in one event loop, which is woken once for many.

    readers: whom to wake, changed by the loop's own thread only.
    """

    def __init__(self, loop: Loop) -> None:
        self.readers: dict[Ticket, asyncio.Event] = {}
        self._loop = loop
        self._arrived: deque[Ticket] = deque()
        self._woken = False

    def put(self, ticket: Ticket) -> None:
        """By the engine's thread. Raises RuntimeError where the loop is closed."""
        self._arrived.append(ticket)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._woken = False
                raise

    def _deliver(self) -> None:
        self._woken = False  # before it looks: what arrives from here on wakes the loop anew
        while self._arrived:
            if reader := self.readers.get(self._arrived.popleft()):
                reader.set()
