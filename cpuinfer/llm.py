"""LLM: a model, ready to answer."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.config import DEFAULT_MAX_TOKENS, EngineConfig, SamplingParams
from cpuinfer.devices import AUTO, choose_device, create_device
from cpuinfer.devices.base import PAGE_TOKENS, Executable, Limits
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.outputs import CompletionOutput, Logprob, RequestOutput, StreamChunk
from cpuinfer.engine.pins import Pin
from cpuinfer.engine.sequence import Bounds, Request, TokenLogprobs
from cpuinfer.engine.sequence import Sequence as EngineSequence
from cpuinfer.engine.timings import timings
from cpuinfer.graph.dtypes import KVType
from cpuinfer.graph.program import KVSpec
from cpuinfer.prefixes import open_prefix_store

if TYPE_CHECKING:
    from cpuinfer.devices.meter import Meter
    from cpuinfer.machine.roofline import Stats
    from cpuinfer.text.chat import ChatTemplate

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}, and whatever else the model's chat template reads."""


class LLM:
    """A model and the engine that runs it; from any thread: requests of many threads share steps.

    model: an alias ("smollm2-135m"), a path to a GGUF or packed file, or "hf:owner/repo/file.gguf".
    The keyword arguments are EngineConfig's. Raises ValueError for a model or an option that is not
    supported, FileNotFoundError for a model that is not there.

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
        )
        self._meter = open_meter(self.executable) if config.stats else None
        self._engine = Engine(
            self._meter or self.executable,
            self.limits,
            config.max_sequences,
            config.prefix_caching,
            open_prefix_store(
                config, self.program, packed.path, self.device.name, self.executable.kv
            ),
        )
        self._template: ChatTemplate | None = None
        self._lock = threading.Lock()
        self._numbers = count()
        self._closed = False
        self.load_s = perf_counter() - begin

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt (text or token ids); results in the order of the prompts.

        params: for all, or one for each prompt. progress: called with (finished, all) as requests
        finish. Raises ValueError, before any prompt runs, if one does not fit or names a token that
        is not there.
        """
        listed = _as_list(prompts)
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(listed)
        if len(params) != len(listed):
            raise ValueError(f"params: {len(params)} given for {len(listed)} prompts")
        requests = [self._request(p, s) for p, s in zip(listed, params, strict=True)]
        self._run(requests, progress)
        return [
            self._output(request, prompt if isinstance(prompt, str) else None)
            for request, prompt in zip(requests, listed, strict=True)
        ]

    def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> RequestOutput:
        """The model's answer to a conversation, put into its own chat template.

        Raises ValueError as generate does.
        """
        text = self.chat_template.render(messages, add_generation_prompt=True)
        request = self._request(self._chat_ids(text), params or SamplingParams())
        self._run([request])
        return self._output(request, text)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamChunk]:
        """Chunks as the completion grows; closing the iterator ends the request and frees its
        pages.

        Raises ValueError, at once, as generate does, and for params.n above 1.
        """
        params = params or SamplingParams()
        if params.n > 1:
            raise ValueError(f"n: a stream is one completion, got {params.n}; use generate")
        return self._stream(self._request(prompt, params))

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[StreamChunk]:
        """`stream` of the answer to a conversation."""
        text = self.chat_template.render(messages, add_generation_prompt=True)
        return self.stream(self._chat_ids(text), params)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [T, V] of every token's successor. Raises ValueError if the tokens do not fit."""
        request = self._bounds.scoring_request(self._next_id(), list(token_ids))
        self._run([request])
        logits = request.sequences[0].logits
        if logits is None or request.sequences[0].finish_reason == "abort":
            raise RuntimeError("the request was aborted: a step that it shared failed")
        return logits

    def pin(self, prompt: Prompt | Sequence[Message]) -> Pin:
        """Compute a prompt that many requests begin with (text, token ids, or the first messages of a chat), and keep
        its full KV pages until `unpin`: they are never given to other requests, nor computed again.

        They count in the KV budget: a request must fit into what pins leave. Raises ValueError where the prompt or
        what is in flight would not.
        """
        request = self._request(
            self._pinned_prompt(prompt), SamplingParams(max_tokens=1, temperature=0)
        )
        with self._lock:
            self._check_open()
            pin = self._engine.pin(request)
            self._set_room()
        try:
            self._finish([request])
        finally:
            with self._lock:
                self._set_room()
        if not pin.pages:
            raise RuntimeError("the prompt was not pinned: a step that it shared failed")
        return pin

    def unpin(self, pin: Pin) -> None:
        """Let go of a pinned prompt's pages: they stay until needed. Raises ValueError if it is not pinned."""
        with self._lock:
            self._engine.unpin(pin)
            self._set_room()

    def save_prefixes(self) -> int:
        """Write the known KV pages that EngineConfig.prefix_store does not have, as `close` does; returns their number.
        Raises ValueError where there is no store, OSError where it can't be written."""
        with self._lock:
            return self._engine.save_prefixes()

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

        meter = self._meter
        if meter is None:
            raise ValueError("stats: nothing was measured; make the LLM with stats=True")
        device: Any = self.device
        found = ceilings(load(device.level), load(best().level.name), device.level, device.threads)
        with self._lock:
            stats = meter.stats(found)
            if reset:
                meter.clear()
        return stats

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template. Raises ValueError if it has none."""
        if self._template is None:
            from cpuinfer.text.chat import ChatTemplate

            self._template = ChatTemplate.from_gguf(self.packed.metadata)
        return self._template

    def close(self) -> None:
        """End all requests and keep prefixes in the prefix_store, if any; later requests raise RuntimeError."""
        with self._lock:
            self._engine.abort_all()
            if not self._closed:
                self._engine.close()
            self._closed = True

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _chat_ids(self, text: str) -> list[int]:
        # The template writes the begin token itself.
        ids: list[int] = self.tokenizer.encode(text, add_special=False, parse_special=True)
        return ids

    def _next_id(self) -> str:
        return str(next(self._numbers))

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        from cpuinfer.text.detokenize import Detokenizer

        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._bounds.request(
            self._next_id(),
            ids,
            params,
            lambda: Detokenizer(
                self.tokenizer, skip_special=params.skip_special_tokens, continues=True
            ),
        )

    def _pinned_prompt(self, prompt: Prompt | Sequence[Message]) -> Prompt:
        if isinstance(prompt, str):
            return prompt
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if messages:
            return self._chat_ids(self.chat_template.render(messages, add_generation_prompt=False))
        return [item for item in prompt if not isinstance(item, Mapping)]

    def _set_room(self) -> None:
        pins, n = self._engine.scheduler.pins, PAGE_TOKENS
        self._bounds = replace(
            self._bounds, kv_tokens=pins.room * n, pinned_tokens=pins.n_pages * n
        )

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this LLM is closed")

    def _add(self, requests: Sequence[Request]) -> None:
        with self._lock:
            self._check_open()
            for request in requests:
                self._engine.add(request)

    def _step(self, done: Callable[[], bool]) -> None:
        """Run one step for everybody, unless another thread's step has done what was waited for."""
        with self._lock:
            if done():
                return
            begin = perf_counter()
            try:
                self._engine.step()
                if self._meter is not None:
                    self._meter.end_step(perf_counter() - begin)
            except Exception:
                # The step would fail again: end what shares it, so that other threads do not wait
                # for ever.
                self._engine.abort_all()
                raise

    def _abort(self, requests: Sequence[Request]) -> None:
        with self._lock:
            for request in requests:
                self._engine.abort(request)

    def _run(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Run until all are done; whatever interrupts it, none of them stays in the engine."""
        try:
            self._add(requests)
        except BaseException:
            self._abort(requests)
            raise
        self._finish(requests, progress)

    def _finish(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> None:
        pending = list(requests)
        try:
            while pending:
                self._step(partial(_any_done, pending))
                left = [request for request in pending if not request.done]
                if progress and len(left) < len(pending):
                    progress(len(requests) - len(left), len(requests))
                pending = left
        finally:
            self._abort(requests)

    def _stream(self, request: Request) -> Iterator[StreamChunk]:
        (sequence,) = request.sequences
        tokens, characters = sequence.n_prompt, 0

        def has_news() -> bool:
            return len(sequence.tokens) > tokens or sequence.finish_reason is not None

        try:
            self._add([request])
            while True:
                self._step(has_news)
                with self._lock:
                    if not has_news():
                        continue
                    chunk = StreamChunk(
                        sequence.stream.text[characters:],
                        sequence.tokens[tokens:],
                        sequence.finish_reason,
                        sequence.stop_reason,
                    )
                    tokens, characters = len(sequence.tokens), len(sequence.stream.text)
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self._abort([request])

    def _output(self, request: Request, prompt: str | None) -> RequestOutput:
        first = request.sequences[0]
        prompt_logprobs = first.prompt_logprobs
        return RequestOutput(
            request_id=request.request_id,
            prompt=prompt,
            prompt_token_ids=first.prompt,
            prompt_logprobs=None
            if prompt_logprobs is None
            else [self._logprobs(entry) if entry else None for entry in prompt_logprobs],
            outputs=[self._completion(sequence) for sequence in request.sequences],
            num_cached_tokens=first.cached,
            seed=first.seed,
            timings=timings(request, self.load_s),
        )

    def _completion(self, sequence: EngineSequence) -> CompletionOutput:
        listed = sequence.logprobs if sequence.params.logprobs is not None else None
        return CompletionOutput(
            index=sequence.choice,
            text=sequence.stream.text,
            token_ids=sequence.generated,
            logprobs=None if listed is None else [self._logprobs(entry) for entry in listed],
            cumulative_logprob=None if listed is None else sum(e[0].logprob for e in listed),
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
        )

    def _logprobs(self, entries: TokenLogprobs) -> dict[int, Logprob]:
        return {
            e.token: Logprob(
                e.logprob, e.rank, self.tokenizer.decode([e.token], skip_special=False)
            )
            for e in entries
        }


def _any_done(requests: Sequence[Request]) -> bool:
    return any(request.done for request in requests)


def open_meter(executable: Executable) -> Meter:
    """A Meter of an executable. Raises ValueError where its device does not time ops."""
    from cpuinfer.devices.meter import Meter, is_measurable

    if not is_measurable(executable):
        raise ValueError("stats: this device does not time its ops; use the device 'native'")
    return Meter(executable)


def page_bytes(kv: KVSpec, kv_type: KVType) -> int:
    """Bytes of one page of PAGE_TOKENS tokens, keys and values of all layers."""
    return kv.n_layers * PAGE_TOKENS * kv_type.token_bytes(kv.n_kv_heads, kv.head_dim)


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
