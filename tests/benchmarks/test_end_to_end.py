"""The suites of end_to_end.py, run small on our engine alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import end_to_end
import pytest
from end_to_end import SUITES, scaled

from cpuinfer.cli.bench_spec import Case


def test_scaled_points_keep_their_kind() -> None:
    assert scaled((Case(512, 0, 8, 2), Case(0, 64, 0, 4)), 16) == (
        Case(32, 0, 1, 2),
        Case(0, 4, 0, 4),
    )
    assert scaled(SUITES["depth"], 1) == SUITES["depth"]


def test_suites_are_one_report(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    words = ["end_to_end.py", str(tiny_model), "--suite", "speed", "batch", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--rounds", "1", "--scale", "64", "--json", str(out)])
    end_to_end.main()
    report = json.loads(out.read_text())
    points = {(row["n_prompt"], row["n_gen"], row["n_seqs"]) for row in report["results"]}
    assert points == {(8, 0, 1), (0, 2, 1), *((0, 1, n) for n in (1, 2, 4, 8, 16, 32))}
    assert {row["engine"] for row in report["results"] if row["n_seqs"] == 32} == {
        *("cpuinfer", "cpuinfer-engine", "limit")
    }
    assert report["ratios"] == []
    assert report["skipped"] == []
