"""Lists, ranges, tests and formats of `bench` are llama-bench's."""

from __future__ import annotations

import csv
import io
import json

import pytest

from cpuinfer.cli.bench_spec import Case, Report, Result, cases, numbers, pairs, spread


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["512"], [512]),
        (["1,2", "4"], [1, 2, 4]),
        (["1-4"], [1, 2, 3, 4]),
        (["10-30+10"], [10, 20, 30]),
        (["1-9*2"], [1, 2, 4, 8]),
        (["0"], [0]),
    ],
)
def test_numbers(given: list[str], expected: list[int]) -> None:
    assert numbers("-p", given) == expected


@pytest.mark.parametrize(
    "given", ["", "a", "-1", "1,", "4-1", "0-8*2", "1-8*1", "1-8+0", "1.5", "0-99999999"]
)
def test_bad_numbers(given: str) -> None:
    with pytest.raises(ValueError, match="-p"):
        numbers("-p", [given])


def test_least() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        numbers("-t", ["0"], least=1)


def test_pairs() -> None:
    assert pairs("-pg", ["8,4", "16,1"]) == [(8, 4), (16, 1)]
    for bad in ("8", "8,0", "a,b", "1,2,3"):
        with pytest.raises(ValueError, match="-pg"):
            pairs("-pg", [bad])


def test_cases_run_alone_and_zero_is_none() -> None:
    made = list(cases([512, 0], [128], [(8, 4)], [0, 64], [1]))
    assert [case.label for case in made] == [
        "pp512",
        "tg128",
        "pp8+tg4",
        "pp512 @ d64",
        "tg128 @ d64",
        "pp8+tg4 @ d64",
    ]
    assert Case(8, 4, 64, 3).n_tokens == 36
    assert Case(8, 4, 64, 3).context == 76


def test_spread() -> None:
    assert spread([2.0]) == (2.0, 0.0)
    mean, deviation = spread([1.0, 3.0])
    assert (mean, round(deviation, 6)) == (2.0, 1.414214)


RESULT = Result(
    build_commit="x", build_number=1, cpu_info='a "cpu"', gpu_info="", backends="CPU", model_filename="m, n.gguf",
    model_type="llama Q4_1", model_size=1 << 20, model_n_params=1000000, n_batch=512, n_ubatch=512, n_threads=2,
    type_k="f16", type_v="f16", n_prompt=0, n_gen=8, n_depth=0, n_seqs=1, device="native", isa="avx2",
    test_time="2026-01-01T00:00:00Z", avg_ns=1, stddev_ns=0, avg_ts=12.345, stddev_ts=0.5, roofline_share=0.25,
    samples_ns=[1], samples_ts=[12.345],
)  # fmt: skip


def report(form: str) -> str:
    out = Report(form)
    return out.begin() + out.line(RESULT, "tg8") + out.line(RESULT, "tg8") + out.end()


def test_json_is_an_array_with_samples() -> None:
    first, second = json.loads(report("json"))
    assert first == second
    assert first["samples_ts"] == [12.345]
    assert {
        "n_prompt",
        "n_gen",
        "n_depth",
        "n_threads",
        "avg_ts",
        "stddev_ts",
        "avg_ns",
    } <= first.keys()


def test_jsonl_csv_and_md() -> None:
    assert [json.loads(line)["avg_ts"] for line in report("jsonl").splitlines()] == [12.345] * 2
    rows = list(csv.DictReader(io.StringIO(report("csv"))))
    assert rows[0]["model_filename"] == "m, n.gguf"
    assert rows[1]["cpu_info"] == 'a "cpu"'
    assert "samples_ns" not in rows[0]
    lines = report("md").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "12.35 ± 0.50" in lines[2] or "12.34 ± 0.50" in lines[2]
    assert "25 %" in lines[2]
