"""The same logits for any fusion, batch, chunking, page placement, level and number of threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

from cpuinfer.devices.base import Device, Executable, Limits
from cpuinfer.devices.reference import ReferenceDevice
from cpuinfer.graph.dtypes import KVType, WeightType
from cpuinfer.graph.passes import LOWERING, PASSES, optimise
from cpuinfer.graph.weights import Weight
from cpuinfer.machine import isa
from cpuinfer.models import build_program

Logits = NDArray[np.float32]

CONTEXT = 352  # more than one chunk of keys of a split attention
PAGES = CONTEXT // 16


def levels() -> list[str]:
    try:
        return [level.name for level in isa.levels() if level.runnable]
    except ValueError:  # no library is installed
        return []


LEVELS = levels()
needs_native = pytest.mark.skipif(not LEVELS, reason="no native library is installed")
# Each type of weights, and each of pages: neither shows in how the other is done.
PAIRS = [(matrix, KVType.F16) for matrix in tiny.NATIVE_TYPES]
PAIRS += [(WeightType.Q4_0, kv_type) for kv_type in KVType if kv_type is not KVType.F16]
TOKENS = np.random.default_rng(3).integers(0, 97, CONTEXT).tolist()


def model(matrix: WeightType, **others: WeightType) -> tuple[Any, Mapping[str, Weight]]:
    types = tiny.weight_types(matrix, **others)
    return build_program(tiny.metadata(types), types, max_positions=CONTEXT), tiny.weights(types)


def native(matrix: WeightType, kv_type: KVType = KVType.F16, **options: Any) -> Executable:
    from cpuinfer.devices.native import NativeDevice

    device: Device = NativeDevice(
        options.pop("threads", 2),
        options.pop("isa", LEVELS[-1]),
        share_processors=True,
        **options,
    )
    program, weights = model(matrix)
    return device.compile(program, weights, Limits(CONTEXT, CONTEXT, 9 * PAGES, CONTEXT, kv_type))


def prefill(
    executable: Executable,
    tokens: Sequence[int],
    chunk: int,
    table: Sequence[int] = tuple(range(PAGES)),
) -> Logits:
    """Logits of every position, in chunks."""
    rows = []
    for begin in range(0, len(tokens), chunk):
        part = list(tokens[begin : begin + chunk])
        batch = tiny.batch([part], [begin], [list(table)], list(range(len(part))))
        rows.append(executable.run(batch).copy())
    return np.concatenate(rows)


def equal(a: Logits, b: Logits) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("matrix", tiny.NATIVE_TYPES)
def test_reference_fused_is_unfused(matrix: WeightType) -> None:
    program, weights = model(matrix)
    limits = Limits(24, 24, 8, 64)
    results = [
        prefill(ReferenceDevice().compile(p, weights, limits), TOKENS[:24], 9)
        for p in (optimise(program, LOWERING), optimise(program, PASSES))
    ]
    equal(*results)


@needs_native
@pytest.mark.parametrize("kv_type", KVType)
@pytest.mark.parametrize("matrix", tiny.NATIVE_TYPES)
def test_native_is_near_the_reference(matrix: WeightType, kv_type: KVType) -> None:
    """Rounding to q8, bf16 or f16 may fall the other way after a difference of one ulp: no more than the noise that
    this rounding itself adds. The rest are sums in f32: at most 128 terms in each of the 16 products on the way.
    """
    program, weights = model(matrix)
    limits = Limits(100, 100, 7, CONTEXT, kv_type)
    plain = dataclasses.replace(limits, kv_type=KVType.F32)
    rounded = ReferenceDevice().compile(optimise(program, LOWERING), weights, limits)
    exact = ReferenceDevice().compile(program, weights, plain)
    ours, lowered, full = (
        prefill(e, TOKENS[:100], 100, range(7)) for e in (native(matrix, kv_type), rounded, exact)
    )
    noise = tiny.divergence(lowered, full)
    sums = (16 * 128 * 2.0**-24 * float(np.abs(full).max())) ** 2
    error = tiny.divergence(lowered, ours)
    assert error.mean() <= noise.mean() + sums
    assert error.max() <= noise.max() + sums


@needs_native
@pytest.mark.parametrize("matrix", tiny.NATIVE_TYPES)
def test_native_fused_is_unfused(matrix: WeightType) -> None:
    equal(
        prefill(native(matrix), TOKENS, 100),
        prefill(native(matrix, passes=LOWERING), TOKENS, 100),
    )


@needs_native
@pytest.mark.parametrize(("matrix", "kv_type"), PAIRS)
def test_chunks_change_nothing(matrix: WeightType, kv_type: KVType) -> None:
    executable = native(matrix, kv_type)
    whole = prefill(executable, TOKENS, CONTEXT)
    for chunk in (1, 7, 64):
        equal(prefill(executable, TOKENS, chunk), whole)


@needs_native
@pytest.mark.parametrize("matrix", tiny.NATIVE_TYPES)
def test_levels_and_threads_change_nothing(matrix: WeightType) -> None:
    oracle = prefill(native(matrix, isa=LEVELS[0], threads=1), TOKENS, 50)
    for level in LEVELS:
        for threads in (1, 2, 3, 5):
            equal(prefill(native(matrix, isa=level, threads=threads), TOKENS, 50), oracle)


@needs_native
@pytest.mark.parametrize(("matrix", "kv_type"), PAIRS)
def test_numba_is_native(
    matrix: WeightType, kv_type: KVType, numba_device: Callable[..., Device]
) -> None:
    """Fused here, unfused there, in other chunks and with other teams."""
    program, weights = model(matrix)
    limits = Limits(CONTEXT, CONTEXT, 9 * PAGES, CONTEXT, kv_type)
    table = np.random.default_rng(8).permutation(9 * PAGES)[:PAGES].tolist()
    fused = numba_device(2).compile(program, weights, limits)
    plain = numba_device(1, passes=LOWERING).compile(program, weights, limits)
    expected = prefill(native(matrix, kv_type), TOKENS, 50)
    equal(prefill(fused, TOKENS, 100, table), expected)
    equal(prefill(plain, TOKENS, CONTEXT), expected)
    equal(prefill(fused, TOKENS[:20], 1), expected[:20])


@needs_native
@pytest.mark.parametrize("matrix", tiny.NATIVE_TYPES)
def test_page_placement_changes_nothing(matrix: WeightType) -> None:
    executable = native(matrix)
    anywhere = np.random.default_rng(5).permutation(9 * PAGES)[:PAGES].tolist()
    equal(prefill(executable, TOKENS, 64, anywhere), prefill(executable, TOKENS, 64))


@needs_native
@pytest.mark.parametrize("kv_type", KVType)
@pytest.mark.parametrize("matrix", tiny.NATIVE_TYPES)
def test_a_batch_of_eight_changes_nothing(matrix: WeightType, kv_type: KVType) -> None:
    """Eight sequences of mixed lengths, prefilled and then decoded together, against each alone."""
    executable = native(matrix, kv_type)
    lengths = (1, 2, 15, 16, 17, 33, 70, 130)
    prompts = [TOKENS[s : s + n] for s, n in enumerate(lengths)]
    tables = np.random.default_rng(6).permutation(9 * PAGES)[: 8 * PAGES].reshape(8, PAGES).tolist()
    together = [executable.run(tiny.batch(prompts, [0] * 8, tables)).copy()]
    for step in range(3):
        new = [[TOKENS[(s + step) % 97]] for s in range(8)]
        past = [n + step for n in lengths]
        together.append(executable.run(tiny.batch(new, past, tables)).copy())
    for s, prompt in enumerate(prompts):
        tokens = [*prompt, *(TOKENS[(s + step) % 97] for step in range(3))]
        alone = prefill(executable, tokens, len(tokens))[len(prompt) - 1 :]
        equal(alone, np.stack([rows[s] for rows in together]))


@needs_native
def test_a_step_may_want_no_logits() -> None:
    executable = native(WeightType.Q4_0)
    whole = prefill(executable, TOKENS[:40], 40)
    table = [list(range(PAGES))]
    assert executable.run(tiny.batch([TOKENS[:30]], [0], table, [])).shape == (0, 97)
    last = executable.run(tiny.batch([TOKENS[30:40]], [30], table, [9, 0]))
    equal(last, whole[[39, 30]])
