"""`doctor`: what it says of this machine, and its advice for machines that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from tiny_gguf import LAYERS

from cpuinfer.cli import limit
from cpuinfer.cli.doctor_advice import advice
from cpuinfer.cli.doctor_text import lines, ranges
from cpuinfer.machine import isa
from cpuinfer.machine.known_answers import ANSWERS


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings come from the cache of these tests where it has them."""
    monkeypatch.setattr(
        limit, "machine", lambda isa, threads, fresh: limit_machine(isa, threads, fresh=False)
    )


limit_machine = limit.machine


def test_this_machine(run: Run) -> None:
    found = json.loads(run("doctor", "-t", 1, "--json").stdout)
    assert (found["threads"], found["threads_reason"]) == (1, "--threads")
    assert found["isa"] in {level["name"] for level in found["levels"] if level["runs"]}
    for level in found["levels"]:
        assert bool(level["why_not"]) != level["runs"]
        if level["runs"]:
            assert level["self_test"]["cases"] == len(ANSWERS)
            assert level["self_test"]["failed"] == []
            assert level["self_test"]["seconds"] > 0
    assert {"physical cores", "processor affinity"} <= {
        row["reason"] for row in found["thread_limits"]
    }
    assert found["memory_bytes"] >= found["memory_available_bytes"]
    text = run("doctor", "-t", 1).stdout
    for word in (
        found["isa"],
        "kernels tested in",
        "DRAM read",
        "int8 peak",
        "vec.h",
        "huge pages",
    ):
        assert word in text


def test_memory_of_a_model(run: Run, tiny_model: Path) -> None:
    whole = json.loads(run("doctor", tiny_model, "-t", 1, "--json").stdout)["model"]
    assert whole["kv_bytes_per_token"] == 2 * LAYERS * 2 * 16 * 2
    assert whole["kv_bytes"] == whole["kv_bytes_per_token"] * whole["max_positions"]
    assert whole["kv_reserved_bytes"] >= whole["kv_bytes"]
    assert whole["activation_bytes"] > 512 * 64 * 4
    parts = ("packed_bytes", "kv_bytes", "activation_bytes")
    assert whole["total_bytes"] == sum(whole[part] for part in parts)
    words = ("doctor", tiny_model, "-t", 1, "--json", "--kv-type", "f32", "--max-context", 32)
    small = json.loads(run(*words).stdout)["model"]
    assert (small["max_positions"], small["kv_type"]) == (32, "f32")
    assert small["kv_bytes"] == 32 * 2 * whole["kv_bytes_per_token"]
    assert "for one sequence" in run("doctor", tiny_model, "-t", 1).stdout


def test_a_level_that_cannot_be_is_an_error(run: Run) -> None:
    result = run("doctor", "--isa", "mmx")
    assert result.exit_code == 1
    assert "unknown level 'mmx'" in result.stderr


def test_without_a_native_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise ValueError("no native library is installed beside the package")

    monkeypatch.setattr(isa, "levels", none)
    result = run("doctor", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["isa"], found["levels"], found["ceilings"]) == (None, [], None)
    assert "no native library can be used" in found["advice"][0]
    assert "none: no native library" in "\n".join(lines(found))


GOOD: dict[str, Any] = {
    "isa": "avx2",
    "isa_reason": "the highest that runs here",
    "native_error": None,
    "blocked_features": [],
    "levels": [
        {"name": "scalar", "runs": True, "why_not": None, "self_test": {"failed": []}},
        {"name": "avx2", "runs": True, "why_not": None, "self_test": {"failed": []}},
        {
            "name": "avx512_vnni",
            "runs": False,
            "why_not": "this processor lacks x",
            "self_test": None,
        },
    ],
    "logical_cpus": 8,
    "performance_cores": None,
    "threads": 4,
    "threads_reason": "physical cores",
    "thread_limits": [
        {"threads": 4, "reason": "physical cores"},
        {"threads": 8, "reason": "processor affinity"},
    ],
    "numa": [{"node": 0, "cpus": list(range(8)), "memory_bytes": 16 << 30}],
    "memory_bytes": 16 << 30,
    "memory_available_bytes": 8 << 30,
    "memory_limit_bytes": None,
    "huge_pages": "madvise",
    "ceilings": {"busy": False},
}
LIMITS = GOOD["thread_limits"]
MODEL = {"total_bytes": 1 << 30, "expanded": {}}


