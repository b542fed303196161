"""The matrix products and the quantiser: one answer on every level, and near the exact one.

Inputs and weights end at a guard page; the workspace starts as NaN.
"""

import numpy as np
import pytest
from native_op import KV, LEVELS, Call, guarded, quantize, random_blocks, random_weight

from cpuinfer.graph import r16k4
from cpuinfer.graph.dtypes import Activation, WeightType
from cpuinfer.graph.weights import Weight

FLOATS = [WeightType.F32, WeightType.F16, WeightType.BF16]
QUANTISED = [WeightType.Q8_0, WeightType.Q4_0, WeightType.Q4_1]
NS = [1, 15, 16, 17, 33, 48, 64]
KS = [32, 64, 96, 576, 1536]
MS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64]
EPS = 2.0**-24
SHAPES = [(t, n, k) for t in FLOATS + QUANTISED for n in NS for k in KS] + [
    (t, n, k) for t in FLOATS for n in (1, 17, 48) for k in (1, 15, 17)
]


def rows_of(rng, m, k, type):
    """Input rows of the type that a weight type takes, up to a guard page."""
    return guarded(quantize(rng.normal(size=(m, k)).astype(np.float32), type.activation))


def matmul(x, weight, residual=None):
    n, k = weight.shape
    return Call("matmul", len(x), n, k, [x, residual], [weight], in_type=weight.type.activation)


