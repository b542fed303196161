"""The self-test: its answers are the scalar level's, and a level with a broken kernel is caught and not used."""

from __future__ import annotations

import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny

from cpuinfer.devices.base import Limits
from cpuinfer.devices.native import NativeDevice
from cpuinfer.graph.dtypes import KVType, WeightType
from cpuinfer.machine import isa, selftest
from cpuinfer.machine.known_answers import ANSWERS
from cpuinfer.models import llama

LEVELS = [level for level in isa.levels() if level.runnable]
TOP = [level for level in LEVELS if not level.measured][-1]

# Bytes that the compiler must keep as they are, in some library's constants: a coefficient of exp, and tables of IQ4_NL.
EXP = (struct.pack("<f", 4.1665795894e-2),)
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_TABLES = (bytes(v & 255 for v in IQ4), bytes(v + 128 for v in IQ4))

needs_two_levels = pytest.mark.skipif(len(LEVELS) < 2, reason="this processor runs one level only")


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_level_gives_the_known_answers(level: isa.Level) -> None:
    found = dict(selftest.answers(isa.untested(level)))
    assert found == ANSWERS
    assert len(set(ANSWERS.values())) == len(ANSWERS)
    assert 0 not in ANSWERS.values()


def test_the_file_of_answers_is_what_its_command_writes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    selftest.main()
    from cpuinfer.machine import known_answers

    assert capsys.readouterr().out == Path(known_answers.__file__).read_text()


def test_every_type_and_kind_of_kernel_has_a_case() -> None:
    library = isa.untested(LEVELS[0])
    for name in (type_.name for type_ in tiny.NATIVE_TYPES):
        assert {f"embed.{name}", f"matmul.{name} few", f"matmul.{name} many"} <= ANSWERS.keys()
    for kv in ("F32", "F16", "BF16", "I8"):
        assert {f"kv_write.{kv}", f"attention.{kv}", f"matmul_qkv_rope.{kv}"} <= ANSWERS.keys()
    kinds = {case.split(".")[0].split(" ")[0] for case in ANSWERS}
    ops = library.ffi.typeof("enum ci_op_kind").elements.values()
    assert {op.removeprefix("CI_OP_").lower() for op in ops} | {"sample", "score"} == kinds
    assert len(KVType) == 4


def test_a_wrong_an_unknown_and_a_missing_answer_are_failures() -> None:
    library = isa.untested(LEVELS[0])
    known = {**ANSWERS, "rope": ANSWERS["rope"] ^ 1, "a case of old": 5}
    del known["add"]
    found = selftest.run(library, known)
    assert found.failed == ("add", "rope", "a case of old")
    assert found.problem == (
        f"3 of {len(ANSWERS)} kernels gave wrong answers in the self-test (add, rope, a case of old)"
    )
    assert selftest.run(library, ANSWERS).problem == ""
    assert selftest.run(library, {}).problem.endswith(
        "(quantize.Q8A, quantize.BF16, rmsnorm.F32, ...)"
    )


Install = Callable[[Callable[[bytes], bytes]], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs scalar as it is, and the highest level after a change of its library's bytes."""
    caches = (isa.levels, isa.untested, isa.self_test, isa._warn)

    def change(broken: Callable[[bytes], bytes]) -> None:
        shutil.copytree(isa.native_folder(), tmp_path / "n", ignore=shutil.ignore_patterns("lib*"))
        for library in (isa.levels()[0].library, isa.native_folder() / "libcpuinfer_probe.so"):
            assert library is not None
            shutil.copy(library, tmp_path / "n" / library.name)
        assert TOP.library is not None
        (tmp_path / "n" / TOP.library.name).write_bytes(broken(TOP.library.read_bytes()))
        monkeypatch.setattr(isa, "native_folder", lambda: tmp_path / "n")
        for cache in caches:
            cache.cache_clear()

    monkeypatch.delenv(isa.ENVIRONMENT, raising=False)
    yield change
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def flip(*constants: bytes) -> Callable[[bytes], bytes]:
    """A change of one bit in every place where one of the constants stands."""

    def change(library: bytes) -> bytes:
        assert any(constant in library for constant in constants)
        for constant in constants:
            library = library.replace(
                constant, constant[:2] + bytes([constant[2] ^ 16]) + constant[3:]
            )
        return library

    return change


@needs_two_levels
def test_a_broken_kernel_is_caught_refused_and_replaced(install: Install) -> None:
    answer = _logits(NativeDevice(1, "scalar"))
    install(flip(*EXP))
    with pytest.warns(RuntimeWarning) as caught:
        device = NativeDevice(1)
    (warning,) = caught
    text = str(warning.message)
    assert f"the ISA level {TOP.name!r} is not used" in text
    assert "in the self-test (swiglu.F32, " in text
    assert "using 'scalar'" in text and "report this with the output of `cpuinfer doctor" in text
    assert device.level == "scalar"
    assert _logits(device) == answer
    failed = isa.self_test(_top()).failed
    assert {"swiglu.F32", "matmul_swiglu.Q8_0", "attention.F16"} <= set(failed)
    assert not {"add", "rope", "embed.Q4_0", "matmul.Q4_0 many"} & set(failed)
    # What it was kept from: this library's logits are others.
    device.library = isa.untested(_top())
    assert _logits(device) != answer


@needs_two_levels
def test_a_broken_table_fails_its_type_alone(install: Install) -> None:
    install(flip(*IQ4_TABLES))
    with pytest.warns(RuntimeWarning, match=f"{TOP.name!r} is not used: .*IQ4_NL"):
        assert isa.choose().name == "scalar"
    assert all("IQ4" in name for name in isa.self_test(_top()).failed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert isa.choose().name == "scalar"


@needs_two_levels
def test_a_level_that_was_asked_for_is_refused_with_an_error(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(flip(*EXP))
    with pytest.raises(ValueError, match=f"isa: level {TOP.name!r} cannot run: .* self-test"):
        isa.load(TOP.name)
    monkeypatch.setenv(isa.ENVIRONMENT, TOP.name)
    with pytest.raises(ValueError, match=f"CPUINFER_ISA: level {TOP.name!r} cannot run"):
        NativeDevice(1)


@needs_two_levels
def test_a_library_that_does_not_load_is_replaced(install: Install) -> None:
    install(lambda library: library[:50])
    with pytest.warns(RuntimeWarning, match=f"{TOP.name!r} is not used: its library does not load"):
        assert isa.load().level == "scalar"


@needs_two_levels
def test_a_good_copy_is_used(install: Install) -> None:
    install(lambda library: library)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isa.load().level == TOP.name


def test_no_level_left_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "problem", lambda level: "all is wrong")
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="scalar: all is wrong"):
        isa.best()


def _top() -> isa.Level:
    """As installed now."""
    return next(level for level in isa.levels() if level.name == TOP.name)


def _logits(device: NativeDevice) -> bytes:
    types = tiny.weight_types(WeightType.Q4_0)
    program, weights = llama.build(tiny.METADATA, types), tiny.weights(types)
    executable = device.compile(program, weights, Limits(8, 8, 4, 64, KVType.F16))
    return executable.run(tiny.batch([[5, 9, 2]], [0], [[1]], [2])).tobytes()
