"""serving.py on a tiny load: arrivals, ways to batch, KV slots, the server's adapter, and the report."""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from pathlib import Path

import numpy as np
import prefix
import pytest
import serving
from serving_http import Client, Server, find_server, version
from serving_load import KINDS, SHAREGPT_OUTPUT, Item, Spec, items, lengths
from serving_ours import POLICIES, Ours
from serving_report import figures, medians, ratios, rows, table
from serving_run import Arrivals, Due, Dynamic, Policy, Static

FAKE = Path(__file__).parent / "fake_llama_server.py"
TEXT = tuple(range(3, 60))


def spec(kind: str, n: int = 12, rate: float = 1000.0, scale: float = 16.0) -> Spec:
    return Spec(kind, n, rate, 0, scale, 128, TEXT, streams=3)


@pytest.mark.parametrize("kind", KINDS)
def test_loads_are_the_same_every_time_and_fit(kind: str) -> None:
    load = items(spec(kind))
    assert load == items(spec(kind)) and len(load) == 12
    total = [0] * 12
    for i, item in enumerate(load):
        assert item.after is None or item.after < i
        before = total[item.after] if item.continues and item.after is not None else 0
        total[i] = before + len(item.prompt) + item.n_output
        assert item.prompt and item.n_output > 0 and total[i] <= 128


def test_kinds_differ_as_they_say() -> None:
    agents, bursts, streams, chats = (
        items(spec(kind)) for kind in ("agents", "bursts", "streams", "chats")
    )
    shared = agents[0].prompt[:60]
    assert all(item.prompt[:60] == shared for item in agents)
    assert len({item.arrival for item in bursts}) == 2
    assert [item.after for item in streams] == [None] * 3 + list(range(9))
    assert [item.continues for item in chats] == [False, True, True, True] * 3
    assert all(item.arrival == 0 for item in items(spec("sharegpt", rate=math.inf)))
    with pytest.raises(ValueError, match="known are sharegpt"):
        items(spec("other"))


def test_lengths_have_the_stated_mean() -> None:
    wide = Spec("sharegpt", 1, 1.0, 0, 1.0, 1 << 20, TEXT)
    drawn = lengths(np.random.default_rng(0), SHAREGPT_OUTPUT, 200_000, wide)
    assert max(drawn) == 1024 and min(drawn) >= 4
    assert np.median(drawn) == pytest.approx(SHAREGPT_OUTPUT * math.exp(-0.5), rel=0.02)


def test_what_follows_is_due_after_what_it_follows() -> None:
    arrivals = Arrivals([Item((1,), 2, 0.5), Item((2,), 1, 0.25, after=0, continues=True)])
    assert arrivals.next == 0.5 and arrivals.due(0.4) == []
    assert arrivals.due(9.0) == [Due(0, [1], 2, 0.5)], "late, but meant for 0.5"
    assert arrivals.next == math.inf
    arrivals.records[0].tokens += [7, 8]
    arrivals.end(0, 10.0)
    assert arrivals.next == 10.25 and not arrivals.done
    assert arrivals.due(10.25) == [Due(1, [1, 7, 8, 2], 1, 10.25)]
    arrivals.end(1, 11.0)
    assert arrivals.done


def waiting(*intended: float) -> deque[Due]:
    return deque(Due(i, [1], 1, at) for i, at in enumerate(intended))


def started(policy: Policy, queue: deque[Due], busy: bool, coming: float, now: float) -> int:
    return len(policy.start(queue, busy, coming, now))


def test_policies() -> None:
    assert started(Policy(2), waiting(0, 0, 0), True, 9.0, 1.0) == 3
    static, dynamic = Static(2), Dynamic(2, 0.5)
    for policy in (static, dynamic):
        assert started(policy, waiting(0, 0, 0), False, 9.0, 0.1) == 2
        assert started(policy, waiting(0, 0, 0), True, 9.0, 0.1) == 0, "it runs to its end"
        assert started(policy, waiting(0), False, 9.0, 0.1) == 0, "not full"
        assert started(policy, waiting(0), False, math.inf, 0.1) == 1, "nobody comes any more"
        assert started(policy, waiting(), False, math.inf, 9.0) == 0
    assert started(static, waiting(0), False, 9.0, 8.0) == 0
    assert started(dynamic, waiting(0), False, 9.0, 0.5) == 1
    assert dynamic.wake(waiting(1.0)) == 1.5 and static.wake(waiting(1.0)) == math.inf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["sharegpt", "agents", "chats", "streams"])
def test_every_policy_answers_alike(cache: None, tiny_model: Path, kind: str) -> None:
    load = items(spec(kind, n=8))
    lengths_of, shared = [], {}
    for policy in POLICIES:
        ours = Ours(tiny_model, policy, 3, 0.001, 128, True, threads=1)
        ours.run(load[:1])
        found = ours.run(load)
        lengths_of.append([(r["n_prompt"], r["n_output"]) for r in found["records"]])
        for record, item in zip(found["records"], load, strict=True):
            assert len(record["times"]) == record["n_output"] == item.n_output
            assert record["times"] == sorted(record["times"])
            assert record["intended"] < record["times"][0]
        slots = found["slots"]
        assert 0 <= slots["kv_waste"] <= slots["kv_waste_until_computed"] < 1
        assert slots["kv_waste_reserving_context"] > slots["kv_waste_reserving_own_length"] > 0
        shared[policy] = slots["mean_pages_shared"]
        assert not ours._engine.has_work and not ours._live
    assert all(found == lengths_of[0] for found in lengths_of)
    assert kind != "agents" or min(shared.values()) > 0


