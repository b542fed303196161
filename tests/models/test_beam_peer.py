"""Beam search against transformers' on the same model: same tokens, same scores, whatever the options."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from test_llama_peer import peer_model

from cpuinfer.config import BeamSearchParams
from cpuinfer.devices.base import Limits
from cpuinfer.devices.reference import ReferenceDevice
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.sequence import Bounds
from cpuinfer.graph.dtypes import KVType, WeightType
from cpuinfer.graph.r16k4 import unpack
from cpuinfer.models import build_program

# Ends that a random model meets often enough, and one that it rarely does.
ENDS = ([3], [3, 17, 40], list(range(0, 90, 4)))


@pytest.mark.peer
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("ends", ENDS, ids=len)
def test_beam_search_is_transformers(
    early_stopping: bool | str, length_penalty: float, ends: list[int]
) -> None:
    types = tiny.weight_types(WeightType.F32)
    packed = tiny.weights(types)
    program = build_program(dict(tiny.METADATA), types, max_positions=128)
    limits = Limits(64, 8, 40, 128, KVType.F32)
    executable = ReferenceDevice().compile(program, packed, limits)
    peer = peer_model({name: unpack(w) for name, w in packed.items()}, {})
    import torch

    bounds = Bounds(97, 128, 40 * 16, frozenset(ends), 16)
    for seed, (width, most) in enumerate([(2, 12), (4, 20)]):
        prompt = np.random.default_rng(seed).integers(0, 97, 20 + seed).tolist()
        params = BeamSearchParams(
            beam_width=width,
            max_tokens=most,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        engine = Engine(executable, limits, 8)
        made = bounds.request("0", prompt, params)
        engine.add(made)
        while engine.has_work:
            engine.step()
        search = made.sequences[0].search
        assert search is not None
        with torch.no_grad():
            theirs = peer.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
                num_beams=width,
                num_return_sequences=width,
                do_sample=False,
                max_new_tokens=most,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                eos_token_id=ends,
                pad_token_id=96,
                return_dict_in_generate=True,
                output_scores=True,
            )
        assert len(made.completions) == width
        for hypothesis, row, score in zip(
            search.hypotheses, theirs.sequences, theirs.sequences_scores, strict=True
        ):
            got = hypothesis.sequence.generated
            padded = row[len(prompt) :].tolist()
            assert padded[: len(got)] == got and set(padded[len(got) :]) <= {96}
            # Their sums are of 20 f32 log-probabilities of about 5, over at least 1/20 (length_penalty -1).
            assert hypothesis.score == pytest.approx(float(score), abs=20 * 100 * 2**-24 * 20)
