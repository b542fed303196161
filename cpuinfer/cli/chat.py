"""`cpuinfer chat`: a conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cpuinfer.cli import sampling
from cpuinfer.cli.options import (
    KV,
    Device,
    DeviceName,
    Isa,
    Json,
    KVName,
    MaxContext,
    Model,
    Threads,
)

if TYPE_CHECKING:
    from cpuinfer.config import SamplingParams
    from cpuinfer.llm import LLM

HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer."


def chat(
    model: Model,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="What the model is told first.")
    ] = None,
    max_tokens: sampling.MaxTokens = None,
    temperature: sampling.Temperature = 0.7,
    top_k: sampling.TopK = 0,
    top_p: sampling.TopP = 0.95,
    min_p: sampling.MinP = 0.0,
    repetition_penalty: sampling.RepetitionPenalty = 1.1,
    seed: sampling.Seed = None,
    threads: Threads = None,
    isa: Isa = None,
    device: Device = DeviceName.auto,
    kv_type: KV = KVName.f16,
    max_context: MaxContext = None,
    json: Json = False,
) -> None:
    """Talk with a model. Reads a message per line from stdin; the history stays until /reset.

    With --json, prints the conversation as one object at its end.
    """
    from cpuinfer.cli.generate import open_llm
    from cpuinfer.cli.output import note, print_json

    params = sampling.sampling_params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    llm = open_llm(model, threads, isa, device, kv_type, max_context)
    talk = Talk(llm, params, system, echo=not json)
    if sys.stdin.isatty():
        note(HELP)
    while (line := _read_line()) is not None and line != "/exit":
        if line == "/reset":
            talk.reset()
            note("(forgotten)")
        elif line.startswith("/"):
            note(f"no such command: {line}. {HELP}")
        elif line:
            talk.say(line)
    if json:
        print_json({"model": model, "messages": talk.messages})


class Talk:
    """A conversation: the messages so far, and the model that answers."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, echo: bool) -> None:
        self.messages: list[dict[str, str]] = []
        self._llm = llm
        self._params = params
        self._system = system
        self._echo = echo
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def say(self, text: str) -> None:
        """Ask, and print the answer as it comes. A message that does not fit, or fails, is not kept."""
        from cpuinfer.cli.output import note

        self.messages.append({"role": "user", "content": text})
        try:
            answer, line = self._answer()
        except ValueError as error:
            self.messages.pop()
            note(f"cpuinfer: error: {error} (/reset forgets the conversation)")
            return
        self.messages.append({"role": "assistant", "content": answer})
        if self._echo:
            print(flush=True)
            note(line)

    def _answer(self) -> tuple[str, str]:
        """The answer, and the line of timing. Ctrl-C ends it early; what was said so far is kept."""
        prompt = sampling.chat_ids(self._llm, self.messages)
        stopwatch = sampling.Stopwatch(len(prompt))
        chunks = self._llm.stream(prompt, self._params)
        parts: list[str] = []
        try:
            for chunk in stopwatch.watch(chunks):
                parts.append(chunk.text)
                if self._echo:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            if self._echo:
                sys.stdout.write(" [stopped]")
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        return "".join(parts), sampling.timing_line(self._llm, stopwatch)


def _read_line() -> str | None:
    """The next line without its end, or None at the end of input. Ctrl-C at the prompt drops the line."""
    shown = sys.stdin.isatty()
    while True:
        try:
            if not shown:
                line = sys.stdin.readline()
                return line.strip() if line else None
            if sys.stdout.isatty():
                return input("> ").strip()
            print("> ", end="", file=sys.stderr, flush=True)
            return input().strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)
