"""Choosing and loading an ISA level."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpuinfer.machine import contest, isa


def has_native() -> bool:
    try:
        isa.native_folder()
    except ValueError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_native(), reason="no native library is installed")

RUNNABLE = [level.name for level in isa.levels() if level.runnable] if has_native() else []


def test_levels_need_what_their_bases_need() -> None:
    by_name = {level.name: level for level in isa.levels()}
    assert isa.levels()[0].name == "scalar"
    for level in isa.levels():
        assert set(by_name["scalar"].features) <= set(level.features)
        assert level.runnable == (not level.why_not)
        assert set(level.missing) <= set(level.features) - isa.processor_features()


def test_a_feature_is_usable_or_blocked() -> None:
    assert isa.processor_features()
    assert not isa.processor_features() & isa.blocked_features()


def test_the_best_level_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    best = [level.name for level in isa.levels() if level.runnable and not level.measured][-1]
    monkeypatch.setattr(contest, "compare", lambda one, other: (1.0, 1.0))
    monkeypatch.delenv(isa.ENVIRONMENT, raising=False)
    assert isa.choose().name == best
    monkeypatch.setenv(isa.ENVIRONMENT, "")
    assert isa.choose().name == best


def test_environment_and_argument_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.ENVIRONMENT, "scalar")
    assert isa.choose().name == "scalar"
    assert isa.choose(RUNNABLE[-1]).name == RUNNABLE[-1]


def test_an_unknown_level_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.ENVIRONMENT, "AVX9")
    with pytest.raises(ValueError, match=r"CPUINFER_ISA: unknown level 'AVX9'.*scalar"):
        isa.choose()


def test_a_level_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = (
        isa.Level("scalar", ("x",), (), Path("there")),
        isa.Level("fast", ("x", "warp"), ("warp",), Path("there")),
        isa.Level("absent", ("x",), (), None),
    )
    monkeypatch.setattr(isa, "levels", lambda: levels)
    with pytest.raises(ValueError, match=r"isa: level 'fast' cannot run.*lacks warp.*run: scalar"):
        isa.choose("fast")
    with pytest.raises(ValueError, match=r"'absent' cannot run: its library was not built"):
        isa.choose("absent")
    monkeypatch.setattr(isa, "levels", lambda: levels[1:])
    with pytest.raises(ValueError, match=r"no ISA level runs.*fast: .*warp.*absent: "):
        isa.choose()


def test_a_level_that_the_system_refuses_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    last = RUNNABLE[-1]
    feature = next(level for level in isa.levels() if level.name == last).features[-1]
    reasons = {feature: f"the operating system refuses {feature}: Operation not permitted"}
    monkeypatch.setattr(isa, "_refusal", lambda name: reasons.get(name, ""))
    levels = isa.levels.__wrapped__()
    monkeypatch.setattr(isa, "levels", lambda: levels)
    refused = [level for level in levels if feature in level.features and not level.missing]
    assert refused and not any(level.runnable for level in refused)
    with pytest.raises(ValueError, match=f"{last!r} cannot run: the operating system refuses"):
        isa.choose(last)


def test_nobody_need_be_asked_for_most_features() -> None:
    assert isa._refusal("avx2") == isa._refusal("asimd") == ""


def test_a_level_to_be_measured_is_not_where_a_later_one_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels = tuple(
        isa.Level(name, ("x",), (), Path("there"), measured=name == "maybe")
        for name in ("scalar", "maybe", "sure")
    )
    monkeypatch.setattr(isa, "levels", lambda: levels)
    monkeypatch.setattr(isa, "problem", lambda level: "")
    monkeypatch.setattr(contest, "compare", lambda one, other: pytest.fail("measured for nothing"))
    monkeypatch.delenv(isa.ENVIRONMENT, raising=False)
    assert isa.choose().name == "sure"


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_library_knows_its_level_and_headers(name: str) -> None:
    library = isa.load(name)
    assert library.ffi.string(library.lib.ci_level()).decode() == name
    headers = library.build_map()
    assert headers["vmath.h"] == "scalar"
    assert headers["vec.h"] in (name, "avx2", "neon", "avx512", "scalar")
    assert headers["tiles.h"] == ("amx" if name == "amx" else "scalar")
    assert isa.load(name) is library


def test_a_process_that_used_threads_ends_well() -> None:
    program = (
        "from cpuinfer.machine import isa; import numpy as np; w = np.ones(4096, np.float32);"
        "print(isa.load().read(w.ctypes.data, 4096, 2, 1, 1))"
    )
    for _ in range(5):
        done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "4096\n"), done.stderr


@pytest.mark.parametrize(
    ("features", "ahead"),
    [
        ("x86_64 avx2 avxvnni", (1024, 1024)),
        ("x86_64 avx2 avx512_bf16", (0, 1024)),
        ("x86_64 avx2 avx512_bf16 avxvnni amx_tile", (2048, 2048)),
        ("x86_64 avx2 avx512_bf16 avxvnni avx512_vp2intersect", (2048, 3072)),
        ("aarch64 asimd", (1024, 1024)),
    ],
)
def test_weights_are_fetched_as_far_ahead_as_the_processor_likes(
    features: str, ahead: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isa, "processor_features", lambda: frozenset(features.split()))
    assert isa.fetch_ahead.__wrapped__() == ahead
