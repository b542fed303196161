"""The Numba device around its kernels: what runs where no native library loads, interrupts, other processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

from cpuinfer import devices
from cpuinfer.cli.verify import fingerprint
from cpuinfer.devices.base import Limits
from cpuinfer.graph.dtypes import WeightType
from cpuinfer.llm import LLM
from cpuinfer.machine import isa
from cpuinfer.models import llama

pytest.importorskip("numba")

TYPES = tiny.weight_types(WeightType.Q4_1)
LIMITS = Limits(max_tokens=32, max_rows=32, n_pages=12, max_context=64)
BATCH = tiny.batch([[5, 9, 2], [96], list(range(20))], [0, 0, 0], [[7], [2], [0, 11]])

Device = Callable[..., Any]


def executable(device: Any) -> Any:
    return device.compile(llama.build(tiny.METADATA, TYPES), tiny.weights(TYPES), LIMITS)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str | None = None) -> None:
        raise ValueError("no native library is installed")

    monkeypatch.setattr(isa, "load", load)
    monkeypatch.delenv(isa.ENVIRONMENT, raising=False)


def test_it_runs_where_no_library_loads(
    no_library: None, numba_device: Device, tiny_model: Path
) -> None:
    with pytest.warns(UserWarning, match="device numba: no native library is installed"):
        llm = LLM(tiny_model)
    assert llm.device.name == "numba"
    assert len(llm.generate("a")[0].outputs[0].token_ids) > 0


def test_without_numba_the_error_says_what_to_install(
    no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no native library.*pip install 'cpuinfer\[numba\]'"):
        devices.choose_device()
    with pytest.raises(ValueError, match="numba is not installed"):
        devices.create_device("numba")


def test_a_level_asked_for_is_no_reason_for_another_device(no_library: None) -> None:
    assert devices.choose_device(isa="avx2") == ("native", "")


def test_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="isa: the numba device has no ISA levels"):
        devices.create_device("numba", isa="avx2")


def test_the_answer_is_that_of_the_native_device(numba_device: Device, tiny_model: Path) -> None:
    try:
        isa.load()
    except ValueError:
        pytest.skip("no native library is installed")
    assert devices.choose_device("numba").note.startswith("device numba: as asked for")
    assert fingerprint(LLM(tiny_model, device="numba", threads=3)) == fingerprint(LLM(tiny_model))


def test_what_is_compiled_is_kept(numba_device: Device) -> None:
    from cpuinfer.devices.numba.compiler import is_compiled

    numba_device(1)
    assert is_compiled()


class Interrupted:
    """A pool of threads whose second task does not start."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.tasks = 0

    def submit(self, *task: Any) -> Any:
        self.tasks += 1
        if self.tasks == 2:
            raise KeyboardInterrupt
        return self.pool.submit(*task)


def test_an_interrupt_while_the_team_forms_leaves_nobody_waiting(
    numba_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = executable(numba_device(3))
    expected = run.run(BATCH).copy()
    with monkeypatch.context() as patch:
        patch.setattr(run, "_pool", Interrupted(run._pool))
        with pytest.raises(KeyboardInterrupt):
            run.run(BATCH)
    assert run.run(BATCH).tobytes() == expected.tobytes()


def test_borders(numba_device: Device) -> None:
    run = executable(numba_device(1))
    with pytest.raises(ValueError, match="no buffer 'nothing'"):
        run.read("nothing")
    with pytest.raises(ValueError, match="is not an input"):
        run.write("logits", np.zeros((1, 97), np.float32))
    with pytest.raises(ValueError, match="tokens"):
        run.run(tiny.batch([[97]], [0], [[0]]))
    with pytest.raises(ValueError, match="its weights take q8, its input is f32"):
        executable(numba_device(1, passes={}))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba

    made: Callable[..., Any] = numba.njit(function)
    return made


def every_half() -> NDArray[np.uint16]:
    return np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.parametrize("features", [True, False])
def test_halves_convert_alike_on_every_processor(
    features: bool, numba_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cpuinfer.devices.numba import vectors as v

    if not features:
        monkeypatch.setattr(v, "has_feature", lambda name: False)
    vf_load, vf_store, load_f16, store_f16 = v.vf_load, v.vf_store, v.vf_load_f16, v.vf_store_f16

    def widen(to: int, source: int, n: int) -> None:
        for i in range(0, n, 16):
            vf_store(to + 4 * i, load_f16(source + 2 * i))

    def narrow(to: int, source: int, n: int) -> None:
        for i in range(0, n, 16):
            store_f16(to + 2 * i, vf_load(source + 4 * i))

    halves, wide = every_half(), np.empty(1 << 16, np.float32)
    compiled(widen)(wide.ctypes.data, halves.ctypes.data, halves.size)
    numbers = ~np.isnan(wide)
    assert (wide[numbers] == halves.view(np.float16).astype(np.float32)[numbers]).all()
    bits = np.random.default_rng(4).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits[: 1 << 15] = (bits[: 1 << 15] & 0x8FFFFFFF) | 0x30000000  # near the range of f16
    x, back = bits.view(np.float32), np.empty(1 << 16, np.uint16)
    compiled(narrow)(back.ctypes.data, x.ctypes.data, x.size)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    numbers = ~np.isnan(x)
    assert back[numbers].tobytes() == expected.view(np.uint16)[numbers].tobytes()
    assert np.isnan(back.view(np.float16)[~numbers]).all()


@pytest.mark.parametrize("features", ["all", "sse2", ""])
def test_products_and_tables_are_alike_on_every_processor(
    features: str, numba_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cpuinfer.devices.numba import integers as v

    if features != "all":
        monkeypatch.setattr(v, "has_feature", lambda name: name == features)
    load, store, as_pairs = v.vh_load, v.vh_store, v.vi_as_pairs
    multiply_add, iq4, bits = v.vh_multiply_add, v.vh_iq4, v.vh_bits

    def products(to: int, x: int, y: int) -> None:
        store(to, as_pairs(multiply_add(load(x), load(y))))

    def entries(to: int, x: int) -> None:
        store(to, iq4(bits(load(x), 4, 15)))

    x, y = np.random.default_rng(5).integers(-4096, 4097, (2, 32), dtype=np.int16)
    out = np.empty(16, np.int32)
    compiled(products)(out.ctypes.data, x.ctypes.data, y.ctypes.data)
    assert (out == (x.astype(np.int32) * y).reshape(16, 2).sum(1)).all()
    table = np.array(v._IQ4, np.uint8)
    found = np.empty(64, np.uint8)
    compiled(entries)(found.ctypes.data, x.ctypes.data)
    assert (found == table[x.view(np.uint8) >> 4]).all()
