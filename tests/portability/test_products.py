"""Every level of Arm gives the products of the scalar level of this machine, byte for byte, under emulation."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from native.test_vec import HOST, NUMERICS, ROOT, TABLE, WARNINGS, levels, tools

pytestmark = pytest.mark.slow

# The oldest processor that has what a level asks for, so that an instruction too many is found.
PROCESSORS = {
    "scalar": "cortex-a53",
    "neon": "cortex-a53",
    "neon_dotprod": "neoverse-n1",
    "neon_i8mm": "max,sve=off",
}
FOREIGN = [entry["name"] for entry in TABLE if entry["architecture"] == "aarch64"]


def build(architecture: str, name: str, folder: Path, *options: str) -> Path:
    """products.c with the whole library of a level, as one static program. `options` for the compiler come first."""
    compiler, _ = tools(architecture)
    by_name = {entry["name"]: entry for entry in TABLE if entry["architecture"] == architecture}
    chain = levels.base_chain(by_name, name)
    flags = [flag for entry in reversed(chain) for flag in entry["flags"]]
    includes = [f"-I{ROOT / 'simd' / entry['name']}" for entry in chain]
    command = [compiler, "-std=gnu11", "-fopenmp", *NUMERICS, "-O2", *WARNINGS, *flags]
    command += [*options, f"-I{ROOT / 'native'}", *includes]
    sources = [*(ROOT / "native").glob("*.c"), *(ROOT / "native/types").glob("*.c")]
    sources = [source for source in sources if source.name != "probe.c"]
    sources.append(ROOT / "tests/portability/products.c")
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = zip(sources, objects, strict=True)
        steps = [[*command, "-c", str(source), "-o", str(made)] for source, made in jobs]
        list(pool.map(lambda step: subprocess.run(step, check=True), steps))
    program = folder / "products"
    link = [compiler, "-fopenmp", "-static", *map(str, objects), "-lm", "-o", str(program)]
    subprocess.run(link, check=True)
    return program


def digests(command: list[str]) -> dict[str, str]:
    """Weight type -> the digests of its products."""
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in output.splitlines())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return digests([str(build(HOST, "scalar", tmp_path_factory.mktemp("scalar")))])


@pytest.mark.parametrize("name", FOREIGN)
def test_arm_gives_the_products_of_this_machine(
    name: str, expected: dict[str, str], tmp_path: Path
) -> None:
    _, runner = tools("aarch64")
    program = build("aarch64", name, tmp_path)
    got = digests(
        [*runner[:1], "-cpu", PROCESSORS[name], str(program)] if runner else [str(program)]
    )
    assert len(expected) == 16
    assert got == expected


@pytest.mark.parametrize("panels", [1, 2])
def test_sweeps_of_a_matrix_unit_give_the_same(
    panels: int, expected: dict[str, str], tmp_path: Path
) -> None:
    """What runs around tiles.h, with the plain C of scalar/tiles.h as the unit, so that it runs here."""
    text = (ROOT / "simd/scalar/dot.h").read_text()
    changed = text.replace("#define DOT_NP 1", f"#define DOT_NP {panels}")
    assert f"#define DOT_NP {panels}" in changed
    (tmp_path / "dot.h").write_text(changed)
    options = ("-DTILE_MR=12", f"-I{tmp_path}")
    assert digests([str(build(HOST, "scalar", tmp_path, *options))]) == expected