def level(index: int, **changes: Any) -> list[dict[str, Any]]:
    rows = [dict(row) for row in GOOD["levels"]]
    rows[index] |= changes
    return rows


def test_where_all_is_well_there_is_no_advice() -> None:
    assert advice(GOOD) == []
    assert advice({**GOOD, "model": MODEL}) == []


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"blocked_features": ["avx512f"]}, "has avx512f, but the operating system"),
        (
            {
                "levels": level(
                    1, runs=False, why_not="1 of 81", self_test={"failed": ["rope", "add"]}
                ),
                "isa": "scalar",
            },
            "avx2 gives wrong answers (rope, add)",
        ),
        ({"levels": level(2, why_not="its library was not built")}, "but was not built"),
        (
            {"levels": level(2, why_not="the operating system refuses amx_tile: no")},
            "avx512_vnni cannot be used",
        ),
        (
            {"isa": "scalar", "isa_reason": "CPUINFER_ISA"},
            "CPUINFER_ISA chooses scalar; without it",
        ),
        ({"levels": level(1, runs=False, why_not="x"), "isa": "scalar"}, "only the scalar level"),
        ({"isa": None, "native_error": "none built"}, "no native library can be used (none built)"),
        (
            {"thread_limits": [*LIMITS, {"threads": 1, "reason": "cgroup quota of 1 processors"}]},
            "cgroup quota of 1 processors: 1 of 4 cores",
        ),
        (
            {
                "thread_limits": [
                    *LIMITS,
                    {"threads": 6, "reason": "cgroup quota of 5.5 processors"},
                ]
            },
            "a quota of 5.5 processors is no whole number",
        ),
        (
            {"thread_limits": [LIMITS[0], {"threads": 4, "reason": "processor affinity"}]},
            "may run on 4 of 8 processors",
        ),
        ({"threads": 16}, "16 threads share 8 processors"),
        (
            {"performance_cores": {"cpus": [0, 1], "kind": ""}},
            "more threads than performance cores",
        ),
        ({"numa": GOOD["numa"] * 2}, "2 NUMA nodes"),
        ({"huge_pages": "never"}, "huge pages are set to never"),
        ({"ceilings": {"busy": True}}, "run doctor again on a quiet machine"),
        (
            {"model": {**MODEL, "total_bytes": 17 << 30}},
            "the model needs 18.3 GB and there are 17.2",
        ),
        ({"model": MODEL, "memory_limit_bytes": 1 << 29}, "and there are 536.9 MB"),
        ({"model": {**MODEL, "total_bytes": 9 << 30}}, "are free now"),
        ({"model": {**MODEL, "expanded": {"w": "IQ1_S"}}}, "expanded to F32"),
    ],
)
def test_advice(changes: dict[str, Any], wanted: str) -> None:
    (found,) = advice({**GOOD, **changes})
    assert wanted in found


def test_lists_of_processors() -> None:
    assert ranges([]) == ""
    assert ranges([0, 1, 2, 5, 8, 9]) == "0-2,5,8-9"


def test_long_values_are_wrapped(run: Run) -> None:
    found = json.loads(run("doctor", "-t", 1, "--json").stdout)
    found["advice"] = ["a word and " * 40]
    found["performance_cores"] = {"cpus": [4, 5], "kind": "of the higher capacity"}
    found["blocked_features"] = ["avx512f"]
    found["memory_limit_bytes"] = 1 << 30
    text = list(lines(found))
    assert max(map(len, text)) <= 110
    assert "              performance cores (of the higher capacity): 4-5" in text
    assert "              not switched on by the operating system: avx512f" in text
    assert any("cgroup limit 1.1 GB" in line for line in text)
