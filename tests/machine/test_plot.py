"""The picture of the roofline."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from cpuinfer.machine.ceilings import PEAKS, Ceilings
from cpuinfer.machine.plot import check_plotting, draw
from cpuinfer.machine.roofline import Stats, Work, phase_stats

CEILINGS = Ceilings(
    "cpu",
    "avx2",
    2,
    ((1 << 15, 4e11), (1 << 20, 1e11), (1 << 28, 2e10)),
    {name: 1e11 * (i + 1) for i, name in enumerate(PEAKS)},
    (("L1", 1 << 16), ("L2", 1 << 21)),
)


def stats(operations: float) -> Stats:
    works = [
        Work("matmul Q4_0", 10, 0.5, 1e9, operations, 1 << 28, {"int4": 1.0}),
        Work("embed Q4_0", 10, 0.1, 1e6, 0.0, 1 << 28, {"f32": 1.0}),
    ]
    return Stats((phase_stats("decode", 10, 10, works, 0.7, 1.0, CEILINGS),), CEILINGS)


def test_a_png_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    draw(path, [("tg8", stats(4e9)), ("pp8", stats(1e11))])
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_ops_that_compute_nothing_leave_an_empty_roof(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "out.png", [("tg8", stats(0.0))])
    assert (tmp_path / "out.png").stat().st_size


def test_a_place_that_cannot_be_is_named_first(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="does not exist"):
        check_plotting(tmp_path / "nothing" / "out.png")
    with pytest.raises(ValueError, match=r"must end in \.png"):
        check_plotting(tmp_path / "out.jpg")


def test_without_matplotlib_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"cpuinfer\[plot\]"):
        check_plotting(tmp_path / "out.png")
