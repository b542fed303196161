"""`bench --peer`: the processes, their protocol, and the report. No peer is needed: tools are stood in for."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import Run

from cpuinfer.cli.bench_peer import Plan, parse_peers, turns
from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import PEERS, Peer, Start, Unsupported
from cpuinfer.cli.peers.llama_cpp import Tools, batched_seconds, batched_test, find_bench
from cpuinfer.cli.peers.machine_limit import Limit
from cpuinfer.cli.peers.serve import serve

FAKE = Path(__file__).parent / "fake_llama_bench.py"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with stand-ins for llama.cpp's tools."""
    for name in ("llama-bench", "llama-batched-bench"):
        script = FAKE.read_text().replace("/usr/bin/env python3", sys.executable)
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(model: str, *points: Case) -> Start:
    return Start(model, 2, points)


def test_parse_peers() -> None:
    assert parse_peers(["llama.cpp=a/b,transformers", "cpuinfer-engine"]) == {
        "llama.cpp": "a/b",
        "transformers": None,
        "cpuinfer-engine": None,
    }
    for wrong in ("llama", "cpuinfer", "", "llama.cpp,,"):
        with pytest.raises(ValueError, match="known are .*llama.cpp"):
            parse_peers([wrong])


def test_engines_take_turns_in_going_first() -> None:
    points = (Case(4, 0, 0, 1), Case(0, 2, 0, 1))
    plan = Plan((), (1,), points, {}, rounds=3)
    found = list(turns(plan, ["a", "b"]))  # type: ignore[list-item]  # names will do
    assert [turn for turn, _, _ in found] == [0] * 4 + [1] * 4 + [2] * 4
    assert [engine for _, _, engine in found] == ["a", "b"] * 2 + ["b", "a"] * 2 + ["a", "b"] * 2
    assert [point for _, point, _ in found[:4]] == [points[0], points[0], points[1], points[1]]


def test_llama_bench_gives_seconds_for_both_settings(tools: Path) -> None:
    adapter = Tools(start("m.gguf", Case(4, 0, 0, 1)), tools / "llama-bench")
    assert adapter.seconds(Case(4, 0, 0, 1)) == {"fa=0": 1.0, "fa=1": 2.0}
    assert adapter.seconds(Case(0, 3, 16, 2)) == {"fa=0": 0.5, "fa=1": 1.0}
    assert adapter.flags["n_threads"] == 2
    with pytest.raises(RuntimeError, match="failed to load model"):
        Tools(start("broken.gguf", Case(4, 0, 0, 1)), tools / "llama-bench")


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (Case(0, 64, 128, 4), (128, "t_tg")),
        (Case(128, 0, 0, 4), (128, "t_pp")),
        (Case(128, 64, 0, 4), (128, "t")),
    ],
)
def test_what_llama_batched_bench_is_asked(point: Case, expected: tuple[int, str]) -> None:
    assert batched_test(point) == expected


@pytest.mark.parametrize("point", [Case(0, 64, 0, 4), Case(8, 0, 8, 4)])
def test_what_llama_batched_bench_cannot_run(point: Case) -> None:
    with pytest.raises(Unsupported):
        batched_test(point)


def test_batched_output() -> None:
    assert batched_seconds('noise\n{"t_tg": 0.25, "t": 1}\n', "t_tg") == 0.25
    for wrong in ("", "{}", '{"t_tg": 1}\n{"t_tg": 2}'):
        with pytest.raises(ValueError, match="expected one line with t_tg"):
            batched_seconds(wrong, "t_tg")


def test_find_bench(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_bench(str(tools)) == tools / "llama-bench"
    assert find_bench(str(tools / "llama-bench")) == tools / "llama-bench"
    monkeypatch.setenv("PATH", str(tools))
    assert find_bench(None) == tools / "llama-bench"
    monkeypatch.setenv("PATH", "")
    assert find_bench(None) is None
    with pytest.raises(FileNotFoundError, match="is no program"):
        find_bench(str(tools / "nothing"))


def answers(name: str, *messages: object) -> list[dict[str, object]]:
    lines = "".join(json.dumps(message) + "\n" for message in messages)
    found: list[dict[str, object]] = []
    serve(name, io.StringIO(lines), lambda message: found.append(dict(message)))
    return found


def test_the_protocol(tools: Path) -> None:
    point = Case(4, 0, 0, 1)
    opening = {**asdict(start("m.gguf", point)), "path": str(tools)}
    found = answers(
        "llama.cpp", opening, {"point": asdict(point)}, {"point": asdict(Case(0, 4, 0, 2))}
    )
    assert found[0]["settings"] == ("fa=0", "fa=1")
    assert found[1] == {"seconds": {"fa=0": 1.0, "fa=1": 2.0}}
    assert "give a depth" in str(found[2]["unsupported"])


def test_an_absent_engine_is_an_error_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PEERS, "absent", Peer("no_such_module", "build it"))
    opening = asdict(start("m.gguf", Case(4, 0, 0, 1)))
    (answer,) = answers("absent", opening)
    assert str(answer["error"]).startswith("absent is not there")
    assert str(answer["error"]).endswith("build it")


