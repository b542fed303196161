"""kernels.py: its table, what it times, and that it runs, alone and beside other libraries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import kernels
import pytest
from kernel_cases import SHAPES, Product, copies
from kernels import NATIVE, Step, parse, products

from cpuinfer.graph.dtypes import Activation, WeightType
from cpuinfer.machine.ceilings import Ceilings


def product(kind: WeightType, kernel: str = "matmul", m: int = 5) -> Product:
    return Product(kernel, kind.name, 33, 256, m, 2, 3, kernels.LEVELS[-1])


@pytest.mark.parametrize("kernel", kernels.KERNELS)
@pytest.mark.parametrize("kind", NATIVE, ids=lambda kind: kind.name)
def test_what_is_timed_gives_the_scalar_kernels_bits(kind: WeightType, kernel: str) -> None:
    step = Step(product(kind, kernel))
    step.run()
    assert step.out.tobytes() == step.call.run("scalar").tobytes()


def test_copies_exceed_the_caches_or_make_enough_work() -> None:
    assert copies(1, 1 << 20, 1e6, mib=64) == 64
    assert copies(1, 3 << 20, 1e6, mib=64) == 22
    assert copies(32, 1 << 40, 1e6, mib=64) == 1
    assert copies(128, 1 << 20, 1e8, mib=64) == 20
    assert copies(512, 1 << 20, 1e12, mib=64) == 1


def test_every_case_of_the_command_line() -> None:
    words = ["--type", "q4_0", "f32", "--tokens", "1", "512", "--threads", "1", "2"]
    found = [case for case, _ in products(parse([*words, "--shapes", "1b", "smollm2"]))]
    assert len(found) == len(set(found)) == 2 * 2 * 2 * sum(map(len, SHAPES.values()))
    assert {(case.n, case.k) for case in found} == {*SHAPES["1b"], *SHAPES["smollm2"]}
    (only, nbytes), *others = products(
        parse(["--type", "q4_0", "--shape", "32x64", "--tokens", "8", "--threads", "1"])
    )
    assert not others
    assert (only.n, only.k, only.m, nbytes) == (32, 64, 8, 32 * 64 // 32 * 18)


def report(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> list[dict[str, object]]:
    small = ["--shape", "32x64", "--tokens", "1", "40", "--threads", "1", "--rounds", "2"]
    small += ["--mib", "1", "--no-ceilings", "--json", str(out)]
    monkeypatch.setattr("kernel_cases.LEAST_OPERATIONS", 1e6)
    monkeypatch.setattr(sys, "argv", ["kernels.py", *small, *words])
    kernels.main()
    found: list[dict[str, object]] = json.loads(out.read_text())["rows"]
    return found


def test_a_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = report(monkeypatch, tmp_path / "out", "--type", "q4_0", "f32")
    assert [(row["type"], row["m"]) for row in rows] == [
        *(("Q4_0", 1), ("Q4_0", 40), ("F32", 1), ("F32", 40))
    ]
    for row in rows:
        samples, seconds = row["samples_s"], row["seconds"]
        assert isinstance(samples, list) and isinstance(seconds, dict)
        assert len(samples) == 2
        operations = row["operations_per_s"]
        assert operations == pytest.approx(2 * 32 * 64 * row["m"] / seconds["median"])


@pytest.mark.peer
@pytest.mark.parametrize(
    ("peer", "module", "settings"),
    [
        ("torch", "torch", ["torch bf16", "torch f32"]),
        ("onnxruntime", "onnx", ["onnxruntime int4"]),
    ],
)
def test_other_libraries_run_beside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peer: str, module: str, settings: list[str]
) -> None:
    pytest.importorskip(module)
    words = ("--type", "q4_0", "q8_0", "--peer", peer)
    rows = report(monkeypatch, tmp_path / "out", *words)
    ours = f"cpuinfer {kernels.LEVELS[-1]}"
    first = sorted([ours, *settings])
    assert sorted(str(row["engine"]) for row in rows) == sorted([*first, *first, ours, ours])


def test_shares_of_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"f32": 1e15, "bf16": 1e15, "int4": 1e15, "int8": 1e15}
    slow = Ceilings("any", kernels.LEVELS[-1], 1, ((1 << 20, 1.0),), peaks, ())
    monkeypatch.setattr(kernels, "ceilings", lambda *_: slow)
    monkeypatch.setattr("kernel_cases.LEAST_OPERATIONS", 1e6)
    words = ["--type", "q4_0", "--shape", "32x64", "--tokens", "1", "--threads", "1"]
    (row,) = kernels.rows(parse([*words, "--rounds", "2", "--mib", "1"]))
    moved = 32 * 64 // 32 * 18 + Activation.Q8.row_bytes(64) + 4 * 32
    assert row["share"] == pytest.approx(moved / row["seconds"]["median"])
