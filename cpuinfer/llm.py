"""LLM: a model, ready to answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.config import DEFAULT_MAX_TOKENS, BeamSearchParams, EngineConfig, SamplingParams
from cpuinfer.devices import AUTO, choose_device, create_device
from cpuinfer.devices.base import PAGE_TOKENS, Limits, page_bytes
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.grammar import Grammars
from cpuinfer.engine.outputs import RequestOutput, StreamChunk
from cpuinfer.engine.pins import Pin
from cpuinfer.engine.results import Reader, request_output
from cpuinfer.engine.runner import EngineThread, Ticket, next_ticket
from cpuinfer.engine.sequence import Bounds, Request
from cpuinfer.graph.dtypes import KVType
from cpuinfer.prefixes import open_prefix_store

if TYPE_CHECKING:
    from cpuinfer.devices.meter import Meter
    from cpuinfer.engine.metrics import Metrics
    from cpuinfer.machine.roofline import Stats
    from cpuinfer.text.chat import ChatTemplate

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}, and whatever else the model's chat template reads."""


class LLM:
    """A model and the engine that runs it, on a thread of its own: requests of any threads share steps.

    model: an alias ("smollm2-135m"), a path to a GGUF or packed file, or "hf:owner/repo/file.gguf".
    The keyword arguments are EngineConfig's. Raises ValueError for a model or an option that is not
    supported, FileNotFoundError for a model that is not there. Every method that asks the engine raises RuntimeError
    when the LLM is closed, or in a forked child, and whatever a step raised that the request took part in.

    >>> llm = LLM("smollm2-135m")
    >>> llm.generate("The capital of France is", SamplingParams(max_tokens=8))[0].outputs[0].text
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        from cpuinfer.formats import load_model
        from cpuinfer.hub import resolve
        from cpuinfer.models import build_program
        from cpuinfer.text.tokenizer import Tokenizer

        begin = perf_counter()
        self.config = config = EngineConfig(**options)
        chosen = choose_device(config.device, config.isa)
        if config.device == AUTO and chosen.note:
            warnings.warn(chosen.note, stacklevel=2)
        self.device = create_device(chosen.name, config.threads, config.isa)
        self.packed = packed = load_model(resolve(str(model)))
        self.tokenizer = Tokenizer.from_gguf(packed.metadata)
        factors = packed.weights.get("rope_freqs.weight")
        self.program = build_program(
            packed.metadata,
            packed.weight_types,
            max_positions=config.max_context,
            rope_factors=None if factors is None else factors.data.view(np.float32),
        )
        if self.tokenizer.vocab_size != self.program.vocab_size:
            raise ValueError(
                f"{model}: the tokenizer has {self.tokenizer.vocab_size} tokens, the model"
                f" {self.program.vocab_size}; the file is damaged"
            )
        kv_type = KVType(config.kv_type)
        context = self.program.max_positions
        pages = config.pages(context, PAGE_TOKENS, page_bytes(self.program.kv, kv_type))
        self.limits = Limits(config.token_budget, config.max_rows, pages, context, kv_type)
        self.executable = self.device.compile(self.program, packed.weights, self.limits)
        self._bounds = Bounds(
            self.program.vocab_size,
            context,
            pages * PAGE_TOKENS,
            frozenset(self.tokenizer.eog_ids),
            DEFAULT_MAX_TOKENS,
            Grammars(self.tokenizer),
        )
        self._meter: Meter | None = None
        if config.stats:
            from cpuinfer.devices.meter import open_meter

            self._meter = open_meter(self.executable)
        store = open_prefix_store(
            config, self.program, packed.path, self.device.name, self.executable.kv
        )
        engine = Engine(
            self._meter or self.executable,
            self.limits,
            config.max_sequences,
            config.prefix_caching,
            store,
            max_waiting=config.max_waiting,
            preemption=config.preemption,
            swap_bytes=config.swap_bytes,
            swap_path=None if config.swap_path is None else Path(config.swap_path),
        )
        self._template: ChatTemplate | None = None
        self._numbers = count()
        self._runner = EngineThread(engine, self._meter)
        self.load_s = perf_counter() - begin

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt (text or token ids); results in the order of the prompts.

        params: for all, or one for each prompt. progress: called with (finished, all) as requests
        finish. priority: lower ones come first, and others make room for them. timeout_s: what is
        unfinished after so many seconds ends with finish_reason "timeout". Raises ValueError, before
        any prompt runs, if one does not fit or names a token that is not there.
        """
        listed = _as_list(prompts)
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(listed)
        if len(params) != len(listed):
            raise ValueError(f"params: {len(params)} given for {len(listed)} prompts")
        requests = [
            self._request(p, s, None, priority, timeout_s)
            for p, s in zip(listed, params, strict=True)
        ]
        self._run(requests, progress)
        return [
            self._output(request, prompt if isinstance(prompt, str) else None)
            for request, prompt in zip(requests, listed, strict=True)
        ]

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams
    ) -> list[RequestOutput]:
        """The likeliest completions of every prompt, best first. Raises ValueError as generate does.

        >>> llm.beam_search("The capital of France is", BeamSearchParams(beam_width=4, max_tokens=8))
        """
        listed = _as_list(prompts)
        requests = [self._request(prompt, params) for prompt in listed]
        self._run(requests)
        return [
            self._output(request, prompt if isinstance(prompt, str) else None)
            for request, prompt in zip(requests, listed, strict=True)
        ]

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> RequestOutput:
        """The model's answer to a conversation, put into its own chat template.

        Raises ValueError as generate does.
        """
        ids, text = self._chat_prompt(messages)
        request = self._request(ids, params or SamplingParams(), None, priority, timeout_s)
        self._run([request])
        return self._output(request, text)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[StreamChunk]:
        """Chunks as the completion grows; closing the iterator ends the request and frees its
        pages.

        Raises ValueError, at once, as generate does, and for params.n above 1.
        """
        text = prompt if isinstance(prompt, str) else None
        return self._begin_stream(prompt, text, params, priority, timeout_s)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[StreamChunk]:
        """`stream` of the answer to a conversation."""
        ids, text = self._chat_prompt(messages)
        return self._begin_stream(ids, text, params, priority, timeout_s)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [T, V] of every token's successor. Raises ValueError if the tokens do not fit."""
        self._runner.check()
        request = self._bounds.scoring_request(self._next_id(), list(token_ids))
        self._run([request])
        logits = request.sequences[0].logits
        if logits is None or request.sequences[0].finish_reason == "abort":
            raise RuntimeError("the request was aborted: a step that it shared failed")
        return logits

    def stats(self, reset: bool = False) -> Stats:
        """What each kind of op did in all steps so far, beside what this machine can do: machine.roofline.Stats.

        By phase (prefill, decode) and kind of op: time, bytes, operations, what bounds it, the shares of that ceiling
        and of the time; and what the steps lost outside ops. All requests count, as they share steps. reset: start
        anew after this. The machine's ceilings are measured at the first call and kept in the cache folder.

        Raises ValueError unless the LLM was made with stats=True.

        >>> llm = LLM("smollm2-135m", stats=True)
        >>> llm.generate("The capital of France is")
        >>> {op.name: op.share_of_ceiling for op in llm.stats().phases[-1].ops}
        """
        from cpuinfer.machine.ceilings import ceilings
        from cpuinfer.machine.isa import best, load

        self._runner.check_fork()
        meter = self._meter
        if meter is None:
            raise ValueError("stats: nothing was measured; make the LLM with stats=True")
        device: Any = self.device
        found = ceilings(load(device.level), load(best().level.name), device.level, device.threads)

        def read() -> Stats:
            stats = meter.stats(found)
            if reset:
                meter.clear()
            return stats

        return self._runner.call(read)

    def pin(self, prompt: Prompt | Sequence[Message]) -> Pin:
        """Compute a prompt that many requests begin with (text, token ids, or the first messages of a chat), and keep
        its full KV pages until `unpin`: they are never given to other requests, nor computed again.

        They count in the KV budget: a request must fit into what pins leave. Raises ValueError where the prompt does
        not fit so, or what is in flight would not.
        """
        first: Prompt
        if isinstance(prompt, str):
            first = prompt
        elif messages := [item for item in prompt if isinstance(item, Mapping)]:
            first, _ = self._chat_prompt(messages, add_generation_prompt=False)
        else:
            first = [item for item in prompt if not isinstance(item, Mapping)]
        request = self._request(first, SamplingParams(max_tokens=1, temperature=0))
        pin = self._runner.call(partial(self._runner.engine.pin, request))
        try:
            self._set_room()
            self._run([request])
        finally:
            if not pin.pages:
                self.unpin(pin)
        return pin

    def unpin(self, pin: Pin) -> None:
        """Let go of a pinned prompt's pages: they stay until they are needed. Nothing if that was done before."""
        self._runner.call(partial(self._runner.engine.unpin, pin))
        self._set_room()

    def save_prefixes(self) -> int:
        """Write the known KV pages that EngineConfig.prefix_store does not have, as `close` does; returns their number.

        Raises ValueError where there is no store, OSError where it can't be written.
        """
        return self._runner.call(self._runner.engine.save_prefixes)

    def _set_room(self) -> None:
        def read() -> None:
            pins = self._runner.engine.scheduler.pins
            room, pinned = pins.room * PAGE_TOKENS, pins.n_pages * PAGE_TOKENS
            self._bounds = replace(self._bounds, kv_tokens=room, pinned_tokens=pinned)

        self._runner.call(read)

    def metrics(self) -> Metrics:
        """The engine as it is between two steps: requests, KV pages, tokens, latencies; from any thread, also when closed.

        >>> llm.metrics().prometheus(model_name="smollm2-135m")
        """
        return self._runner.metrics()

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template. Raises ValueError if it has none."""
        if self._template is None:
            from cpuinfer.text.chat import ChatTemplate

            self._template = ChatTemplate.from_gguf(self.packed.metadata)
        return self._template

    def close(self) -> None:
        """End all requests with finish_reason "abort", and the engine's thread; later requests raise RuntimeError.
        Known prefixes are kept where there is a prefix_store.

        Memory goes with the last reference to the LLM. So does the thread, where nobody closes the LLM.
        """
        self._runner.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _chat_prompt(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> tuple[list[int], str]:
        self._runner.check()
        text = self.chat_template.render(messages, add_generation_prompt=add_generation_prompt)
        # The template writes the begin token itself.
        return self.tokenizer.encode(text, add_special=False, parse_special=True), text

    def _next_id(self) -> str:
        return str(next(self._numbers))

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | BeamSearchParams,
        request_id: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Request:
        from cpuinfer.text.detokenize import Detokenizer

        self._runner.check()
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._bounds.request(
            request_id or self._next_id(),
            ids,
            params,
            lambda: Detokenizer(
                self.tokenizer, skip_special=params.skip_special_tokens, continues=True
            ),
            priority,
            timeout_s,
        )

    def _run(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Wait until all are done; whatever interrupts it, none of them stays in the engine."""
        mailbox: SimpleQueue[Ticket] = SimpleQueue()
        tickets = [Ticket(request, mailbox) for request in requests]
        try:
            self._runner.submit(tickets)
            for n in range(1, len(tickets) + 1):
                error = next_ticket(mailbox).error
                if error is not None:
                    raise error
                if progress:
                    progress(n, len(tickets))
        finally:
            if left := [ticket for ticket in tickets if not ticket.done]:
                self._runner.abort(left)

    def _begin_stream(
        self,
        prompt: Prompt,
        text: str | None,
        params: SamplingParams | None,
        priority: int,
        timeout_s: float | None,
    ) -> Iterator[StreamChunk]:
        params = params or SamplingParams()
        if params.n_drawn > 1:
            raise ValueError(f"n: a stream is one completion, got {params.n_drawn}; use generate")
        return self._stream(self._request(prompt, params, None, priority, timeout_s), text)

    def _stream(self, request: Request, prompt: str | None) -> Iterator[StreamChunk]:
        mailbox: SimpleQueue[Ticket] = SimpleQueue()
        ticket = Ticket(request, mailbox, follows=True)
        reader = Reader(ticket)
        whole = partial(self._output, request, prompt)
        try:
            self._runner.submit([ticket])
            ended = False
            while not ended:
                self._runner.check_fork()
                next_ticket(mailbox)
                for chunk in reader.chunks(whole):
                    ended = chunk.output is not None
                    yield chunk
        finally:
            if not ticket.done:
                self._runner.abort([ticket])

    def _output(self, request: Request, prompt: str | None) -> RequestOutput:
        return request_output(request, prompt, self.load_s, self._token_text)

    def _token_text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special=False)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list. Raises ValueError for what is neither text nor token ids."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    if listed and all(_is_id(item) for item in listed):
        return [listed]
    for item in listed:
        if not isinstance(item, str) and not (
            isinstance(item, Sequence) and all(_is_id(token) for token in item)
        ):
            raise ValueError(f"prompts: expected text or a list of token ids, got {item!r:.80}")
    return listed


def _is_id(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)