def test_a_report(run: Run, tiny_model: Path, tools: Path) -> None:
    words = ("bench", tiny_model, "-p", 8, "-n", 3, "-d", "0,16", "-b", "1,2", "-t", 1, "-r", 4)
    peers = f"llama.cpp={tools},cpuinfer-engine"
    report = json.loads(run(*words, "--peer", peers, "--json").stdout)
    names = ("n_prompt", "n_gen", "n_depth", "n_seqs", "engine", "setting")
    rows = {tuple(row[name] for name in names): row for row in report["results"]}
    assert all(len(row["samples_ts"]) == 4 for row in rows.values())
    assert rows[8, 0, 0, 1, "llama.cpp", "fa=0"]["median_ts"] == 8
    assert rows[0, 3, 16, 2, "llama.cpp", "fa=0"]["samples_ts"] == [6 / 0.5] * 4
    assert rows[0, 3, 16, 2, "cpuinfer-engine", "engine"]["min_ts"] > 0
    ours = next(row for key, row in rows.items() if key[:5] == (8, 0, 0, 1, "cpuinfer"))
    ratio = next(
        row
        for row in report["ratios"]
        if tuple(row[name] for name in names[:5]) == (8, 0, 0, 1, "cpuinfer")
    )
    assert ratio["peer_setting"] == "fa=0"
    assert ratio["ratio"] == pytest.approx(ours["median_ts"] / 8)
    assert ratio["low"] <= ratio["high"]
    assert "limit" not in {row["peer"] for row in report["ratios"]}
    for key in ((8, 0, 0, 1), (0, 3, 16, 2)):
        limit = rows[*key, "limit", "machine"]["median_ts"]
        assert rows[*key, "llama.cpp", "fa=0"]["limit_ts"] == limit > 0
    skipped = {tuple(row[name] for name in names[:5]) for row in report["skipped"]}
    assert (0, 3, 0, 2, "llama.cpp") in skipped
    assert (8, 0, 16, 1, "cpuinfer-engine") in skipped
    assert not skipped & {key[:5] for key in rows}
    assert report["machine"]["logical_cpus"] >= 1
    assert {about["engine"] for about in report["engines"]} == {
        *("cpuinfer", "limit", "llama.cpp", "cpuinfer-engine")
    }
    assert report["fingerprints"] == {
        tiny_model.name: run("verify", tiny_model).stdout.strip(),
    }


def test_a_table(run: Run, tiny_model: Path, tools: Path) -> None:
    words = ("bench", tiny_model, "-p", 8, "-n", 0, "-t", 1, "-r", 1)
    lines = run(*words, "--peer", f"llama.cpp={tools}").stdout.splitlines()
    assert [line.split(" | ")[3] for line in lines[2:]] == [
        *(f"cpuinfer {level_of(lines)}", "limit machine", "llama.cpp fa=0", "llama.cpp fa=1")
    ]


def level_of(lines: list[str]) -> str:
    return lines[2].split(" | ")[3].removeprefix("cpuinfer ")


def test_errors_are_one_line(run: Run, tiny_model: Path, tools: Path) -> None:
    words = ("bench", tiny_model, "-p", 8, "-n", 0, "-t", 1, "-r", 1, "--peer")
    unknown = run(*words, "vllm")
    assert unknown.exit_code == 2
    assert "unknown engine 'vllm'" in unknown.stderr
    absent = run(*words, f"llama.cpp={tools / 'nothing'}")
    assert absent.exit_code == 1
    assert "llama_cpp.sh" in absent.stderr.splitlines()[-1]
    broken = tools / "broken.gguf"
    shutil.copy(tiny_model, broken)
    failed = run("bench", broken, *words[2:], f"llama.cpp={tools}")
    assert failed.exit_code == 1
    assert "failed to load model" in failed.stderr.splitlines()[-1]


def test_the_limit_counts_what_a_point_needs(tiny_model: Path) -> None:
    points = Case(64, 0, 0, 1), Case(256, 0, 0, 1), Case(0, 4, 0, 1), Case(0, 4, 0, 2)
    limit = Limit(Start(str(tiny_model), 1, points))
    one, two = (limit._step_bytes(Case(0, 4, depth, 1)) for depth in (0, 512))
    layers, heads, head_dim = 2, 2, 16
    assert two - one == 512 * layers * heads * head_dim * 2 * 2
    for point in points:
        assert limit.seconds(point)["machine"] > 0
    with pytest.raises(Unsupported):
        limit.seconds(Case(8, 4, 0, 1))


@pytest.mark.peer
@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("transformers", "transformers"),
        ("openvino-genai", "openvino_genai"),
        ("llama.cpp", "llama_cpp"),
    ],
)
def test_other_engines_answer(name: str, module: str, real_model: Path) -> None:
    pytest.importorskip(module)
    points = Case(16, 0, 0, 1), Case(0, 3, 8, 1)
    opening = asdict(Start(str(real_model), 2, points))
    opened, *timed = answers(name, opening, *({"point": asdict(point)} for point in points))
    assert "error" not in opened
    assert len(timed) == len(points)
    for answer in timed:
        seconds = answer["seconds"]
        assert isinstance(seconds, dict)
        assert set(seconds) == set(opened["settings"])  # type: ignore[call-overload]
        assert all(0 < value < 600 for value in seconds.values())