def values_of(x, k, type):
    """(values [m, blocks, 32], scale and integer sum of each block) in float64; floats have scale 1."""
    if type in QUANTISED:
        q = x[:, :k].view(np.int8).reshape(len(x), -1, 32).astype(np.float64)
        d = x[:, k : k + k // 8].view(np.float32).astype(np.float64)
        return q, d
    if type is WeightType.BF16:
        halves = np.ascontiguousarray(x).view(np.uint16)[:, :k].astype(np.uint32) << 16
        return halves.view(np.float32).astype(np.float64), None
    return np.ascontiguousarray(x).view(np.float32).astype(np.float64), None


def exact(x, weight):
    """(product in float64, bound on the f32 kernel's distance from it), both [m, n].

    Each of the r roundings of a sum of terms costs at most EPS times the sum of their magnitudes; a q8 term has two
    more, of its scale and of its own. 1e-37 stands for flushed denormals.
    """
    n, k = weight.shape
    w = r16k4.unpack(weight).astype(np.float64)
    values, d = values_of(x, k, weight.type)
    if d is None:
        return values @ w.T, (k + 2) * EPS * (np.abs(values) @ np.abs(w).T) + k * 1e-37
    dense = (values * d[..., None]).reshape(len(x), k)
    blocks = w.reshape(n, -1, 32)
    low = np.zeros((n, k // 32))
    if weight.type is WeightType.Q4_1:
        tiles = weight.data.reshape(-1, k // 64 + k // 32 % 2, 640)[..., 64:128].view(np.float16)
        mins = (
            tiles.reshape(len(tiles), -1, 2, 16)
            .transpose(0, 3, 1, 2)
            .reshape(-1, (k + 32) // 64 * 2)
        )
        low = mins[:n, : k // 32].astype(np.float64)
    size = np.zeros((len(x), n))
    for b in range(k // 32):
        part = values[:, b] @ (blocks[:, b] - low[:, b, None]).T
        size += np.abs(part * d[:, b, None])
        size += np.abs(d[:, b] * values[:, b].sum(1))[:, None] * np.abs(low[:, b])[None]
    return dense @ w.T, (2 * (k // 32) + 4) * EPS * size + k * 1e-37


@pytest.mark.parametrize(("type", "n", "k"), SHAPES)
def test_one_answer(type, n, k):
    """Bytes do not depend on the level, the rows of a step, or the threads; values are within the bound."""
    rng = np.random.default_rng([n, k, int(type)])
    x, weight = rows_of(rng, MS[-1], k, type), random_weight(rng, type, n, k)
    whole = matmul(x, weight).run("scalar")
    expected, bound = exact(x, weight)
    assert np.all(np.abs(whole.view(np.float32) - expected) <= bound)
    for level in LEVELS:
        for i, m in enumerate(MS):
            if level == "scalar" and m > 9:
                continue
            threads, first = 1 + i % 3, MS[-1] - m
            got = matmul(guarded(x[first:]), weight).run(level, threads)
            assert got.tobytes() == whole[first:].tobytes(), (level, m, threads)


@pytest.mark.parametrize("type", FLOATS + QUANTISED)
@pytest.mark.parametrize("level", LEVELS)
def test_many_tokens(type, level):
    """Longer than a chunk of tokens: the rows are those of single steps."""
    rng = np.random.default_rng(3)
    x, weight = rows_of(rng, 203, 96, type), random_weight(rng, type, 40, 96)
    whole = matmul(x, weight).run(level, 2)
    for row in (0, 95, 96, 101, 202):
        assert matmul(x[row : row + 1], weight).run(level).tobytes() == whole[row].tobytes()


@pytest.mark.parametrize(
    "type", [WeightType.F32, WeightType.BF16, WeightType.Q8_0, WeightType.Q4_1]
)
@pytest.mark.parametrize("level", LEVELS)
def test_long_rows(type, level):
    """A K whose rows exceed the cache budget of a chunk."""
    rng = np.random.default_rng(4)
    k = 32768
    x, weight = rows_of(rng, 13, k, type), random_weight(rng, type, 17, k)
    got = matmul(x, weight).run(level)
    expected, bound = exact(x, weight)
    assert np.all(np.abs(got.view(np.float32) - expected) <= bound)
    assert matmul(x[12:], weight).run(level).tobytes() == got[12].tobytes()


@pytest.mark.parametrize("n", [1, 17, 48])
@pytest.mark.parametrize("level", LEVELS)
def test_residual(level, n):
    rng = np.random.default_rng(5)
    x, weight = rows_of(rng, 9, 64, WeightType.Q8_0), random_weight(rng, WeightType.Q8_0, n, 64)
    residual = guarded(rng.normal(size=(9, n)).astype(np.float32))
    plain = matmul(x, weight).run(level).view(np.float32)
    assert matmul(x, weight, residual).run(level, 2).tobytes() == (residual + plain).tobytes()


@pytest.mark.parametrize("type", FLOATS + QUANTISED)
@pytest.mark.parametrize("out_type", list(Activation))
@pytest.mark.parametrize("n", [16, 17, 31, 32, 96])
@pytest.mark.parametrize("level", LEVELS)
def test_swiglu_fused_equals_unfused(level, n, out_type, type):
    if out_type is Activation.Q8 and n % 32:
        n = 64
    rng = np.random.default_rng([6, n])
    x = rows_of(rng, 14, 96, type)
    gate, up = (random_weight(rng, type, n, 96) for _ in range(2))
    halves = [guarded(matmul(x, w).run(level).view(np.float32)) for w in (gate, up)]
    unfused = Call("swiglu", 14, n, n, halves, out_type=out_type).run(level)
    for m, threads in [(14, 1), (14, 3), (1, 2), (5, 1)]:
        x_rows, want = guarded(x[14 - m :]), unfused[14 - m :]
        call = Call("matmul_swiglu", m, n, 96, [x_rows], [gate, up], type.activation, out_type)
        got = call.run(level, threads)
        used = n + n // 4 if out_type is Activation.Q8 else got.shape[1]
        assert got[:, :used].tobytes() == want[:, :used].tobytes(), (m, threads)


@pytest.mark.parametrize(
    "types",
    [[t] * 3 for t in FLOATS + QUANTISED] + [[WeightType.Q4_0, WeightType.Q8_0, WeightType.Q4_1]],
)
@pytest.mark.parametrize("kv_type", [0, 1, 24, 30])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 16), (4, 1, 64), (2, 2, 48)])
@pytest.mark.parametrize("level", LEVELS)
def test_qkv_rope_fused_equals_unfused(level, heads, kv_heads, head_dim, kv_type, types):
    rng = np.random.default_rng([7, head_dim])
    k, m = 96, 21
    q_width, kv_width = heads * head_dim, kv_heads * head_dim
    x = rows_of(rng, m, k, types[0])
    weights = [
        random_weight(rng, t, n, k)
        for t, n in zip(types, (q_width, kv_width, kv_width), strict=True)
    ]
    rope = rng.normal(size=(64, 2, head_dim)).astype(np.float32)
    place = (kv_type, kv_heads, head_dim, range(11, 11 + m), [3, 5, 1])

    q, key, value = (matmul(x, w).run(level).view(np.float32) for w in weights)
    unfused = KV(*place)
    turned = [
        Call(
            "rope",
            m,
            a.shape[1],
            a.shape[1],
            [a],
            heads=h,
            head_dim=head_dim,
            rope=rope,
            kv=unfused,
        ).run(level)
        for a, h in ((q, heads), (key, kv_heads))
    ]
    Call(
        "kv_write",
        m,
        kv_width,
        kv_width,
        [turned[1], value],
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv=unfused,
    ).run(level)
    assert unfused.data.any()
    for threads in (1, 2, 3):
        fused = KV(*place)
        out = Call(
            "matmul_qkv_rope", m, q_width, k, [x], weights, types[0].activation,
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=guarded(rope), kv=fused,
        ).run(level, threads)  # fmt: skip
        assert out.tobytes() == turned[0].tobytes()
        assert fused.data.tobytes() == unfused.data.tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_extreme_codes_are_exact(level):
    """Codes 0 and 255 (or 0 and 15) against activations of +-127: the largest integers that occur."""
    k, n, m = 64, 32, 16
    signs = np.random.default_rng(8).choice([-127, 127], (m, k)).astype(np.int8)
    signs[0], signs[1] = 127, -127
    x = np.zeros((m, Activation.Q8.row_bytes(k)), np.uint8)
    x[:, :k] = signs.view(np.uint8)
    x[:, k : k + 8] = np.ones((m, 2), np.float32).view(np.uint8)
    sums = signs.reshape(m, 2, 32).sum(2, dtype=np.int32)
    x[:, k + 8 : k + 16] = sums.view(np.uint8)
    for type in QUANTISED:
        blocks = random_blocks(np.random.default_rng(9), type, n, k).reshape(n, 2, -1)
        header = 4 if type is WeightType.Q4_1 else 2
        blocks[..., header:] = np.random.default_rng(10).choice(
            [0, 255, 0x7F, 0x80], blocks[..., header:].shape
        )
        blocks[0, :, header:], blocks[1, :, header:] = 0x7F, 0x80
        blocks[2, :, header:], blocks[3, :, header:] = 0, 255
        blocks[..., :header] = np.array([1, 0][: header // 2], np.float16).view(np.uint8)
        weight = Weight("w", type, (n, k), r16k4.pack(type, n, k, blocks))
        expected = signs.astype(np.float64) @ r16k4.unpack(weight).astype(np.float64).T
        for rows in (1, 3, m):
            got = matmul(x[:rows], weight).run(level).view(np.float32)
            assert np.array_equal(got, expected[:rows])


@pytest.mark.parametrize("type", FLOATS + QUANTISED)
@pytest.mark.parametrize("level", LEVELS)
def test_hostile_scales(level, type):
    """inf, NaN and subnormal f16 (and f32) weights: no crash, other rows untouched, NaN where it belongs."""
    rng = np.random.default_rng(11)
    n, k = 32, 64
    blocks = random_blocks(rng, type, n, k)
    plain = Weight("w", type, (n, k), r16k4.pack(type, n, k, blocks))
    hostile = blocks.copy()
    words = {WeightType.F32: np.float32, WeightType.BF16: np.uint32}.get(type, np.float16)
    special = np.array([np.inf, np.nan], np.float32)
    for row, value in enumerate(special):
        as_type = (
            (value.view(np.uint32) >> 16).astype(np.uint16) if words is np.uint32 else words(value)
        )
        hostile[row, : as_type.nbytes] = as_type.reshape(1).view(np.uint8)
    tiny = np.uint32(5) if type is WeightType.F32 else np.uint16(5)
    hostile[2, : tiny.nbytes] = tiny.reshape(1).view(np.uint8)
    weight = Weight("w", type, (n, k), r16k4.pack(type, n, k, hostile))
    x = rows_of(rng, 13, k, type)
    want = matmul(x, plain).run("scalar").view(np.float32)
    oracle = matmul(x, weight).run("scalar").view(np.float32)
    got = matmul(x, weight).run(level).view(np.float32)
    assert got[:, 3:].tobytes() == want[:, 3:].tobytes()
    assert got[:, 2].tobytes() == oracle[:, 2].tobytes()
    assert np.isnan(got[:, 1]).all() and not np.isfinite(got[:, 0]).any()


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("n", [32, 64, 96, 576])
@pytest.mark.parametrize("level", LEVELS)
def test_quantize_q8(level, n, rows):
    """Bytes as docs/design.md section 3 defines them, tiny and zero blocks included."""
    x = np.random.default_rng(12).normal(size=(rows, n)).astype(np.float32)
    x[0, :32] = 0
    x[-1, -32:] *= np.float32(1e-37)
    x[0, 16] = 1e-30
    call = Call("quantize", rows, n, n, [guarded(x)], out_type=Activation.Q8)
    blocks = x.reshape(rows, -1, 32)
    amax = np.abs(blocks).max(2)
    zero = amax < np.float32(2.0**-119)
    d = np.where(zero, np.float32(0), amax / np.float32(127))
    inverse = np.float32(127) / np.where(zero, np.float32(np.inf), amax)
    q = np.rint(blocks * inverse[..., None]).astype(np.int8)
    want = [
        q.reshape(rows, -1).view(np.uint8),
        d.view(np.uint8),
        q.sum(2, dtype=np.int32).view(np.uint8),
    ]
    for threads in (1, 3):
        got = call.run(level, threads)[:, : n + n // 4]
        assert got.tobytes() == np.concatenate(want, axis=1).tobytes()


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 64])
@pytest.mark.parametrize("level", LEVELS)
def test_quantize_bf16(level, n):
    """Nearest even, subnormals to zero, and a zero behind an odd row."""
    x = np.random.default_rng(13).normal(size=(3, n)).astype(np.float32)
    x[1, 0], x[2, 0] = np.float32(1e-39), np.uint32(0x3F808000).view(np.float32)
    bits = x.view(np.uint32)
    halves = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    halves[1, 0] = 0
    want = np.pad(halves, ((0, 0), (0, n % 2)))
    got = Call("quantize", 3, n, n, [guarded(x)], out_type=Activation.BF16).run(level, 2)
    assert got.view(np.uint16).tobytes() == want.tobytes()
