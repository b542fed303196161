"""Structured output: whatever the logits say, a completion has the form that was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import FORMS, SCHEMA, Runs, check_form, check_schema, params
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cpuinfer import LLM, SamplingParams
from cpuinfer.config import MAX_GRAMMAR_CHARS, StructuredOutputsParams
from cpuinfer.engine.grammar import CACHED, GrammarError, Grammars
from cpuinfer.engine.sampler import NumpySampler
from cpuinfer.engine.sampling import _choose_allowed
from cpuinfer.formats.gguf import read_metadata
from cpuinfer.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def tokenizer(tiny_vocabulary: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_metadata(tiny_vocabulary))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


@pytest.fixture(scope="module")
def runs(tokenizer: Tokenizer, grammars: Grammars) -> Runs:
    return Runs(tokenizer, grammars)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "".join(form))
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_completion_has_its_form(runs: Runs, form: dict[str, Any], temperature: int) -> None:
    ended = 0
    for seed in range(12):
        wanted = params(seed, **form)
        wanted = SamplingParams(**{**vars(wanted), "temperature": temperature})
        (sequence,) = runs.run(wanted)
        if sequence.finish_reason == "stop":
            ended += 1
            assert sequence.stop_reason is None
            check_form(sequence.stream.text, form)
        else:
            assert (sequence.finish_reason, len(sequence.generated)) == ("length", 150)
    assert ended


def test_any_object_is_json(runs: Runs) -> None:
    ended = [s for s in runs.run(*(params(seed, json_object=True) for seed in range(20)))]
    ended = [s for s in ended if s.finish_reason == "stop"]
    assert ended
    for sequence in ended:
        check_form(sequence.stream.text, {"json_object": True})


def test_without_space_there_is_none(runs: Runs) -> None:
    for spaced, disable in ((True, False), (False, True)):
        form = {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 3}}
        form = {**form, "disable_any_whitespace": disable}
        found = runs.run(*(params(seed, **form) for seed in range(10)))
        assert any(re.search(r"\s", s.stream.text) for s in found) == spaced


def test_where_nothing_can_follow_the_completion_ends_at_once(
    runs: Runs, tokenizer: Tokenizer
) -> None:
    (sequence,) = runs.run(params(regex="[0-9]{4}"))
    assert len(sequence.generated) == 4 and sequence.finish_reason == "stop"
    assert not set(sequence.generated) & tokenizer.eog_ids
    # Where more could follow, the model's own end says so.
    for seed in range(40):
        (sequence,) = runs.run(params(seed, regex="[0-9]+"))
        if sequence.finish_reason == "stop":
            break
    assert sequence.generated[-1] in tokenizer.eog_ids
    assert re.fullmatch("[0-9]+", sequence.stream.text)


def test_an_end_is_drawn_only_where_the_grammar_accepts(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammar = grammars.grammar(StructuredOutputsParams(regex="ab+"))
    ends = sorted(tokenizer.eog_ids)
    a, b = (tokenizer.encode(letter, add_special=False)[0] for letter in "ab")
    assert grammar.allowed().nonzero()[0].tolist() == [a]
    grammar.accept(a)
    assert grammar.allowed().nonzero()[0].tolist() == [b]
    grammar.accept(b)
    assert grammar.allowed().nonzero()[0].tolist() == [*ends, b]
    other = grammar.copy()
    grammar.accept(ends[0])
    assert grammar.ended and not other.ended
    with pytest.raises(GrammarError):
        other.accept(a)


@settings(max_examples=25, deadline=None)
@given(
    work=st.lists(
        st.tuples(st.sampled_from([*FORMS, {}]), st.integers(0, 3), st.integers(1, 3)),
        min_size=1,
        max_size=5,
    ),
    pages=st.integers(15, 22),
    tokens=st.integers(1, 40),
    sequences=st.integers(1, 6),
)
def test_a_form_does_not_depend_on_company(
    runs: Runs,
    work: list[tuple[dict[str, Any], int, int]],
    pages: int,
    tokens: int,
    sequences: int,
) -> None:
    wanted = [
        params(seed, n=n, **form) if form else SamplingParams(n=n, seed=seed, max_tokens=60)
        for form, seed, n in work
    ]
    together = runs.run(*wanted, pages=pages, tokens=tokens, sequences=sequences)
    alone = [sequence for one in wanted for sequence in runs.run(one)]
    for got, want in zip(together, alone, strict=True):
        assert (got.tokens, got.logprobs, got.stream.text, got.finish_reason) == (
            want.tokens,
            want.logprobs,
            want.stream.text,
            want.finish_reason,
        )


def test_log_probabilities_are_the_models_own(runs: Runs) -> None:
    (sequence,) = runs.run(params(choice=["yes", "no"]))
    best = [max(listed, key=lambda e: e.logprob) for listed in sequence.logprobs]
    assert any(e.token != t for e, t in zip(best, sequence.generated, strict=True))
    assert all(listed[0].rank > 1 for listed in sequence.logprobs[:1])


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0},
        {"top_k": 40},
        {"top_p": 0.5, "min_p": 0.01},
        {"typical_p": 0.4},
        {"repetition_penalty": 1.5, "logit_bias": {3: 20.0, 4: -20.0}},
    ],
)
@pytest.mark.parametrize("size", [2, 30, 2048, 2049, 6000])
def test_few_and_many_allowed_tokens_are_a_mask(filters: dict[str, Any], size: int) -> None:
    from cpuinfer.devices.sampling import Choice
    from cpuinfer.engine.adjust import Adjustment

    class Alone(NumpySampler):
        """A device's sampler: it may not be given a filter that only NumPy has."""

        def choose(self, logits: Any, choices: Any) -> list[int]:
            assert all(c.filters.typical_p == 1 or c.filters.greedy for c in choices)
            return super().choose(logits, choices)

    rng = np.random.default_rng(size)
    logits = rng.normal(0, 3, (4, 6000)).astype(np.float32)
    wanted = SamplingParams(**filters)
    masks, choices, want = {}, [], []
    for row in range(4):
        adjustment = Adjustment.of(wanted, ())
        edits = adjustment.edits(logits[row], [1, 2, 3], 1) if adjustment else None
        choices.append(Choice(row, wanted, 9, 0, 50 + row, edits))
        whole = logits[row].copy()
        if edits is not None:
            whole[edits.ids] = edits.values
        if row != 2:
            mask = masks[row] = np.zeros(6000, np.bool_)
            mask[rng.choice(6000, size, replace=False)] = True
            whole[~mask] = -np.inf
        want += NumpySampler().choose(whole[None], [choices[-1]._replace(row=0, edits=None)])
    before = logits.copy()
    assert _choose_allowed(logits, choices, masks, Alone()) == want
    assert (logits == before).all()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "got none"),
        ({"regex": "a", "json": "{}"}, "got json and regex"),
        ({"json_object": False}, "got none"),
        ({"json": "{"}, "json: the schema is no JSON"),
        ({"json": "[]"}, "json: expected a JSON schema"),
        ({"json": {"a": object()}}, "json: the schema is no JSON"),
        ({"json": "[" * 100_000}, "json: "),
        ({"regex": ""}, "regex: "),
        ({"regex": 5}, "regex: "),
        ({"choice": []}, "choice: "),
        ({"choice": ["a", ""]}, "choice: "),
        ({"regex": "a", "disable_any_whitespace": True}, "disable_any_whitespace"),
        ({"json_object": 1}, "json_object"),
        ({"regex": "a" * (MAX_GRAMMAR_CHARS + 1)}, "regex: .* characters"),
        ({"json": {"enum": ["x" * MAX_GRAMMAR_CHARS]}}, "json: .* characters"),
    ],
)
def test_what_is_no_form_is_refused(form: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StructuredOutputsParams(**form)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "("}, "unclosed"),
        ({"regex": "(?=x)y"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": r"[^\x00-\x{10FFFF}]"}, "can follow"),
        ({"json": {"type": "foo"}}, "foo"),
        ({"json": False}, "nsatisfiable"),
        ({"json": {"type": "string", "pattern": "("}}, "unclosed"),
        ({"json": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "retrieving it failed"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": nested(200)}, "recursion limit"),
        ({"grammar": "start: nothing"}, "nothing"),
        ({"grammar": "junk("}, "grammar"),
        ({"grammar": 'root ::= "a" other'}, "other"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_it_runs(
    runs: Runs, form: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(form))}: .*{message}|{message}"):
        runs.request(params(**form, disable_any_whitespace=False))


@pytest.mark.parametrize(
    "form",
    [
        {"regex": "(((a{100}){100}){100}){100}"},
        {"regex": ".*.*.*.*.*a.{200}"},
        {"regex": "(x+x+)+y"},
        {"json": nested(50)},
        {"grammar": 'start: start start | "a"'},
        {"grammar": 'start: ("a" | "a" start | start "a")+'},
    ],
)
def test_a_hostile_form_hurts_nobody_else(runs: Runs, form: dict[str, Any]) -> None:
    """It runs, is refused, or ends by itself: its limits are those of one grammar."""
    plain = SamplingParams(seed=1, max_tokens=30)
    (want,) = runs.run(plain)
    try:
        form = {**form, "disable_any_whitespace": False, "max_tokens": 20}
        hostile, other = runs.run(params(**form), plain)
    except ValueError as error:
        assert re.match("regex|json|grammar", str(error))
        return
    assert hostile.finish_reason in ("stop", "length", "error")
    assert other.tokens == want.tokens and other.finish_reason == want.finish_reason


def test_a_grammar_that_meets_a_limit_ends_its_own_completion(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, formed = SamplingParams(seed=1, max_tokens=30), params(regex="[a-z]{50}")
    (want,) = runs.run(plain)
    e = runs.engine()
    victim, other = runs.request(formed), runs.request(plain)
    e.add(victim)
    e.add(other)
    for _ in range(5):
        e.step()
    (sequence,) = victim.sequences
    assert sequence.grammar is not None

    def fail() -> NDArray[np.bool_]:
        raise GrammarError("too much fuel")

    monkeypatch.setattr(sequence.grammar, "allowed", fail)
    while e.has_work:
        e.step()
    assert (sequence.finish_reason, sequence.stop_reason) == ("error", "too much fuel")
    assert len(sequence.generated) == 5
    assert other.sequences[0].tokens == want.tokens
    assert e.scheduler.pool.n_free == e.scheduler.pool.n_pages


def test_min_tokens_and_ignore_eos_do_not_go_with_a_form() -> None:
    form = StructuredOutputsParams(regex="a")
    with pytest.raises(ValueError, match="min_tokens"):
        SamplingParams(structured_outputs=form, min_tokens=1)
    with pytest.raises(ValueError, match="ignore_eos"):
        SamplingParams(structured_outputs=form, ignore_eos=True)
    with pytest.raises(ValueError, match="structured_outputs: expected"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


def test_stop_strings_hold_inside_a_form(runs: Runs) -> None:
    wanted = SamplingParams(
        seed=0,
        max_tokens=150,
        stop=['":', "\u00ad"],
        structured_outputs=StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True),
    )
    (sequence,) = runs.run(wanted)
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", '":')
    assert sequence.stream.text == '{"name'


def test_compiled_grammars_are_kept_and_bounded(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = Grammars(tokenizer)
    compiled = []
    compile_one = grammars._compile
    monkeypatch.setattr(
        grammars, "_compile", lambda form: compiled.append(form.text) or compile_one(form)
    )
    for _ in range(3):
        grammars.grammar(StructuredOutputsParams(regex="a+"))
    assert compiled == ["a+"]
    for i in range(CACHED):
        grammars.grammar(StructuredOutputsParams(regex=f"b{i}"))
        grammars.grammar(StructuredOutputsParams(regex="b0"))
    assert compiled == ["a+", *(f"b{i}" for i in range(CACHED))]
    grammars.grammar(StructuredOutputsParams(regex="a+"))
    assert compiled[-1] == "a+"


def test_an_llm_has_grammars(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    with LLM(tiny_model, device="reference") as llm:
        wanted = [params(seed, json=SCHEMA) for seed in range(4)]
        outputs = [o.outputs[0] for o in llm.generate(["hello"] * 4, wanted)]
        for seed, output in enumerate(outputs):
            if output.finish_reason == "stop":
                check_schema(output.text)
            (alone,) = llm.generate("hello", wanted[seed])
            assert alone.outputs[0] == output
        with pytest.raises(ValueError, match="unclosed"):
            llm.generate(["hello", "hello"], [SamplingParams(), params(regex="(")])


@pytest.mark.model
def test_the_real_model_keeps_a_schema(real_model: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    form = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    with LLM(real_model) as llm:
        wanted = SamplingParams(temperature=0, max_tokens=80, structured_outputs=form)
        output = llm.generate("The capital of France, as JSON: ", wanted)[0].outputs[0]
        found = json.loads(output.text)
        assert output.finish_reason == "stop" and set(found) == {"city", "people"}
        yes = StructuredOutputsParams(choice=["Paris", "London", "Rome"])
        wanted = SamplingParams(temperature=0, structured_outputs=yes)
        output = llm.generate("The capital of France is ", wanted)[0].outputs[0]
        assert output.text == "Paris"
        sampled = SamplingParams(seed=1, max_tokens=200, n=4, structured_outputs=form)
        (several,) = llm.generate("A city: ", sampled)
        for one in several.outputs:
            assert one.finish_reason != "stop" or set(json.loads(one.text)) == {"city", "people"}
