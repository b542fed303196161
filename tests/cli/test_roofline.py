"""The share of the ceiling, and the figures of each kind of op, as the verbs report them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from tiny_gguf import LAYERS

OP_FIELDS = {
    "name",
    "calls",
    "seconds",
    "bytes",
    "operations",
    "bytes_per_s",
    "operations_per_s",
    "bound",
    "ceiling",
    "share_of_ceiling",
    "share_of_time",
}
PHASE_FIELDS = {
    "phase",
    "steps",
    "tokens",
    "seconds",
    "ops",
    "fork_join_s",
    "python_s",
    "share_of_ceiling",
}


def check_stats(stats: dict[str, Any], steps: dict[str, int]) -> None:
    """The schema, and that the shares of the time add up. steps: of each phase that must be there."""
    assert {phase["phase"]: phase["steps"] for phase in stats["phases"]} == steps
    for phase in stats["phases"]:
        assert phase.keys() == PHASE_FIELDS
        assert all(op.keys() == OP_FIELDS for op in phase["ops"])
        shares = sum(op["share_of_time"] for op in phase["ops"])
        lost = (phase["fork_join_s"] + phase["python_s"]) / phase["seconds"]
        assert shares + lost == pytest.approx(1.0)
        kinds = {op["name"].split()[0] for op in phase["ops"]}
        assert {"embed", "attention", "matmul", "matmul_swiglu", "matmul_qkv_rope"} <= kinds
        for op in phase["ops"]:
            assert op["bound"].split()[1] in ("bandwidth", "peak")
            assert op["ceiling"] > 0
    ceilings = stats["ceilings"]
    assert set(ceilings["peaks"]) == {"f32", "bf16", "int4", "int8"}
    assert ceilings["bandwidth_by_level"]["DRAM"] > 0
    sizes = [row["bytes"] for row in ceilings["bandwidth"]]
    assert sizes == sorted(sizes)


def test_generate_reports_ops_on_request(run: Run, tiny_model: Path) -> None:
    words = ("generate", tiny_model, "-p", "hello wor", "-t", 1, "--max-tokens", 5, "--ignore-eos")
    plain = json.loads(run(*words, "--json").stdout)
    assert "stats" not in plain
    found = json.loads(run(*words, "--json", "--stats").stdout)
    assert found["token_ids"] == plain["token_ids"]
    check_stats(found["stats"], {"prefill": 1, "decode": 4})
    result = run(*words, "--stats")
    assert result.stdout == plain["text"] + "\n"
    assert "matmul_swiglu Q8_0" in result.stderr
    assert "decode: 4 steps, 4 tokens" in result.stderr


def test_a_device_that_does_not_time_ops_says_so(run: Run, tiny_model: Path) -> None:
    words = ("generate", tiny_model, "-p", "hello", "--device", "reference", "--stats")
    result = run(*words)
    assert result.exit_code == 1
    assert "use the device 'native'" in result.stderr


BENCH = ("-p", "20,4", "-n", "3", "-r", 1, "-t", 1, "-ub", 8)


def test_bench_reports_ops_in_json(run: Run, tiny_model: Path) -> None:
    rows = json.loads(run("bench", tiny_model, *BENCH, "-o", "json").stdout)
    for row, steps in zip(rows, ({"prefill": 3}, {"prefill": 1}, {"decode": 3}), strict=True):
        check_stats(row["stats"], steps)
    (row,) = json.loads(run("bench", tiny_model, *BENCH[2:], "-p", 0, "--json").stdout)["results"]
    check_stats(row["stats"], {"decode": 3})
    lines = run("bench", tiny_model, *BENCH, "-o", "jsonl", "--no-stats").stdout.splitlines()
    assert [json.loads(line)["stats"] for line in lines] == [None] * 3
    assert "stats" not in run("bench", tiny_model, *BENCH, "-o", "csv").stdout.splitlines()[0]


def test_bench_prints_a_table_of_ops_on_request(run: Run, tiny_model: Path) -> None:
    text = run("bench", tiny_model, *BENCH, "--stats").stdout
    assert "pp20, prefill: 3 steps, 20 tokens" in text
    tables = [line for line in text.splitlines() if line.startswith("| attention")]
    assert len(tables) == 3
    assert len({line.count("|") for line in tables}) == 1
    assert "attention" not in run("bench", tiny_model, *BENCH).stdout


def test_bench_of_the_reference_has_no_stats(run: Run, tiny_model: Path) -> None:
    words = ("bench", tiny_model, "-p", 4, "-n", 0, "-r", 1, "--device", "reference")
    (row,) = json.loads(run(*words, "-o", "json").stdout)
    assert row["stats"] is None


def test_bench_draws_the_roofline(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    result = run("bench", tiny_model, *BENCH, "--plot", path)
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert str(path) in result.stderr


@pytest.mark.parametrize(
    ("words", "wanted", "code"),
    [
        (("--plot", "nothing/here/out.png"), "does not exist", 1),
        (("--plot", "out.svg"), "must end in .png", 1),
        (("--plot", "out.png", "-t", "1,2"), "one number of threads", 2),
    ],
)
def test_a_plot_that_cannot_be_is_refused_first(
    run: Run, tiny_model: Path, words: tuple[str, ...], wanted: str, code: int
) -> None:
    pytest.importorskip("matplotlib")
    result = run("bench", tiny_model, *BENCH[:6], *words)
    assert result.exit_code == code
    assert wanted in result.stderr
    assert not result.stdout


def test_doctor_shows_the_ceilings(run: Run) -> None:
    found = json.loads(run("doctor", "-t", 1, "--json").stdout)["ceilings"]
    assert found["threads"] == 1
    assert found["bandwidth_by_level"].keys() >= {"DRAM"}
    text = run("doctor", "-t", 1).stdout
    assert "DRAM read" in text
    assert "int8 peak" in text


def test_decode_bytes_are_weights_and_keys(tiny_model: Path, environment: None) -> None:
    from cpuinfer.cli.limit import decode_bytes
    from cpuinfer.cli.load import load_program
    from cpuinfer.graph.dtypes import KVType

    packed, program = load_program(tiny_model)
    weights = sum(
        weight.data.nbytes for weight in packed.weights.values()
    )  # the embedding is the output too
    token = 2 * LAYERS * 2 * 16 * 2
    assert decode_bytes(program, KVType.F16, 0) == weights
    assert decode_bytes(program, KVType.F16, 100) == weights + 100 * token
    assert decode_bytes(program, KVType.F32, 100) == weights + 200 * token
    assert decode_bytes(program, KVType.F16, 100, n_seqs=4) == weights / 4 + 100 * token
