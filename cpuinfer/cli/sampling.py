"""Options of sampling, and what the verbs that generate text have in common."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpuinfer.cli.boundary import usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cpuinfer.config import SamplingParams, StructuredOutputsParams
    from cpuinfer.engine.outputs import StreamChunk, Timings
    from cpuinfer.llm import LLM
    from cpuinfer.machine.roofline import Roofline, Stats

MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", "-n", help="Most tokens to generate. [default: what fits]"),
]
Temperature = Annotated[
    float, typer.Option("--temperature", help="0 takes the most likely token each time.")
]
TopK = Annotated[int, typer.Option("--top-k", help="Keep the k most likely tokens; 0: all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the most likely tokens of this mass.")]
MinP = Annotated[
    float,
    typer.Option("--min-p", help="Keep tokens of at least this part of the best's probability."),
]
TypicalP = Annotated[float, typer.Option("--typical-p", help="Keep typical tokens of this mass.")]
RepetitionPenalty = Annotated[
    float,
    typer.Option("--repetition-penalty", help="Over 1: tokens seen before become less likely."),
]
PresencePenalty = Annotated[
    float,
    typer.Option("--presence-penalty", help="Taken from the logit of a token generated before."),
]
FrequencyPenalty = Annotated[
    float, typer.Option("--frequency-penalty", help="The same, for each time it was generated.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Of the random numbers. [default: a new one]")
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be repeated.")
]

JsonSchema = Annotated[
    str | None,
    typer.Option(
        "--json-schema", help="The answer is JSON of this schema (a file, or JSON), without spaces."
    ),
]
Regex = Annotated[str | None, typer.Option("--regex", help="The answer matches it as a whole.")]
Grammar = Annotated[
    Path | None,
    typer.Option("--grammar", help="The answer is a sentence of the grammar in this file."),
]


def structured_outputs(
    json_schema: str | None, regex: str | None, grammar: Path | None
) -> StructuredOutputsParams | None:
    """The form that the options ask for, None for none; several, or a file that cannot be read: a usage error."""
    from cpuinfer.config import StructuredOutputsParams

    if json_schema is None and regex is None and grammar is None:
        return None
    if json_schema is not None and not json_schema.lstrip().startswith("{"):
        json_schema = _text(Path(json_schema), "--json-schema")
    text = None if grammar is None else _text(grammar, "--grammar")
    with usage("--json-schema, --regex, --grammar"):
        # Small models fill the space that JSON allows between its parts until their tokens are used up.
        compact = json_schema is not None
        return StructuredOutputsParams(
            json=json_schema, regex=regex, grammar=text, disable_any_whitespace=compact
        )


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint=option) from error


def sampling_params(**options: Any) -> SamplingParams:
    """SamplingParams of the options; a value out of its range is a usage error."""
    from cpuinfer.config import SamplingParams

    with usage("sampling"):
        return SamplingParams(**options)


class Stopwatch:
    """Times a stream as it passes through: tokens per second of prompt and answer, as Timings has them; of a stream that
    was cut off, by when its chunks came.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self._timings: Timings | None = None
        self._start = self._first = self._last = time.perf_counter()

    def watch(self, chunks: Iterable[StreamChunk]) -> Iterator[StreamChunk]:
        """The chunks, unchanged."""
        self._start = time.perf_counter()
        for chunk in chunks:
            self._last = time.perf_counter()
            if not self.completion_tokens:
                self._first = self._last
            self.completion_tokens += len(chunk.token_ids)
            if chunk.output is not None:
                self._timings = chunk.output.timings
            yield chunk

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens over the time to the first token."""
        if self._timings is not None:
            return self._timings.prefill_tok_s
        seconds = self._first - self._start
        return self.prompt_tokens / seconds if seconds > 0 else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Tokens after the first, over the time after it."""
        if self._timings is not None:
            return self._timings.decode_tok_s
        seconds = self._last - self._first
        return (self.completion_tokens - 1) / seconds if seconds > 0 else 0.0


def roofline_of(
    llm: LLM, prompt_tokens: int, completion_tokens: int, tok_s: float
) -> Roofline | None:
    """Of one sequence's decoding, at the context in the middle of its answer; None for a device without ISA levels."""
    from cpuinfer.cli.limit import decode_roofline

    isa, threads = where(llm)["isa"], where(llm)["threads"]
    if isa is None:
        return None
    context = prompt_tokens + completion_tokens / 2
    return decode_roofline(llm.program, llm.limits.kv_type, context, tok_s, isa, threads)


def stats_of(llm: LLM) -> Stats:
    """llm.stats(), with a sign of life where the machine's ceilings are not known yet."""
    from cpuinfer.cli.limit import machine

    ran = where(llm)
    machine(ran["isa"], ran["threads"])
    return llm.stats()


def timing_line(llm: LLM, stopwatch: Stopwatch) -> str:
    """The one line after an answer."""
    from cpuinfer.cli.limit import in_words

    parts = [f"prompt {stopwatch.prompt_tokens} tokens at {stopwatch.prefill_tok_s:.1f}/s"]
    n, tok_s = stopwatch.completion_tokens, stopwatch.decode_tok_s
    parts.append(f"answer {n} tokens" + (f" at {tok_s:.1f}/s" if tok_s else ""))
    reached = roofline_of(llm, stopwatch.prompt_tokens, n, tok_s)
    if reached is not None:
        parts.append(in_words(reached))
    ran = where(llm)
    level = f"/{ran['isa']}" if ran["isa"] else ""
    parts.append(f"{ran['device']}{level}, {ran['threads']} threads")
    return f"[{'; '.join(parts)}]"


def chat_ids(llm: LLM, messages: list[dict[str, str]]) -> list[int]:
    """The conversation in the model's chat template, ready for its answer; the template writes its special tokens."""
    text = llm.chat_template.render(messages, add_generation_prompt=True)
    return llm.tokenizer.encode(text, add_special=False, parse_special=True)


def where(llm: LLM) -> dict[str, Any]:
    """What ran: the device, its ISA level (null where it has none) and its threads."""
    device: Any = llm.device
    return {
        "device": device.name,
        "isa": getattr(device, "level", None),
        "threads": getattr(device, "threads", 1),
    }
