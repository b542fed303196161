"""Products are those of this machine's scalar level, byte for byte: of every level of Arm as the wheel has it, under
emulation, and of what runs around a matrix unit."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from native.test_vec import HOST, NUMERICS, ROOT, TABLE, WARNINGS, tools
from portability.roots import PROCESSORS, output

from cpuinfer.machine import isa

ARM = {
    processor.level: processor for processor in PROCESSORS if processor.architecture == "aarch64"
}
FOREIGN = [entry["name"] for entry in TABLE if entry["architecture"] == "aarch64"]


def products(architecture: str, folder: Path) -> str:
    """The program of products.c."""
    compiler, _ = tools(architecture)
    program = folder / f"products_{architecture}"
    command = [compiler, "-std=gnu11", "-O2", *WARNINGS, f"-I{ROOT / 'native'}"]
    source = ROOT / "tests/portability/products.c"
    subprocess.run([*command, str(source), "-ldl", "-o", str(program)], check=True)
    return str(program)


def digests(printed: str) -> dict[str, str]:
    """Weight type -> the digests of its products."""
    found = dict(line.split(" ", 1) for line in printed.splitlines())
    assert len(found) == 16
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return products(HOST, tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="module")
def expected(program: str) -> dict[str, str]:
    return digests(output([program, str(isa.native_folder() / "libcpuinfer_scalar.so")]))


@pytest.mark.portability
@pytest.mark.parametrize("name", FOREIGN)
def test_arm_gives_the_products_of_this_machine(
    name: str, expected: dict[str, str], tmp_path: Path
) -> None:
    processor = ARM["neon" if name == "scalar" else name]  # no processor chooses scalar
    library = processor.root / f"opt/cpuinfer/cpuinfer/_native/libcpuinfer_{name}.so"
    printed = processor.emulate(products(processor.architecture, tmp_path), str(library))
    assert digests(printed) == expected


def scalar_library(folder: Path, *options: str) -> str:
    """The scalar level built here; `options` for the compiler come first.

    -Og, as matmul_tiles.c alone takes gcc 12 a minute with -O1.
    """
    compiler, _ = tools(HOST)
    by_name = {entry["name"]: entry for entry in TABLE if entry["architecture"] == HOST}
    command = [compiler, "-std=gnu11", "-fPIC", "-fopenmp", *NUMERICS, "-Og", *WARNINGS]
    command += [*by_name["scalar"]["flags"], *options]
    command += [f"-I{ROOT / 'native'}", f"-I{ROOT / 'simd/scalar'}", "-c"]
    sources = [*(ROOT / "native").glob("*.c"), *(ROOT / "native/types").glob("*.c")]
    sources = [source for source in sources if source.name not in ("probe.c", "peaks.c")]
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = zip(sources, objects, strict=True)
        steps = [[*command, str(source), "-o", str(made)] for source, made in jobs]
        list(pool.map(lambda step: subprocess.run(step, check=True), steps))
    library = folder / "libscalar.so"
    link = [compiler, "-shared", "-fopenmp", *map(str, objects), "-lm", "-o", str(library)]
    subprocess.run(link, check=True)
    return str(library)


@pytest.mark.slow
@pytest.mark.parametrize("panels", [1, 2])
def test_sweeps_of_a_matrix_unit_give_the_same(
    panels: int, program: str, expected: dict[str, str], tmp_path: Path
) -> None:
    """What runs around tiles.h, with the plain C of scalar/tiles.h as the unit, so that it runs here."""
    text = (ROOT / "simd/scalar/dot.h").read_text()
    changed = text.replace("#define DOT_NP 1", f"#define DOT_NP {panels}")
    assert f"#define DOT_NP {panels}" in changed
    (tmp_path / "dot.h").write_text(changed)
    library = scalar_library(tmp_path, "-DTILE_MR=12", f"-I{tmp_path}")
    assert digests(output([program, library])) == expected