@pytest.fixture
def program(tmp_path: Path) -> Path:
    made = tmp_path / "llama-server"
    made.write_text(FAKE.read_text().replace("/usr/bin/env python3", sys.executable))
    made.chmod(0o755)
    return made


def test_the_adapter_of_the_server(program: Path) -> None:
    assert version(program) == "version: 7 (fake)"
    assert find_server(program.parent) == find_server(program) == program
    with pytest.raises(FileNotFoundError, match="is no program"):
        find_server(program.parent / "nothing")
    load = [Item((5, 6), 3, 0.0), Item((7,), 2, 0.0, after=0, continues=True), Item((8,), 1, 0.0)]
    with Server(program, Path("m.gguf"), 2, 64, 1, "f16", ["-fa", "on"]) as server:
        assert server.command[-2:] == ["-fa", "on"]
        assert server.command[server.command.index("-c") + 1] == "128"
        records = Client(server.port).run(load)["records"]
        assert [(r["n_prompt"], len(r["times"]), r["n_output"]) for r in records] == [
            (2, 3, 3),
            (6, 2, 2),
            (1, 1, 1),
        ]
        with pytest.raises(RuntimeError, match="answers 500: b'no such token'"):
            Client(server.port).run([Item((666,), 2, 0.0)])
        with pytest.raises(RuntimeError, match="1 tokens came, 2 wanted"):
            Client(server.port).run([Item((667,), 2, 0.0)])
    assert server._process.poll() is not None
    with (
        pytest.raises(RuntimeError, match="does not answer: no such model"),
        Server(program, Path("broken.gguf"), 2, 64, 1, "f16", []),
    ):
        pass


def record(intended: float, *times: float) -> dict[str, object]:
    return {"intended": intended, "times": times, "n_prompt": 3, "n_output": len(times)}


def test_figures() -> None:
    found = figures([record(1.0, 2.0, 3.0, 5.0), record(2.0, 3.0)])
    assert found["seconds"] == 4.0 and found["output_tokens_per_s"] == 1.0
    assert found["ttft_s"]["p50"] == 1.0 and found["latency_s"]["p50"] == 2.5
    assert found["itl_s"]["p50"] == 1.5 and found["tpot_s"]["p99"] == 1.5
    assert found["itl_s"]["p95"] == pytest.approx(1.95)
    with pytest.raises(ValueError, match="no token"):
        figures([record(1.0)])
    assert medians([{"a": 1, "b": {"c": 4}}, {"a": 3, "b": {"c": 2}}]) == {"a": 2, "b": {"c": 3}}
    assert medians([{"a": 1}, {}]) == {}


def test_ratios_take_the_better_setting() -> None:
    def result(engine: str, setting: str, last: float) -> dict[str, object]:
        run = {"records": [record(0.0, last / 2, last)], "slots": {}}
        return {"load": "l", "rate": 1.0, "engine": engine, "setting": setting, "runs": [run]}

    made = rows([result("continuous", "", 1.0), result("s", "slow", 4.0), result("s", "fast", 2.0)])
    (pair,) = ratios(made)
    assert (pair["beside"], pair["setting"]) == ("s", "fast")
    assert pair["throughput"]["ratio"] == pair["p95_ttft_shorter"]["ratio"] == 2.0
    assert "| l | 1 | s fast | 1.0 | 1.00 / 1.00 / 1.00 |" in table(made)


def test_serving_whole(
    cache: None,
    tiny_model: Path,
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    words = ["serving.py", str(tiny_model), "--rate", "1000", "--requests", "4", "--size", "2"]
    words += ["--scale", "32", "--context", "64", "--rounds", "1", "--threads", "1"]
    words += ["--engines", "continuous", "static", "--llama", str(program.parent)]
    words += ["--llama-settings", "fa=on", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    serving.main()
    report = json.loads(out.read_text())
    assert [row["engine"] for row in report["results"]] == ["continuous", "static", "llama-server"]
    assert len(report["ratios"]) == 2 and report["machine"]["logical_cpus"] > 0
    assert len({row["output_tokens"] for row in report["results"]}) == 1
    assert report["results"][0]["kv"]["kv_waste"] > 0
    assert capsys.readouterr().out.count("\n") == 5
    if "matplotlib" in sys.modules or _has_matplotlib():
        from serving_report import draw

        for row in report["results"]:
            row["rate"] = float(row["rate"])
        draw(tmp_path / "out.png", report["results"])
        assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


def _has_matplotlib() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def test_prefix_whole(
    cache: None, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    words = ["prefix.py", str(tiny_model), "--prefix", "100", "--tail", "9", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--rounds", "1", "--json", str(out)])
    prefix.main()
    report = json.loads(out.read_text())
    assert set(report["ttft_s"]) == {"cold", "in_process", "after_restart"}
    assert all(len(found["samples"]) == 1 for found in report["ttft_s"].values())
