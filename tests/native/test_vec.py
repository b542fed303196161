"""Every level's vf16 gives the bits of simd/scalar/vec.h; that one's conversions give NumPy's."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
NUMERICS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]

_spec = importlib.util.spec_from_file_location("levels", ROOT / "native/levels.py")
assert _spec is not None and _spec.loader is not None
levels = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(levels)

TABLE = tomllib.loads((ROOT / "simd/isa.toml").read_text())["level"]
IDS = [(entry["architecture"], entry["name"]) for entry in TABLE]
HOST = {"amd64": "x86_64", "arm64": "aarch64"}.get(
    platform.machine().lower(), platform.machine().lower()
)

LEAST_NORMAL = 0x00800000
"""Bits of the least positive normal f32."""


@cache
def tools(architecture: str) -> tuple[str, list[str]]:
    """The compiler for an architecture, and what runs its programs here; skips where there is none."""
    if architecture == HOST:
        compiler, runner = shutil.which("cc") or shutil.which("gcc"), []
    else:
        compiler = shutil.which(f"{architecture}-linux-gnu-gcc")
        qemu = shutil.which(f"qemu-{architecture}-static") or shutil.which(f"qemu-{architecture}")
        if qemu is None:
            pytest.skip(f"qemu-user for {architecture} is not installed")
        runner = [qemu, "-cpu", "max"]
    if compiler is None:
        pytest.skip(f"no C compiler for {architecture}")
    return compiler, runner


def runs_here(entry: dict[str, Any], by_name: dict[str, dict[str, Any]]) -> bool:
    if entry["architecture"] != HOST:
        return True  # under emulation
    from cpuinfer.machine.isa import processor_features

    chain = levels.base_chain(by_name, entry["name"])
    return all(feature in processor_features() for one in chain for feature in one["features"])


@cache
def dump(architecture: str, name: str, folder: Path) -> list[tuple[str, bytes]]:
    """(function, its results) of vec_dump.c built as a level: first in the default mode, then in a step's."""
    compiler, runner = tools(architecture)
    by_name = {entry["name"]: entry for entry in TABLE if entry["architecture"] == architecture}
    chain = levels.base_chain(by_name, name)
    flags = [flag for entry in reversed(chain) for flag in entry["flags"]]
    includes = [f"-I{ROOT / 'simd' / entry['name']}" for entry in chain]
    program = folder / f"vec_dump_{architecture}_{name}"
    source = str(ROOT / "tests/native/vec_dump.c")
    static = ["-static"] if runner else []
    command = [compiler, "-std=gnu11", *static, *NUMERICS, *WARNINGS, *flags, *includes, source]
    subprocess.run([*command, "-lm", "-o", str(program)], check=True)
    if not runs_here(by_name[name], by_name):
        pytest.skip(f"it compiles; this processor does not run {name}")
    output = subprocess.run([*runner, str(program)], check=True, capture_output=True).stdout
    blocks = []
    while output:
        head, _, rest = output.partition(b"\n")
        label, n = head.decode().rsplit(" ", 1)
        blocks.append((label, rest[: int(n)]))
        output = rest[int(n) :]
    return blocks


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vec")


def settle(label: str, block: bytes, in_step: bool, other_architecture: bool) -> bytes:
    """The block with what vec.h leaves unspecified in a step's mode made equal."""
    takes_denormals = label.startswith(("vf_max", "vf_min", "vf_set1(vf_hmax"))
    if not in_step or not (takes_denormals or other_architecture) or len(block) % 4:
        return block
    bits = np.frombuffer(block, np.uint32).copy()
    magnitude = bits & 0x7FFFFFFF
    if takes_denormals:
        bits[magnitude < LEAST_NORMAL] &= 0x80000000
    elif label.startswith(("vf_fma", "vf_mul", "vf_div", "vf_scale2")):
        bits[magnitude == LEAST_NORMAL] &= 0x80000000
    return bits.tobytes()


@pytest.mark.parametrize(("architecture", "name"), IDS, ids=["-".join(pair) for pair in IDS])
def test_level_gives_the_bits_of_scalar(architecture: str, name: str, folder: Path) -> None:
    want = dump(HOST, "scalar", folder)
    got = dump(architecture, name, folder)
    assert [label for label, _ in got] == [label for label, _ in want]
    foreign = architecture != HOST
    differing = []
    for i, ((label, expected), (_, actual)) in enumerate(zip(want, got, strict=True)):
        in_step = i >= len(want) // 2
        if settle(label, expected, in_step, foreign) != settle(label, actual, in_step, foreign):
            differing.append(f"{label}{' in a step' if in_step else ''}")
    assert not differing


def test_scalar_half_precision_is_numpys(folder: Path) -> None:
    blocks = dump(HOST, "scalar", folder)
    default_mode = dict(blocks[: len(blocks) // 2])
    every_half = np.arange(65536, dtype=np.uint16).view(np.float16)
    numbers = ~np.isnan(every_half)
    widened = np.frombuffer(default_mode["f16_to_f32"], np.float32)
    assert (widened[numbers] == every_half[numbers].astype(np.float32)).all()
    assert np.isnan(widened[~numbers]).all()
    inputs = np.frombuffer(default_mode["inputs"], np.float32)
    narrowed = np.frombuffer(default_mode["f32_to_f16"], np.float16)
    numbers = ~np.isnan(inputs)
    with np.errstate(over="ignore"):
        expected = inputs[numbers].astype(np.float16)
    assert (narrowed[numbers].view(np.uint16) == expected.view(np.uint16)).all()
    assert np.isnan(narrowed[~numbers]).all()


def test_scalar_bf16_rounds_to_nearest_even(folder: Path) -> None:
    blocks = dump(HOST, "scalar", folder)
    default_mode = dict(blocks[: len(blocks) // 2])
    inputs = np.frombuffer(default_mode["inputs"], np.float32)
    got = np.frombuffer(default_mode["f32_to_bf16"], np.uint16)
    magnitude = inputs.view(np.uint32) & 0x7FFFFFFF
    assert (got[magnitude < LEAST_NORMAL] & 0x7FFF == 0).all()
    normal = (magnitude >= LEAST_NORMAL) & (magnitude < 0x7F000000)
    inputs, got = inputs[normal], got[normal]
    below = inputs.view(np.uint32) >> 16
    # The two neighbours as numbers: the nearer one, and of equally near ones the even.
    low = (below << 16).view(np.float32).astype(np.float64)
    high = ((below + 1) << 16).view(np.float32).astype(np.float64)
    exact = inputs.astype(np.float64)
    up = np.abs(high - exact) < np.abs(exact - low)
    tie = np.abs(high - exact) == np.abs(exact - low)
    assert (got == below + (up | (tie & (below % 2 == 1)))).all()
