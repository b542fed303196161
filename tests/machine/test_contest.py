"""The contest of two levels: it multiplies, it is kept, and it decides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from machine.test_isa import RUNNABLE, has_native

from cpuinfer.machine import contest, isa

pytestmark = pytest.mark.skipif(not has_native(), reason="no native library is installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    return tmp_path / "levels.json"


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_product_is_a_product(name: str) -> None:
    product = contest._Product(isa.load(name))
    product.out[:] = 0
    product.run()
    assert np.all(product.out == contest._WIDTH)


def test_a_measurement_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalar, other = isa.load("scalar"), isa.load(RUNNABLE[-1])
    first = contest.compare(scalar, other)
    assert min(first) > 0
    monkeypatch.setattr(contest, "measure", lambda one, other: (1.0, 2.0))
    assert contest.compare(scalar, other) == first
    assert contest.compare(other, other) == (1.0, 2.0)
    assert len(json.loads(cache.read_text())) == 2
    cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), [0.0, "fast"])))
    assert contest.compare(scalar, other) == (1.0, 2.0)


@pytest.mark.parametrize("faster", ["scalar", "fancy"])
def test_the_faster_level_is_taken(
    faster: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = isa.choose("scalar").library
    rows = (
        isa.Level("scalar", (), (), library),
        isa.Level("fancy", (), (), library, measured=True),
        isa.Level("warped", (), ("warp",), library, measured=True),
    )
    seconds = (1e-6, 2e-6) if faster == "scalar" else (2e-6, 1e-6)
    monkeypatch.setattr(isa, "levels", lambda: rows)
    monkeypatch.setattr(contest, "measure", lambda one, other: seconds)
    monkeypatch.delenv(isa.ENVIRONMENT, raising=False)
    assert isa.choose().name == faster
    assert f"fancy {seconds[1] * 1e6:.0f} us" in isa.best().reason
    monkeypatch.setattr(contest, "compare", lambda one, other: pytest.fail("measured"))
    monkeypatch.setenv(isa.ENVIRONMENT, "fancy")
    assert isa.choose().name == "fancy"
    assert isa.choose("scalar").name == "scalar"
