"""Logits of the reference device against transformers' Llama and Mistral with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

from cpuinfer.devices.base import Limits
from cpuinfer.devices.reference import ReferenceDevice
from cpuinfer.graph.dtypes import KVType, WeightType
from cpuinfer.graph.r16k4 import unpack
from cpuinfer.models import build_program

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama3_factors(dims: int, base: float, original: int) -> NDArray[np.float32]:
    """What GGUF stores as rope_freqs.weight (Llama team 2024; llama.cpp's converter writes the same)."""
    factors = []
    for i in range(0, dims, 2):
        wavelength = 2 * np.pi * base ** (i / dims)
        low, high = original / LLAMA3["low_freq_factor"], original / LLAMA3["high_freq_factor"]
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(LLAMA3["factor"])
        else:
            smooth = (original / wavelength - LLAMA3["low_freq_factor"]) / (
                LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    return np.array(factors, np.float32)


def halves(w: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo GGUF's permutation of q and k rows: pairs (2i, 2i+1) of a head become (i, i + D/2)."""
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def peer_model(
    weights: dict[str, NDArray[np.float32]], rope: dict[str, Any], window: int = 0
) -> Any:
    """transformers' model of the weights, in double precision."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family = "Mistral" if window else "Llama"
    config = getattr(transformers, f"{family}Config")(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings="output.weight" not in weights,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **rope},
        **({"sliding_window": window} if window else {}),
    )
    state = {}
    for name, values in weights.items():
        parts = name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                values = halves(values, 4 if parts[2] == "attn_q" else 2)
            target = f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            target = {
                "token_embd": "model.embed_tokens.weight",
                "output_norm": "model.norm.weight",
                "output": "lm_head.weight",
            }[parts[0]]
        state[target] = torch.from_numpy(values.astype(np.float64))
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    return model


def peer_logits(
    weights: dict[str, NDArray[np.float32]],
    tokens: list[int],
    rope: dict[str, Any],
    window: int = 0,
) -> NDArray[np.float32]:
    model = peer_model(weights, rope, window)
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens])).logits[0].float().numpy())


@pytest.mark.peer
@pytest.mark.parametrize("scaling", ["none", "linear", "llama3"])
@pytest.mark.parametrize("tied", [True, False])
def test_reference_is_transformers(scaling: str, tied: bool) -> None:
    types = tiny.weight_types(WeightType.F32)
    packed = tiny.weights(types)
    if not tied:
        rng = np.random.default_rng(8)
        types["output.weight"] = WeightType.F32
        packed["output.weight"] = tiny.random_weight("output.weight", WeightType.F32, (97, 64), rng)
    metadata, factors, rope = dict(tiny.METADATA), None, {}
    if scaling == "linear":
        metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
        rope = {"rope_type": "linear", "factor": 4.0}
    if scaling == "llama3":
        types["rope_freqs.weight"] = WeightType.F32
        factors = llama3_factors(16, 10000.0, 64)
        assert len(set(factors)) > 2
        rope = {"rope_type": "llama3", "original_max_position_embeddings": 64, **LLAMA3}
    program = build_program(metadata, types, max_positions=128, rope_factors=factors)
    executable = ReferenceDevice().compile(program, packed, Limits(90, 90, 8, 128, KVType.F32))
    tokens = np.random.default_rng(9).integers(0, 97, 90).tolist()
    ours = executable.run(tiny.batch([tokens], [0], [list(range(8))], list(range(90))))
    theirs = peer_logits({name: unpack(w) for name, w in packed.items()}, tokens, rope)
    # transformers computes its angles in f32: p * 2^-24 radians at position p < 90
    assert np.abs(ours - theirs).max() < 90 * 2**-24 * np.abs(theirs).max() * 4


@pytest.mark.peer
@pytest.mark.parametrize("window", [1, 7, 64])
def test_a_window_is_mistrals(window: int) -> None:
    types = tiny.weight_types(WeightType.F32)
    packed = tiny.weights(types)
    metadata = {**tiny.METADATA, "llama.attention.sliding_window": window}
    program = build_program(metadata, types, max_positions=128)
    executable = ReferenceDevice().compile(program, packed, Limits(90, 90, 8, 128, KVType.F32))
    tokens = np.random.default_rng(9).integers(0, 97, 90).tolist()
    ours = executable.run(tiny.batch([tokens], [0], [list(range(8))], list(range(90))))
    theirs = peer_logits({name: unpack(w) for name, w in packed.items()}, tokens, {}, window)
    assert np.abs(ours - theirs).max() < 90 * 2**-24 * np.abs(theirs).max() * 4
