"""What a caller may choose: how a request is sampled, and what an engine may use."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cpuinfer.graph.dtypes import KVType

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy, as in vLLM: it gains nothing and may overflow."""
DEFAULT_MAX_TOKENS = 2048
"""Most tokens generated where max_tokens is None; fewer where context or KV pages end before."""
DEFAULT_KV_BYTES = 1 << 30
DEFAULT_KV_CONTEXTS = 4
"""KV budget where kv_memory_bytes is None: four full contexts within 1 GiB, one in any case."""
PREEMPTION = ("auto", "recompute", "swap")
MAX_GRAMMAR_CHARS = 1 << 17
"""Longest schema, expression, grammar or list of choices: one of this length may take a second to compile."""


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """What form a completion must have; names and meaning are vLLM's. Exactly one kind is given.

    json: a JSON schema, as text or as the object it stands for: the completion is JSON that keeps it.
    regex: the whole completion matches it (Rust's syntax, without look-around and backreferences).
    choice: it is one of these strings.
    grammar: it is a sentence of this context-free grammar, in llguidance's dialect of Lark or in llama.cpp's GBNF.
    json_object: True: it is any JSON object.
    disable_any_whitespace: JSON without space between its parts; else the model may put it where JSON allows it.

    `kind` and `text` say it in one form. Needs the extra `structured`. Raises ValueError for none or several kinds, and
    for what is not of its type or longer than MAX_GRAMMAR_CHARS; what is malformed otherwise is refused by the LLM.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Iterable[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    kind: str = field(init=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        for name in ("json_object", "disable_any_whitespace"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (value is not None or name != "json_object"):
                raise ValueError(f"{name}: expected True or False, got {value!r}")
        given = [n for n in ("json", "regex", "choice", "grammar") if getattr(self, n) is not None]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            raise ValueError(
                "structured_outputs: expected one of json, regex, choice, grammar and json_object,"
                f" got {' and '.join(given) or 'none'}"
            )
        (kind,) = given
        if self.disable_any_whitespace and not kind.startswith("json"):
            raise ValueError(f"disable_any_whitespace: goes with JSON, not with {kind}")
        if kind == "json":
            text = _schema(self.json)
        elif kind == "choice":
            object.__setattr__(self, "choice", _strings("choice", self.choice))
            text = json.dumps(self.choice, ensure_ascii=False) if self.choice else ""
        else:
            text = '{"type": "object"}' if kind == "json_object" else getattr(self, kind)
        if not isinstance(text, str) or not text:
            raise ValueError(f"{kind}: expected what is not empty, got {getattr(self, kind)!r}")
        if len(text) > MAX_GRAMMAR_CHARS:
            raise ValueError(f"{kind}: {len(text)} characters; at most {MAX_GRAMMAR_CHARS} work")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "text", text)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is sampled and when it ends; names and meaning are vLLM's.

    max_tokens: most tokens to generate; None is what fits, at most DEFAULT_MAX_TOKENS.
    min_tokens: tokens that end the text cannot be drawn before so many are generated, and stop
        strings are looked for only in the text of later tokens.
    temperature: 0 is greedy (the lowest id wins a tie).
    top_k (0 or -1: off), typical_p, top_p, min_p: filters, applied in this order, each to what the
        one before left.
    repetition_penalty: over prompt and output, 0.01 to 100.
    presence_penalty, frequency_penalty: over the output, -2 to 2.
    logit_bias: token id to a number in [-100, 100] added to its logit.
    seed: 0 <= seed < 2**64; None takes one from the system (RequestOutput.seed says which).
    stop: string or strings that end the text, left out unless include_stop_str_in_output.
    stop_token_ids: tokens that end the text besides the model's own.
    ignore_eos: the model's own end tokens do not end the text.
    logprobs, prompt_logprobs: how many of the most likely tokens to report at each position besides
        the token itself, with the model's log-probabilities: those before penalties, bias,
        temperature and filters.
    skip_special_tokens: leave special tokens out of the text.
    n: completions of the prompt.
    best_of: draw so many and return the n of them that are likeliest, best first, by the model's own log-probabilities
        of all their tokens together; None: n, in the order in which they are numbered.
    structured_outputs: the form that a completion must have. A token that cannot continue it is never drawn, an end
        token only where it is complete; where nothing can follow, the completion ends at once. Neither min_tokens nor
        ignore_eos go with it.

    Raises ValueError for a value outside its range, NaN and infinities included.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Iterable[str] | None = None
    stop_token_ids: Iterable[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    n: int = 1
    best_of: int | None = None
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "n", "best_of"):
            _integer(name, getattr(self, name), 1, optional=name != "n")
        for name in ("seed", "logprobs", "prompt_logprobs"):
            _integer(name, getattr(self, name), 0, optional=True)
        _integer("min_tokens", self.min_tokens, 0)
        _integer("top_k", self.top_k, -1)
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("min_p", self.min_p, 0.0, 1.0)
        for name in ("top_p", "typical_p"):
            _number(name, getattr(self, name), 0.0, 1.0, above=True)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name), -2.0, 2.0)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if self.seed is not None and self.seed >= 1 << 64:
            raise ValueError(f"seed: expected less than 2**64, got {self.seed}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens: {self.min_tokens} is more than max_tokens {self.max_tokens}"
            )
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of: {self.best_of} completions are fewer than n, {self.n}")
        if self.n_drawn > 1 and self.greedy:
            raise ValueError(
                f"{'n' if self.best_of is None else 'best_of'}: {self.n_drawn} completions at"
                " temperature 0 would be equal; raise the temperature"
            )
        if self.structured_outputs is not None:
            if not isinstance(self.structured_outputs, StructuredOutputsParams):
                raise ValueError(
                    "structured_outputs: expected StructuredOutputsParams, got"
                    f" {type(self.structured_outputs).__name__}"
                )
            if self.min_tokens or self.ignore_eos:
                name = "min_tokens" if self.min_tokens else "ignore_eos"
                raise ValueError(f"{name}: structured_outputs say where the completion ends")
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without chance."""
        return self.temperature < GREEDY_BELOW

    @property
    def n_drawn(self) -> int:
        """Completions that are drawn: n, or best_of to choose from."""
        return self.n if self.best_of is None else self.best_of

    @property
    def n_logprobs(self) -> int | None:
        """`logprobs`, but 0 where the engine itself must know how likely tokens are."""
        return 0 if self.logprobs is None and self.best_of is not None else self.logprobs

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return () if self.stop is None else tuple(self.stop)

    @property
    def stop_ids(self) -> frozenset[int]:
        """`stop_token_ids` as a set."""
        return frozenset(self.stop_token_ids or ())


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """How the likeliest completions of a prompt are searched for; names are vLLM's, meanings transformers'.

    beam_width: completions that are followed at once, and returned, best first.
    max_tokens: most tokens to generate.
    length_penalty: completions are compared by log-probability / tokens ** length_penalty; above 0 favours longer ones,
        -10 to 10.
    early_stopping: True ends the search when beam_width completions have ended; False when the best of those on their
        way would not come among them if it ended now; "never" when it cannot at any length (with a length_penalty
        above 0; else as False).
    ignore_eos, stop, stop_token_ids, include_stop_str_in_output, skip_special_tokens: as in SamplingParams.

    Raises ValueError for a value outside its range.
    """

    beam_width: int
    max_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    ignore_eos: bool = False
    stop: str | Iterable[str] | None = None
    stop_token_ids: Iterable[int] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            _integer(name, getattr(self, name), 1)
        _number("length_penalty", self.length_penalty, -10.0, 10.0)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(
                f'early_stopping: expected True, False or "never", got {self.early_stopping!r}'
            )
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        self.sampling  # noqa: B018 - checks the rest

    @property
    def sampling(self) -> SamplingParams:
        """What a beam has in common with a completion that is drawn: when it ends, and its text."""
        return SamplingParams(
            temperature=0,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=self.include_stop_str_in_output,
            skip_special_tokens=self.skip_special_tokens,
            logprobs=0,
        )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine may use.

    threads: None takes what the machine gives this process.
    device: "native", "numba" or "reference"; "auto": native, or numba where no native library loads.
    isa: level of the native kernels; None takes the best.
    kv_type: "f16", "bf16", "int8" (half the bytes of f16, a scale per token and head) or "f32".
    kv_memory_bytes: KV pages of all sequences together, touched only when used; None takes
        DEFAULT_KV_CONTEXTS full contexts within DEFAULT_KV_BYTES, and one full context in any case.
    max_context: most tokens of a sequence, prompt and completion; None: the model's, at most 8192.
    token_budget: most tokens in a step.
    max_sequences: most sequences in flight; further ones wait.
    prefix_caching: keep the KV pages of finished requests while they are not needed otherwise, so that
        requests which begin alike compute that beginning once. Changes no bit of any result.
    prefix_store: a folder for those pages, made if it is not there: LLM.close and LLM.save_prefixes write the known
        ones to it, and requests of a later engine of the same model and KV type take them back. Changes no bit either.
    prefix_store_bytes: most bytes of all pages in that folder; those used longest ago make room.
    max_waiting: most requests that wait for their first step; further ones are refused (QueueFull, a ValueError).
        None: no limit.
    preemption: how a request whose KV pages were taken by earlier ones comes back: "recompute" its tokens; "swap" its
        pages to memory outside the KV pages and back (recompute where that is full); "auto" the cheaper one of both,
        by what steps and copies have taken lately. Changes no bit of any result.
    swap_bytes: that memory, touched only when used; None: as much as the KV pages take.
    swap_path: a folder for a nameless file of swap_bytes, mapped, instead of memory.
    stats: time every op of every step, for LLM.stats(); costs under 1 % of a step.

    Raises ValueError for a value outside its range.
    """

    threads: int | None = None
    device: str = "auto"
    isa: str | None = None
    kv_type: KVType | str = KVType.F16
    kv_memory_bytes: int | None = None
    max_context: int | None = None
    token_budget: int = 512
    max_sequences: int = 32
    prefix_caching: bool = True
    prefix_store: str | Path | None = None
    prefix_store_bytes: int = 1 << 30
    max_waiting: int | None = None
    preemption: str = "auto"
    swap_bytes: int | None = None
    swap_path: str | Path | None = None
    stats: bool = False

    def __post_init__(self) -> None:
        for name in ("prefix_caching", "stats"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        for name in ("threads", "kv_memory_bytes", "max_context"):
            _integer(name, getattr(self, name), 1, optional=True)
        for name in ("token_budget", "max_sequences", "prefix_store_bytes"):
            _integer(name, getattr(self, name), 1)
        if self.prefix_store is not None:
            if not isinstance(self.prefix_store, (str, Path)) or not str(self.prefix_store):
                raise ValueError(
                    f"prefix_store: expected a folder or None, got {self.prefix_store!r}"
                )
            if not self.prefix_caching:
                raise ValueError("prefix_store: there is nothing to store with prefix_caching off")
        _integer("max_waiting", self.max_waiting, 1, optional=True)
        _integer("swap_bytes", self.swap_bytes, 0, optional=True)
        if self.preemption not in PREEMPTION:
            names = ", ".join(PREEMPTION)
            raise ValueError(f"preemption: expected one of {names}, got {self.preemption!r}")
        if self.swap_path is not None and not Path(self.swap_path).is_dir():
            raise ValueError(f"swap_path: expected a folder, got {str(self.swap_path)!r}")
        try:
            object.__setattr__(self, "kv_type", KVType(self.kv_type))
        except ValueError:
            names = ", ".join(KVType)
            raise ValueError(f"kv_type: expected one of {names}, got {self.kv_type!r}") from None

    @property
    def max_rows(self) -> int:
        """Most rows of logits in a step: one a sequence, and 32 for prompts that want all."""
        return min(self.token_budget, max(32, self.max_sequences))

    def pages(self, context: int, page_tokens: int, page_bytes: int) -> int:
        """KV pages for sequences of `context` tokens, a page of all layers taking `page_bytes`.

        Raises ValueError if kv_memory_bytes does not hold one page.
        """
        one_context = -(-context // page_tokens)
        if self.kv_memory_bytes is None:
            contexts = min(self.max_sequences, DEFAULT_KV_CONTEXTS) * one_context
            return max(one_context, min(contexts, DEFAULT_KV_BYTES // page_bytes))
        if self.kv_memory_bytes < page_bytes:
            raise ValueError(
                f"kv_memory_bytes: {self.kv_memory_bytes} does not hold one page of"
                f" {page_tokens} tokens ({page_bytes} bytes for this model)"
            )
        return min(self.kv_memory_bytes // page_bytes, self.max_sequences * one_context)


def _integer(name: str, value: object, low: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        none = " or None" if optional else ""
        raise ValueError(f"{name}: expected an integer >= {low}{none}, got {value!r}")


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """Check that low <= value <= high (low < value if `above`) and that value is finite."""
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
        and not (above and value == low)
    ):
        return
    to = "" if high == math.inf else f" and <= {high:g}"
    raise ValueError(
        f"{name}: expected a finite number {'>' if above else '>='} {low:g}{to}, got {value!r}"
    )


def _strings(name: str, given: str | Iterable[str] | None) -> tuple[str, ...]:
    strings = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"{name}: expected non-empty strings, got {string!r}")
    return strings


def _schema(given: str | Mapping[str, Any] | None) -> str:
    """A JSON schema as text. Raises ValueError for what is no JSON object or boolean."""
    try:
        text = given if isinstance(given, str) else json.dumps(given)
        schema = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"json: the schema is no JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise ValueError(f"json: expected a JSON schema, an object, got {text:.80}")
    return text


def _ids(name: str, ids: Iterable[int] | None) -> tuple[int, ...]:
    ids = () if ids is None else tuple(ids)
    for token in ids:
        _integer(name, token, 0)
    return ids


def _bias(bias: Mapping[int, float] | None) -> Mapping[int, float] | None:
    if bias is None:
        return None
    for token, value in bias.items():
        _integer("logit_bias: token id", token, 0)
        _number(f"logit_bias: token {token}", value, -100.0, 100.0)
    return MappingProxyType(dict(bias))
