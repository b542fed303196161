"""`bench compare`: what it reads, and what it finds in reports of known differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

BASE = [100.0, 101.0, 99.0, 100.5, 99.5]


def row(samples: list[float], engine: str = "cpuinfer", setting: str = "avx2", **sizes: int) -> Any:
    return {
        "model_filename": "some/folder/m.gguf",
        "n_threads": 2,
        **{"n_prompt": 0, "n_gen": 8, "n_depth": 0, "n_seqs": 1},
        **sizes,
        "engine": engine,
        "setting": setting,
        "samples_ts": samples,
    }


def write(path: Path, rows: list[Any], **others: Any) -> Path:
    path.write_text(json.dumps({"results": rows, **others}))
    return path


def scaled(factor: float) -> list[float]:
    return [factor * sample for sample in BASE]


def test_differences_and_noise(run: Run, tmp_path: Path) -> None:
    rows = [row(BASE), row(BASE, n_gen=16), row(BASE[:3], n_gen=32), row(BASE, n_gen=64)]
    a = write(tmp_path / "a", rows, fingerprints={"m.gguf": "12"}, git_commit="old")
    rows = [row(scaled(1.5)), row([98, 99, 101, 102, 100.0], n_gen=16)]
    rows += [row(scaled(2)[:3], n_gen=32), row(BASE, n_gen=128)]
    b = write(tmp_path / "b", rows, fingerprints={"m.gguf": "13"})
    found = json.loads(run("bench", "compare", a, b, "--json").stdout)
    points = {point["n_gen"]: point for point in found["points"]}
    assert points[8]["ratio"] == pytest.approx(1.5)
    assert points[8]["differs"] is True
    assert points[8]["low"] < 1.5 < points[8]["high"]
    assert points[16]["differs"] is False
    assert points[32]["ratio"] == pytest.approx(2)
    assert points[32]["differs"] is None
    assert [name.split(",")[0] for name in found["only_in_a"]] == ["m.gguf tg64"]
    assert [name.split(",")[0] for name in found["only_in_b"]] == ["m.gguf tg128"]
    assert found["fingerprints"] == [{"model": "m.gguf", "a": "12", "b": "13", "equal": False}]
    text = run("bench", "compare", a, b).stdout
    assert "fingerprint of m.gguf: DIFFERENT: 12 | 13" in text
    verdicts = [line.rsplit(" | ", 1)[1] for line in text.splitlines() if "m.gguf tg" in line[:15]]
    assert verdicts == ["differs |", "within the noise |", "too few samples |"]


def test_a_busier_machine_is_no_difference_beside_a_peer(run: Run, tmp_path: Path) -> None:
    # In b everything takes twice as long, but for ours, which got 1.3 times faster at 16 tokens.
    def report(name: str, factor: float, gain: float) -> Path:
        rows = []
        for n_gen, speed in ((8, factor), (16, factor * gain)):
            rows.append(row(scaled(speed), n_gen=n_gen))
            rows.append(row(scaled(factor / 2), "llama.cpp", "fa=0", n_gen=n_gen))
            rows.append(row(scaled(factor / 3), "llama.cpp", "fa=1", n_gen=n_gen))
        return write(tmp_path / name, rows)

    a, b = report("a", 1, 1), report("b", 0.5, 1.3)
    found = json.loads(run("bench", "compare", a, b, "--json").stdout)
    ours = {p["n_gen"]: p for p in found["points"] if p["engine"] == "cpuinfer"}
    assert ours[8]["ratio"] == pytest.approx(0.5)
    assert ours[8]["beside_peer"]["ratio"] == pytest.approx(1)
    assert ours[8]["beside_peer"]["differs"] is False
    assert ours[16]["beside_peer"]["ratio"] == pytest.approx(1.3)
    assert ours[16]["beside_peer"]["differs"] is True
    lines = [line for line in run("bench", "compare", a, b).stdout.splitlines() if "avx2" in line]
    assert [line.rsplit(" | ", 1)[1] for line in lines] == ["within the noise |", "differs |"]


def test_reports_of_plain_bench(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    words = ("bench", tiny_model, "-p", 4, "-n", 2, "-r", 4, "-t", 1)
    for name, form in (("a", ("-o", "jsonl")), ("b", ("-o", "json")), ("c", ("--json",))):
        (tmp_path / name).write_text(run(*words, *form).stdout)
    for other in "bc":
        compared = run("bench", "compare", tmp_path / "a", tmp_path / other, "--json")
        assert [p["n_prompt"] for p in json.loads(compared.stdout)["points"]] == [4, 0]


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("not json", "text that is not JSON"),
        ("{}", "no list of results"),
        ('{"results": []}', "no list of results"),
        ("[3]", "a result that is a int"),
        ('[{"n_gen": 8}]', "samples_ts"),
        ('[{"samples_ts": [0]}]', "samples_ts"),
        ('[{"samples_ts": [NaN]}]', "samples_ts"),
        ('[{"samples_ts": [1], "n_gen": "8"}]', "sizes are no numbers"),
        ('[{"samples_ts": [1]}, {"samples_ts": [1]}]', "two results"),
    ],
)
def test_what_is_no_report(run: Run, tmp_path: Path, text: str, got: str) -> None:
    good = write(tmp_path / "good", [row(BASE)])
    bad = tmp_path / "bad"
    bad.write_text(text)
    result = run("bench", "compare", good, bad)
    assert result.exit_code == 1
    assert got in result.stderr


def test_nothing_in_common_or_not_two(run: Run, tmp_path: Path) -> None:
    a = write(tmp_path / "a", [row(BASE)])
    b = write(tmp_path / "b", [row(BASE, n_depth=16)])
    result = run("bench", "compare", a, b)
    assert result.exit_code == 1
    assert "no point in common" in result.stderr
    assert run("bench", "compare", a).exit_code == 2
