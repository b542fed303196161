"""preemption.py, run small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import preemption
import pytest


def test_crossovers_are_between_the_lengths_measured() -> None:
    found = [
        {"length": n, "median": {"swap": swap, "recompute": recompute}}
        for n, swap, recompute in ((10, 3.0, 1.0), (20, 4.0, 4.0), (40, 5.0, 9.0))
    ]
    assert preemption.crossovers(found) == [20]
    assert preemption.crossovers(found[1:]) == []


def test_every_length_is_measured_both_ways(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out.json"
    words = ["preemption.py", str(tiny_model), "--lengths", "40", "3", "--rounds", "2"]
    folder = ["--swap-path", str(tmp_path), "--threads", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, *folder])
    preemption.main()
    report = json.loads(out.read_text())
    short, long = (row["length"] for row in report["lengths"])
    assert 3 < short < 40 < long, "as long as they were, having grown"
    for row in report["lengths"]:
        assert {way: len(s) for way, s in row["samples"].items()} == {"swap": 2, "recompute": 2}
        assert row["estimate"]["swap"] > 0 < row["estimate"]["recompute"]
        assert row["picked"] in preemption.WAYS
    assert f"| {long} |" in capsys.readouterr().out
