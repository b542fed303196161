"""The verbs that do not generate, and `bench`."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Run
from tiny_gguf import LAYERS, SPECIAL, vocabulary


def test_tokenize_a_vocabulary_only_file(run: Run, tiny_vocabulary: Path) -> None:
    result = run("tokenize", tiny_vocabulary, "hello wor<|im_end|>", "--json")
    found = json.loads(result.stdout)
    tokens = vocabulary()
    assert [tokens[i] for i in found["tokens"]] == [SPECIAL[0], "hello", "Ġwor", SPECIAL[2]]
    assert found["pieces"][1:3] == ["hello", " wor"]
    assert found["count"] == 4


def test_no_special_reads_special_tokens_as_text(run: Run, tiny_vocabulary: Path) -> None:
    result = run("tokenize", tiny_vocabulary, "--no-special", "--json", input="hello<|im_end|>")
    found = json.loads(result.stdout)
    assert vocabulary()[found["tokens"][0]] == "hello"
    assert not {0, 1, 2} & set(found["tokens"])
    assert "".join(found["pieces"]) == "hello<|im_end|>"


def test_tokenize_prints_a_line_per_token(run: Run, tiny_vocabulary: Path) -> None:
    lines = run("tokenize", tiny_vocabulary, "hello wor").stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines][1:] == ["'hello'", "' wor'"]


def test_inspect(run: Run, tiny_model: Path) -> None:
    found = json.loads(run("inspect", tiny_model, "--json").stdout)
    assert found["metadata"]["llama.block_count"] == LAYERS
    assert found["metadata"]["tokenizer.ggml.tokens"]["count"] == len(vocabulary())
    assert {"name": "output_norm.weight", "type": "F32", "shape": [64], "bytes": 256} in found[
        "tensors"
    ]
    text = run("inspect", tiny_model).stdout
    assert "llama.block_count" in text
    assert "blk.1.ffn_down.weight" in text


def test_inspect_shows_the_program_before_and_after_each_pass(run: Run, tiny_model: Path) -> None:
    stages = json.loads(run("inspect", tiny_model, "--program", "--json").stdout)["stages"]
    ops = [len(stage["ops"]) for stage in stages]
    assert stages[0]["pass"] == "model"
    assert ops[-1] < ops[0]
    assert stages[-1]["bytes"] < stages[0]["bytes"]
    assert all(stage["bytes"] == sum(op["bytes"] for op in stage["ops"]) for stage in stages)
    text = run("inspect", tiny_model, "--program").stdout
    assert text.count("\n== ") + text.startswith("== ") == len(stages)


def test_pack_then_inspect_and_generate(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed.gguf"
    packed = json.loads(run("pack", tiny_model, target, "--json").stdout)
    assert packed["bytes"] == target.stat().st_size
    again = run("pack", tiny_model, target)
    assert again.exit_code == 1
    assert "--force" in again.stderr
    assert run("pack", tiny_model, target, "--force").exit_code == 0
    assert (
        json.loads(run("inspect", target, "--json").stdout)["metadata"]["llama.block_count"]
        == LAYERS
    )
    plain, mapped = (
        json.loads(run("verify", path, "--json").stdout)["fingerprint"]
        for path in (tiny_model, target)
    )
    assert plain == mapped


def test_bench_json_is_llama_benchs_array(run: Run, tiny_model: Path) -> None:
    words = (
        "-m",
        tiny_model,
        "-p",
        "20,4",
        "-n",
        3,
        "-pg",
        "4,2",
        "-d",
        "0,17",
        "-b",
        "1,3",
        "-ub",
        8,
        "-r",
        2,
    )
    result = run("bench", *words, "-t", "1-2", "-o", "json")
    rows = json.loads(result.stdout)
    assert len(rows) == 4 * 2 * 2 * 2
    assert [r["n_prompt"] for r in rows[:4]] == [20, 4, 0, 4]
    assert [r["n_gen"] for r in rows[:4]] == [0, 0, 3, 2]
    for row in rows:
        assert len(row["samples_ts"]) == len(row["samples_ns"]) == 2
        n = row["n_seqs"] * (row["n_prompt"] + row["n_gen"])
        assert (
            abs(row["samples_ts"][0] - 1e9 * n / row["samples_ns"][0]) < 1e-6 * row["samples_ts"][0]
        )
        assert (row["roofline_share"] is None) == (row["n_prompt"] > 0)
    assert {row["n_threads"] for row in rows} == {1, 2}


def test_bench_object_and_table(run: Run, tiny_model: Path) -> None:
    words = ("bench", tiny_model, "-p", 0, "-n", 2, "-r", 1, "-t", 1)
    assert len(json.loads(run(*words, "--json").stdout)["results"]) == 1
    assert "tg2" in run(*words).stdout.splitlines()[-1]


def test_doctor(run: Run, tiny_model: Path) -> None:
    found = json.loads(run("doctor", tiny_model, "-t", 1, "--json").stdout)
    assert (found["threads"], found["threads_reason"]) == (1, "--threads")
    assert found["read_bandwidth"] > 0
    assert found["isa"] in {level["name"] for level in found["levels"] if level["runs"]}
    assert all(level["why_not"] for level in found["levels"] if not level["runs"])
    assert found["build_map"]["vec.h"]
    assert found["model"]["kv_bytes_per_token"] == 2 * LAYERS * 2 * 16 * 2
    text = run("doctor").stdout
    assert "DRAM read" in text
    assert found["isa"] in text
