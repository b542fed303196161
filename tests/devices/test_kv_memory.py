"""KV pages as bytes: the same images on every device, and a page that was moved is as good as the first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tiny

from cpuinfer.devices.base import Device, Executable, Limits
from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.devices.reference import ReferenceDevice
from cpuinfer.graph.dtypes import KVType, WeightType
from cpuinfer.models import llama

TYPES = tiny.weight_types(WeightType.F32)
TOKENS = list(range(3, 23))  # a full page and four tokens more


Make = Callable[[str, KVType], Executable]


@pytest.fixture
def executable(request: pytest.FixtureRequest) -> Make:
    """An executable of the device of a name; skips where it cannot run."""

    def device(name: str) -> Device:
        if name == "reference":
            return ReferenceDevice()
        if name == "numba":
            made: Device = request.getfixturevalue("numba_device")(1)
            return made
        try:
            from cpuinfer.devices.native import NativeDevice

            return NativeDevice(1)
        except (ImportError, ValueError) as error:
            pytest.skip(str(error))

    def make(name: str, kv_type: KVType) -> Executable:
        limits = Limits(max_tokens=32, max_rows=4, n_pages=8, max_context=64, kv_type=kv_type)
        program = llama.build(tiny.METADATA, TYPES)
        return device(name).compile(program, tiny.weights(TYPES), limits)

    return make


@pytest.mark.parametrize("kv_type", KVType)
@pytest.mark.parametrize("name", ["reference", "native", "numba"])
def test_moved_pages_hold_the_same_past(executable: Make, name: str, kv_type: KVType) -> None:
    made = executable(name, kv_type)
    made.run(tiny.batch([TOKENS], [0], [[5, 2]]))
    want = made.run(tiny.batch([[7]], [20], [[5, 2]])).tobytes()
    images = made.kv.read([5, 2])
    made.kv.copy([5, 2], [0, 5])
    assert made.run(tiny.batch([[7]], [20], [[0, 5]])).tobytes() == want
    made.kv.write([6, 1], images)
    assert made.run(tiny.batch([[7]], [20], [[6, 1]])).tobytes() == want
    made.run(tiny.batch([[9] * 20], [0], [[6, 1]]))
    assert made.run(tiny.batch([[7]], [20], [[6, 1]])).tobytes() != want


@pytest.mark.parametrize("kv_type", KVType)
def test_numba_reads_what_native_wrote(executable: Make, kv_type: KVType) -> None:
    native, other = executable("native", kv_type), executable("numba", kv_type)
    native.run(tiny.batch([TOKENS], [0], [[5, 2]]))
    want = native.run(tiny.batch([[7]], [20], [[5, 2]])).tobytes()
    other.kv.write([1, 3], native.kv.read([5, 2]))
    assert other.run(tiny.batch([[7]], [20], [[1, 3]])).tobytes() == want


def test_images_of_the_reference_are_in_the_same_order(executable: Make) -> None:
    native, reference = executable("native", KVType.F32), executable("reference", KVType.F32)
    for made in (native, reference):
        made.run(tiny.batch([TOKENS[:16]], [0], [[4]]))
    got, want = (made.kv.read([4]).view(np.float32) for made in (native, reference))
    assert np.abs(got - want).max() < 1e-4
    assert np.abs(want).max() > 1


def test_borders(executable: Make) -> None:
    kv = KVMemory(np.zeros((2, 3, 4, 8), np.uint8))
    assert kv.image_bytes == 48
    assert kv.read([]).shape == (0, 48)
    with pytest.raises(ValueError, match="there are 4"):
        kv.read([4])
    with pytest.raises(ValueError, match="there are 4"):
        kv.copy([-1], [0])
    with pytest.raises(ValueError, match="cannot be copied"):
        kv.copy([1, 2], [0])
    with pytest.raises(ValueError, match=r"expected uint8 \(2, 48\)"):
        kv.write([1, 2], np.zeros((1, 48), np.uint8))
