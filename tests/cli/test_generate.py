"""`generate`, `chat` and `verify` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from conftest import Run
from tiny_gguf import write_tiny

from cpuinfer.graph import dtypes


def generate(run: Run, model: Path, *words: object) -> dict[str, Any]:
    result = run("generate", model, "-p", "hello wor", "-t", 1, "--json", *words)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_json_has_the_fields(run: Run, tiny_model: Path) -> None:
    found = generate(run, tiny_model, "--max-tokens", 5, "--ignore-eos")
    assert found["completion_tokens"] == len(found["token_ids"]) == 5
    assert found["finish_reason"] == "length"
    assert found["prompt_tokens"] == 3  # begin, hello, wor
    assert {"load_s", "prefill_tok_s", "decode_tok_s"} <= found["timings"].keys()
    assert (found["device"], found["threads"]) == ("native", 1)
    roofline = found["roofline"]
    reached = roofline["bytes_per_token"] * found["timings"]["decode_tok_s"]
    assert roofline["bytes_per_s"] == pytest.approx(reached)
    assert roofline["share"] == pytest.approx(reached / roofline["read_bandwidth"])


def test_text_goes_to_stdout_and_timing_to_stderr(run: Run, tiny_model: Path) -> None:
    words = ("--max-tokens", 5, "--ignore-eos")
    result = run("generate", tiny_model, "-p", "hello wor", "-t", 1, *words)
    assert result.stdout == generate(run, tiny_model, *words)["text"] + "\n"
    (line,) = result.stderr.splitlines()
    assert "answer 5 tokens" in line
    assert "of this machine's" in line


def test_reference_device_has_no_roofline(run: Run, tiny_model: Path) -> None:
    found = generate(run, tiny_model, "--max-tokens", 1, "--device", "reference")
    assert (found["device"], found["isa"], found["roofline"]) == ("reference", None, None)


def test_prompt_from_stdin(run: Run, tiny_model: Path) -> None:
    words = ("generate", tiny_model, "--max-tokens", 3, "--json")
    piped = [run(*words, *more, input="hello wor") for more in ((), ("-p", "-"))]
    assert {json.loads(result.stdout)["text"] for result in piped} == {
        generate(run, tiny_model, "--max-tokens", 3)["text"]
    }


def test_seed_repeats_a_sample(run: Run, tiny_model: Path) -> None:
    words = ("--max-tokens", 12, "--temperature", 2, "--ignore-eos", "--seed")
    one, again, other = (generate(run, tiny_model, *words, seed) for seed in (1, 1, 2))
    assert one["token_ids"] == again["token_ids"] != other["token_ids"]


def test_stop_and_logprobs(run: Run, tiny_model: Path) -> None:
    whole = generate(run, tiny_model, "--max-tokens", 8, "--ignore-eos", "--logprobs", 2)
    for token, entry in zip(whole["token_ids"], whole["logprobs"], strict=True):
        assert entry["token_id"] == token
        assert entry["logprob"] <= 0
        assert [e["rank"] for e in entry["top"]][:2] == [1, 2]
    stop = whole["text"][2:4]
    cut = generate(run, tiny_model, "--max-tokens", 8, "--ignore-eos", "--stop", stop)
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)


def test_chat_template_makes_a_longer_prompt(run: Run, tiny_model: Path) -> None:
    raw = generate(run, tiny_model, "--max-tokens", 1)
    chat = generate(run, tiny_model, "--max-tokens", 1, "--chat")
    assert chat["prompt_tokens"] > raw["prompt_tokens"]


def test_too_long_a_prompt_is_an_error_with_both_numbers(run: Run, tiny_model: Path) -> None:
    result = run("generate", tiny_model, "-p", "z" * 300, "--json")
    assert result.exit_code == 1
    message = json.loads(result.stdout)["error"]
    assert "301" in message
    assert "256" in message


def test_chat_keeps_and_forgets_history(run: Run, tiny_model: Path) -> None:
    words = ("chat", tiny_model, "--max-tokens", 4, "--temperature", 0, "--json", "--system", "be")
    result = run(*words, input="hello\n\n/reset\nwor\nhello\n/exit\nnot read\n")
    roles = [(m["role"], m["content"]) for m in json.loads(result.stdout)["messages"]]
    assert [role for role, _ in roles] == ["system", "user", "assistant", "user", "assistant"]
    assert [text for role, text in roles if role == "user"] == ["wor", "hello"]


def test_chat_survives_a_message_that_does_not_fit(run: Run, tiny_model: Path) -> None:
    result = run("chat", tiny_model, "--max-tokens", 4, "--json", input=f"{'z' * 400}\nhello\n")
    assert result.exit_code == 0
    assert "/reset" in result.stderr
    assert len(json.loads(result.stdout)["messages"]) == 2


def test_fingerprint_is_one_for_threads_and_levels(run: Run, tiny_model: Path) -> None:
    from cpuinfer.machine.isa import levels

    runs = [(level.name, threads) for level in levels() if level.runnable for threads in (1, 2, 3)]
    found = set()
    for isa, threads in runs:
        result = run("verify", tiny_model, "--isa", isa, "-t", threads, "--json")
        assert json.loads(result.stdout)["isa"] == isa
        found.add(json.loads(result.stdout)["fingerprint"])
    assert len(runs) >= 3
    assert len(found) == 1


def test_fingerprint_follows_the_kv_type(run: Run, tiny_model: Path) -> None:
    prints = [run("verify", tiny_model, "--kv-type", kind).stdout for kind in ("f16", "f32", "f32")]
    assert prints[0] != prints[1] == prints[2]
    assert len(prints[0].strip()) == 64


@pytest.mark.model
def test_the_real_model_names_paris(run: Run, real_model: Path) -> None:
    words = ("-p", "The capital of France is", "--max-tokens", 8, "--temperature", 0, "--json")
    result = run("generate", real_model, *words)
    assert "Paris" in json.loads(result.stdout)["text"]


def test_types_without_a_kernel_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every type has one, so one is taken from the table."""
    monkeypatch.delitem(dtypes._ACTIVATIONS, dtypes.WeightType.Q5_0)
    model = write_tiny(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q5_0)
    result = run("generate", model, "-p", "hello", "-t", 1, "--max-tokens", 1)
    assert result.exit_code == 0, result.stderr
    assert "without a native kernel (Q5_0) are stored as F32" in result.stderr


def test_an_answer_with_a_form(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema, grammar = tmp_path / "schema.json", tmp_path / "answer.lark"
    schema.write_text('{"enum": ["hello", 7]}')
    grammar.write_text('start: "yes" | "no"')
    for words, answers in (
        (("--json-schema", schema), {'"hello"', "7"}),
        (("--json-schema", '{"const": [true]}'), {"[true]"}),
        (("--regex", "[ab]{3}"), {a + b + c for a in "ab" for b in "ab" for c in "ab"}),
        (("--grammar", grammar), {"yes", "no"}),
    ):
        found = generate(run, tiny_model, *words)
        assert found["text"].replace(" ", "").strip() in answers
        assert found["finish_reason"] == "stop"
    for words, code in (
        (("--regex", "a", "--json-schema", "{}"), 2),
        (("--json-schema", tmp_path / "none"), 2),
        (("--json-schema", "{"), 2),
        (("--regex", "a", "--ignore-eos"), 2),
        (("--regex", "("), 1),
    ):
        result = run("generate", tiny_model, "-p", "a", *words)
        assert result.exit_code == code and "Traceback" not in result.stderr
