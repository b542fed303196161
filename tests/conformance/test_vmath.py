"""Elementary functions of every level that runs here: error against float64, special values, bytes between levels."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cpuinfer.machine import isa

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
NUMERICS = ["-std=gnu11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
LEVELS = [level.name for level in isa.levels() if level.runnable]
EXP_ERROR = 1.5 * 2.0**-24  # as vmath.h states them
SILU_ERROR = 3 * 2.0**-24
TANH_ERROR = 6 * 2.0**-24

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def compile_flags(name: str) -> list[str]:
    """Flags and folders of a level and its bases, from the table that the build reads."""
    table = tomllib.loads((ROOT / "simd" / "isa.toml").read_text())["level"]
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    levels = {x["name"]: x for x in table if x["architecture"] == machine}
    flags: list[str] = []
    folders: list[str] = []
    level = levels[name]
    while True:
        flags = level["flags"] + flags
        folders.append(f"-I{ROOT / 'simd' / level['name']}")
        if "base" not in level:
            return [*flags, *folders, f"-I{ROOT / 'native'}"]
        level = levels[level["base"]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Level -> a program that reads f32 and writes vf_exp, vf_silu and vf_tanh of them."""
    found = {}
    for name in LEVELS:
        found[name] = tmp_path_factory.mktemp("vmath") / name
        source = ROOT / "tests" / "native" / "vmath_values.c"
        command = [
            str(COMPILER),
            *NUMERICS,
            *compile_flags(name),
            str(source),
            "-o",
            str(found[name]),
            "-lm",
        ]
        subprocess.run(command, check=True)
    return found


def values(
    program: Path, x: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """vf_exp(x), vf_silu(x), vf_tanh(x)."""
    padded = np.zeros(-(-x.size // 16) * 16, np.float32)
    padded[: x.size] = x
    done = subprocess.run([program], input=padded.tobytes(), capture_output=True, check=True)
    all_three = np.frombuffer(done.stdout, np.float32).reshape(-1, 3, 16)
    exp, silu, tanh = (all_three[:, i].ravel()[: x.size] for i in range(3))
    return exp, silu, tanh


@functools.cache
def inputs(stride: int) -> NDArray[np.float32]:
    """Every stride-th float of |x| <= 87, both signs."""
    last = int(np.float32(87).view(np.uint32))
    bits = np.arange(0, last + 1, stride, dtype=np.uint32)
    return np.concatenate([bits, bits | np.uint32(0x80000000)]).view(np.float32)


@pytest.mark.parametrize("level", LEVELS)
def test_error_over_the_whole_range(programs: dict[str, Path], level: str) -> None:
    x = inputs(1009 if level == LEVELS[-1] else 40_009)
    exp, silu, tanh = values(programs[level], x)
    wide = x.astype(np.float64)
    true_exp = np.exp(wide)
    assert (np.abs(exp - true_exp) <= EXP_ERROR * true_exp).all()
    true_silu = wide / (1 + np.exp(-wide))
    normal = np.abs(true_silu) >= np.finfo(np.float32).tiny  # below, the step's mode flushes
    assert (np.abs(silu - true_silu)[normal] <= SILU_ERROR * np.abs(true_silu[normal])).all()
    assert (np.abs(silu[~normal]) <= np.finfo(np.float32).tiny).all()
    large = np.abs(wide) >= np.finfo(np.float32).tiny
    true_tanh = np.tanh(wide[large])
    assert (np.abs(tanh[large] - true_tanh) <= TANH_ERROR * np.abs(true_tanh)).all()
    assert (np.abs(tanh) <= 1).all() and (np.abs(tanh[~large]) <= np.finfo(np.float32).tiny).all()


@pytest.mark.parametrize("level", LEVELS)
def test_special_values(programs: dict[str, Path], level: str) -> None:
    x = np.array([0, -0.0, np.nan, np.inf, -np.inf, 1e9, -1e9, 88, -87], np.float32)
    exp, silu, tanh = values(programs[level], x)
    assert exp[0] == exp[1] == 1
    assert np.isnan(exp[2]) and np.isnan(silu[2])
    assert exp[3] == exp[5] == exp[7] and np.isfinite(exp[3])
    assert exp[4] == exp[6] == exp[8] and exp[4] >= np.finfo(np.float32).tiny
    assert tanh[0] == tanh[1] == 0 and np.isnan(tanh[2])
    assert tanh[3] == tanh[5] == tanh[7] == 1 and tanh[4] == tanh[6] == tanh[8] == -1
    assert silu[0] == 0 and silu[3] == np.inf and silu[5] == np.float32(1e9)


def test_levels_agree(programs: dict[str, Path]) -> None:
    x = inputs(40_009)
    expected = values(programs["scalar"], x)
    for level in LEVELS:
        for got, wanted in zip(values(programs[level], x), expected, strict=True):
            assert got.tobytes() == wanted.tobytes()
