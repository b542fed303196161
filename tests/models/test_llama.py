"""The border: metadata and tensors of a model file are hostile until checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tiny

from cpuinfer.graph.dtypes import WeightType
from cpuinfer.models import build_program
from cpuinfer.models.llama import Config

TYPES = tiny.weight_types(WeightType.F32)


def build(types: dict[str, WeightType] = TYPES, /, **changes: Any) -> Any:
    """The tiny model with some metadata changed; `_` stands for a dot, None removes the key."""
    metadata = dict(tiny.METADATA)
    for key, value in changes.items():
        metadata["llama." + key.replace("__", ".")] = value
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return build_program(metadata, types, max_positions=64)


WRONG = {
    "attention__head_count": [
        0,
        -1,
        3,
        1 << 20,
        2.0,
        "4",
        True,
        [4, 4],
        np.array([4, 4]),
        None,
        math.nan,
    ],
    "attention__head_count_kv": [0, -1, 3, 8, "2", [2, 2], 1 << 40],
    "attention__key_length": [0, 15, 258, 1 << 20, "16"],
    "attention__value_length": [0, 32, "16"],
    "attention__layer_norm_rms_epsilon": [None, -1e-5, math.nan, math.inf, "x", 2.0],
    "attention__scale": [-1.0, math.nan, 1e9],
    "attention__sliding_window": [-1, "64", 1 << 40],
    "attention__causal": [False, np.ones(2, bool)],
    "attention__clamp_kqv": [8.0],
    "attention__logit_softcapping": [30.0],
    "block_count": [0, -1, 3, 1 << 30, "2", None],
    "context_length": [0, -5, 63, "512", None],
    "embedding_length": [0, -64, 66, 2048, 1 << 40, 64.0, None],
    "expert_count": [8],
    "expert_used_count": [2],
    "feed_forward_length": [0, -1, 1 << 40, None, [128, 128]],
    "rope__dimension_count": [0, 3, 17, 32, "16"],
    "rope__freq_base": [0.0, -1.0, math.nan, math.inf, 1e300, "x"],
    "rope__scaling__type": ["yarn", "longrope", 7, np.arange(3)],
    "rope__scaling__factor": [-2.0, math.nan, 1e12, "2"],
    "rope__scaling__attn_factor": [1.5],
    "tensor_data_layout": ["Meta AI original pth v2", np.arange(3)],
    "vocab_size": [0, -1, 1 << 40, None, "97"],
    "some_new_feature": [1, "on", [3], np.arange(3), np.zeros(1)],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_wrong_metadata_is_refused(key: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"metadata llama\.|heads of|positions asked|no tensor blk\.2"
    ) as error:
        build(**{key: value})
    assert len(str(error.value)) < 400


def test_wrong_architectures_are_refused() -> None:
    for name in ("qwen3", "", None, 7, ["llama"]):
        with pytest.raises(ValueError, match="supported are: llama"):
            build_program({**tiny.METADATA, "general.architecture": name}, TYPES)


@pytest.mark.parametrize(
    "name",
    ["blk.1.ffn_up.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.weight"],
)
def test_a_missing_tensor_is_named(name: str) -> None:
    types = {key: value for key, value in TYPES.items() if key != name}
    with pytest.raises(ValueError, match=name):
        build(types)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight", "blk.2.attn_q.weight"]
)
def test_tensors_of_other_features_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        build({**TYPES, name: WeightType.F32})


def test_norms_must_be_f32() -> None:
    with pytest.raises(ValueError, match="vectors are F32"):
        build({**TYPES, "blk.0.attn_norm.weight": WeightType.F16})


def test_off_features_and_known_extras_pass() -> None:
    build(expert_count=0, some_flag=False, attention__sliding_window=64, attention__causal=True)
    build(rope__scaling__type="none", rope__scaling__factor=4.0)
    build(rope__dimension_count=None, attention__head_count_kv=2)


def test_the_window_reaches_every_attention() -> None:
    for window in (0, 32):
        ops = [op for op in build(attention__sliding_window=window).ops if op.kind == "attention"]
        assert [op.attrs.get("window", 0) for op in ops] == [window, window]


def test_tied_and_untied_outputs() -> None:
    assert build().ops[-1].weights == ("token_embd.weight",)
    untied = build({**TYPES, "output.weight": WeightType.F16})
    assert untied.ops[-1].weights == ("output.weight",)
    assert untied.weights["output.weight"].shape == (97, 64)


def test_vocabulary_from_the_tokenizer_where_metadata_has_no_size() -> None:
    metadata = {k: v for k, v in tiny.METADATA.items() if k != "llama.vocab_size"}
    program = build_program({**metadata, "tokenizer.ggml.tokens": ["a"] * 97}, TYPES)
    assert program.vocab_size == 97


def test_linear_scaling_divides_the_angles() -> None:
    plain = build().constants["rope"]
    scaled = build(rope__scaling__type="linear", rope__scaling__factor=4.0).constants["rope"]
    old = build(rope__scale_linear=4.0).constants["rope"]
    np.testing.assert_array_equal(scaled[::4], plain[:16])
    np.testing.assert_array_equal(scaled, old)


def test_llama3_factors_divide_each_frequency() -> None:
    types = {**TYPES, "rope_freqs.weight": WeightType.F32}
    factors = np.array([1, 1, 1, 2, 2, 4, 8, 8], np.float32)

    def table(given: np.ndarray[Any, Any] | None) -> Any:
        return build_program(tiny.METADATA, types, max_positions=64, rope_factors=given).constants[
            "rope"
        ]

    plain, scaled = build().constants["rope"], table(factors)
    for pair, factor in enumerate(factors.astype(int)):
        np.testing.assert_array_equal(
            scaled[::factor, :, 2 * pair], plain[: -(-64 // factor), :, 2 * pair]
        )
    for bad in (None, factors[:3], -factors, factors * np.nan):
        with pytest.raises(ValueError, match="rope_f"):
            table(bad)
    with pytest.raises(ValueError, match="has no tensor"):
        build_program(tiny.METADATA, TYPES, rope_factors=factors)


def test_partial_rotation_leaves_the_rest_of_a_head() -> None:
    table = build(rope__dimension_count=8).constants["rope"]
    assert (table[:, 0, 8:] == 1).all() and (table[:, 1, 8:] == 0).all()
    assert (table[1:, 1, :8] != 0).all()


def test_positions_are_bounded_by_the_model_and_by_default() -> None:
    assert build_program(tiny.METADATA, TYPES).max_positions == 512
    huge = {**tiny.METADATA, "llama.context_length": 1 << 30}
    assert build_program(huge, TYPES).max_positions == 8192
    for positions in (0, -1, 513):
        with pytest.raises(ValueError, match="1 to 512"):
            build_program(tiny.METADATA, TYPES, max_positions=positions)


def test_head_size_may_differ_from_width_over_heads() -> None:
    config = Config.from_metadata(
        {
            **tiny.METADATA,
            "llama.attention.key_length": 32,
            "llama.attention.value_length": 32,
            "llama.rope.dimension_count": 32,
        }
    )
    assert config.head_dim == 32 and config.scale == 1 / math.sqrt(32)
