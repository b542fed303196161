"""Forms of completions, and requests that must have them, on logits that are a hash of the tokens."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from fake_device import FakeExecutable

from cpuinfer.config import SamplingParams, StructuredOutputsParams
from cpuinfer.devices.base import Limits
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.grammar import Grammars
from cpuinfer.engine.sequence import Bounds, Request, Sequence
from cpuinfer.text.detokenize import Detokenizer
from cpuinfer.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "colour": {"enum": ["red", "green", "ultra\u00adviolet"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 512}},
        "sub": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "none": {"type": "null"}},
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "colour", "sizes"],
    "additionalProperties": False,
}
SCHEMA["properties"]["sizes"]["maxItems"] = 4  # type: ignore[index]
REGEX = r"(ab|[0-9]{2,4}-)+(x|é{1,3})?"
CHOICES = ["yes", "no", 'say "no"\n', "so long \\ as it is", "\U0001f600 \ud7ff"]
LARK = 'start: "(" start ")" | word\nword: /[a-z]{1,3}/'
GBNF = 'root ::= "<" [a-f]+ ">" | "[" root "]"'


FORMS: list[dict[str, Any]] = [
    {"json": SCHEMA},
    {"json": json.dumps(SCHEMA)},
    {"regex": REGEX},
    {"choice": CHOICES},
    {"grammar": LARK},
    {"grammar": GBNF},
]


def params(seed: int = 0, **form: Any) -> SamplingParams:
    compact = form.pop("disable_any_whitespace", "json" in form)
    n, most = form.pop("n", 1), form.pop("max_tokens", 150)
    return SamplingParams(
        seed=seed,
        n=n,
        max_tokens=most,
        logprobs=1,
        structured_outputs=StructuredOutputsParams(**form, disable_any_whitespace=compact),
    )


class Runs:
    """Requests on logits that are a hash of the tokens, over the vocabulary of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, grammars: Grammars) -> None:
        self._tokenizer = tokenizer
        self.bounds = Bounds(tokenizer.vocab_size, 200, 15 * 16, tokenizer.eog_ids, 150, grammars)
        self._numbers = itertools.count()

    def engine(self, pages: int = 40, tokens: int = 64, sequences: int = 8) -> Engine:
        limits = Limits(tokens, 8, pages, 200)
        return Engine(FakeExecutable(limits, self._tokenizer.vocab_size), limits, sequences)

    def request(self, wanted: SamplingParams, prompt: list[int] | None = None) -> Request:
        return self.bounds.request(
            str(next(self._numbers)),
            prompt or [5, 6, 7],
            wanted,
            lambda: Detokenizer(self._tokenizer, continues=True),
        )

    def run(self, *wanted: SamplingParams, **engine: int) -> list[Sequence]:
        e = self.engine(**engine)
        made = [self.request(one) for one in wanted]
        for request in made:
            e.add(request)
        while e.has_work:
            e.step()
        assert e.scheduler.pool.n_free == e.scheduler.pool.n_pages
        return [sequence for request in made for sequence in request.sequences]


def check_schema(text: str) -> None:
    """`text` keeps SCHEMA."""
    found = json.loads(text)
    assert set(found) - {"sub"} == {"name", "colour", "sizes"}
    assert isinstance(found["name"], str) and len(found["name"]) <= 8
    assert found["colour"] in ("red", "green", "ultra\u00adviolet")
    assert all(type(size) is int and -5 <= size <= 512 for size in found["sizes"])
    assert len(found["sizes"]) <= 4
    if "sub" in found:
        assert type(found["sub"]["ok"]) is bool and set(found["sub"]) <= {"ok", "none"}
        assert found["sub"].get("none") is None


def check_form(text: str, form: dict[str, Any]) -> None:
    (kind, wanted), *_ = form.items()
    if kind == "json":
        check_schema(text)
    elif kind == "json_object":
        assert isinstance(json.loads(text), dict)
    elif kind == "regex":
        assert re.fullmatch(wanted, text)
    elif kind == "choice":
        assert text in wanted
    elif wanted == LARK:
        depth = text.count("(")
        assert re.fullmatch(rf"\({{{depth}}}[a-z]{{1,3}}\){{{depth}}}", text)
    else:
        depth = text.count("[")
        assert re.fullmatch(rf"\[{{{depth}}}<[a-f]+>\]{{{depth}}}", text)
