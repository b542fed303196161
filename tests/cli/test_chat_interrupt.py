"""Ctrl-C during an answer ends the answer, and the conversation goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cpuinfer.cli.chat import Talk
from cpuinfer.config import SamplingParams
from cpuinfer.engine.outputs import StreamChunk


class FakeLLM:
    """Answers "one two three"; with `interrupt`, Ctrl-C comes after the first word."""

    def __init__(self) -> None:
        self.interrupt = False
        self.closed = 0
        self.chat_template = self
        self.tokenizer = self

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return " ".join(message["content"] for message in messages)

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(range(len(text)))

    def stream(self, prompt: list[int], params: SamplingParams) -> Iterator[StreamChunk]:
        try:
            for word in ("one", " two", " three"):
                yield StreamChunk(word, [1])
                if self.interrupt:
                    raise KeyboardInterrupt
        finally:
            self.closed += 1


def test_ctrl_c_keeps_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cpuinfer.cli.sampling.timing_line", lambda llm, stopwatch: "timing")
    llm: Any = FakeLLM()
    talk = Talk(llm, SamplingParams(), None, echo=True)
    llm.interrupt = True
    talk.say("a")
    assert talk.messages[1:] == [{"role": "assistant", "content": "one"}]
    assert "[stopped]" in capsys.readouterr().out
    llm.interrupt = False
    talk.say("b")
    assert [message["content"] for message in talk.messages] == ["a", "one", "b", "one two three"]
    assert llm.closed == 2  # the request is ended each time, and its pages are free
