"""`bench --isa all --fingerprint`, and `bench compare` of several machines' reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from test_bench_compare import BASE, scaled

from cpuinfer.machine import isa

LEVELS = [level.name for level in isa.levels() if level.runnable]


def report(path: Path, cpu: str, levels: dict[str, float], fingerprint: str = "aa") -> Path:
    rows = [
        {
            **{
                "model_filename": "x/m.gguf",
                "n_threads": 2,
                "n_prompt": prompt,
                "n_gen": 8 - prompt,
            },
            **{"n_depth": 0, "n_seqs": 1, "type_k": "f16", "isa": level, "cpu_info": cpu},
            "samples_ts": scaled(factor),
            "fingerprint": fingerprint,
        }
        for prompt in (0, 8)
        for level, factor in levels.items()
    ]
    path.write_text(json.dumps({"results": rows}))
    return path


def test_all_levels_run_in_turn_with_one_fingerprint(run: Run, tiny_model: Path) -> None:
    words = ("bench", tiny_model, "-p", 4, "-n", 2, "-r", 2, "-t", 1, "--isa", "all")
    rows = json.loads(run(*words, "--fingerprint", "--no-stats", "--json").stdout)["results"]
    assert [(row["isa"], row["n_prompt"]) for row in rows] == [
        (level, prompt) for prompt in (4, 0) for level in LEVELS
    ]
    assert all(len(row["samples_ns"]) == 2 for row in rows)
    wanted = json.loads(run("verify", tiny_model, "-t", 1, "--json").stdout)["fingerprint"]
    assert {row["fingerprint"] for row in rows} == {wanted}
    table = run(*words).stdout.splitlines()
    assert sum("native/" in line for line in table) == 2 * len(LEVELS)
    plain = json.loads(run(*words, "--json", "--no-stats").stdout)["results"]
    assert {row["fingerprint"] for row in plain} == {None}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--isa", "all", "--device", "reference"), "reference has no levels"),
        (("--isa", "all", "--plot", "x.png"), "one level"),
        (("--fingerprint", "--peer", "transformers"), "their report has its fingerprint"),
    ],
)
def test_what_does_not_go_together(
    run: Run, tiny_model: Path, words: tuple[str, ...], wanted: str
) -> None:
    if "--plot" in words and len(LEVELS) < 2:
        pytest.skip("this processor runs one level only")
    result = run("bench", tiny_model, "-p", 4, "-n", 0, *words)
    assert result.exit_code == 2
    assert wanted in " ".join(result.stderr.split())


def test_reports_of_machines_become_one_table(run: Run, tmp_path: Path) -> None:
    a = report(tmp_path / "a", "Abacus", {"scalar": 0.2, "avx2": 1})
    b = report(tmp_path / "b", "Slide Rule", {"neon": 0.5, "neon_dotprod": 0.8})
    c = report(tmp_path / "c", "Abacus II", {"avx2": 2}, "bb")
    found = json.loads(run("bench", "compare", a, b, "--json").stdout)
    table = {(r["cpu"], r["setting"], r["test"]): r["median"] for r in found["table"]}
    assert len(table) == 8
    assert table["Abacus", "avx2", "tg8"] == pytest.approx(100)
    assert table["Slide Rule", "neon", "pp8"] == pytest.approx(50)
    assert [r["test"] for r in found["table"]] == ["tg8"] * 4 + ["pp8"] * 4
    assert found["same_fingerprint"] == {"m.gguf f16": True}
    assert len(found["prints"]) == 4
    assert "points" not in found  # no level in common
    text = run("bench", "compare", a, b).stdout
    assert "| m.gguf | tg8 | f16 | Slide Rule | cpuinfer | neon | 2 | 50.00 ± 0.25 |" in text
    assert "m.gguf f16: one fingerprint" in text
    text = run("bench", "compare", a, b, c).stdout
    assert "| m.gguf | f16 | Abacus II | avx2 | bb |" in text
    assert "m.gguf f16: fingerprints DIFFER" in text
    # Two machines with a level in common: the table, and their differences.
    both = json.loads(run("bench", "compare", a, c, "--json").stdout)
    assert [point["ratio"] for point in both["points"]] == pytest.approx([2, 2])
    assert len(both["table"]) == 6


def test_one_plot_of_all(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    a = report(tmp_path / "a", "Abacus", {"scalar": 0.2, "avx2": 1})
    b = report(tmp_path / "b", "Slide Rule", {"neon": 0.5})
    out = tmp_path / "out.png"
    result = run("bench", "compare", a, b, "--plot", out)
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    result = run("bench", "compare", a, b, "--plot", tmp_path / "no" / "out.png")
    assert result.exit_code == 1
    assert "folder" in result.stderr


def test_reports_beside_peers_have_one_fingerprint_each(run: Run, tmp_path: Path) -> None:
    def beside(name: str, cpu: str, value: str) -> Path:
        row: dict[str, Any] = {"model_filename": "m.gguf", "n_threads": 1, "n_gen": 8}
        row |= {"samples_ts": BASE, "engine": "cpuinfer", "setting": "avx2"}
        content = {"results": [row], "fingerprints": {"m.gguf": value}, "machine": {"cpu": cpu}}
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    found = json.loads(
        run("bench", "compare", beside("a", "A", "1"), beside("b", "B", "2"), "--json").stdout
    )
    assert found["same_fingerprint"] == {"m.gguf": False}
    assert found["fingerprints"] == [{"model": "m.gguf", "a": "1", "b": "2", "equal": False}]
