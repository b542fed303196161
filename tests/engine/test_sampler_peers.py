"""The filters against the logits processors of transformers."""

import numpy as np
import pytest

from cpuinfer.config import SamplingParams
from cpuinfer.engine.sampler import adjust, candidates

pytestmark = pytest.mark.peer

torch = pytest.importorskip("torch")
generation = pytest.importorskip("transformers.generation.logits_process")

CASES = {
    "top_k": (SamplingParams(top_k=17), lambda g: [g.TopKLogitsWarper(17)]),
    "top_p": (SamplingParams(top_p=0.83), lambda g: [g.TopPLogitsWarper(0.83)]),
    "min_p": (SamplingParams(min_p=0.07), lambda g: [g.MinPLogitsWarper(0.07)]),
    "typical": (SamplingParams(typical_p=0.7), lambda g: [g.TypicalLogitsWarper(0.7)]),
    "temperature": (
        SamplingParams(temperature=0.6, top_p=0.9),
        lambda g: [g.TemperatureLogitsWarper(0.6), g.TopPLogitsWarper(0.9)],
    ),
    "all": (
        SamplingParams(temperature=1.7, top_k=100, typical_p=0.9, top_p=0.8, min_p=0.02),
        lambda g: [
            g.TemperatureLogitsWarper(1.7),
            g.TopKLogitsWarper(100),
            g.TypicalLogitsWarper(0.9),
            g.TopPLogitsWarper(0.8),
            g.MinPLogitsWarper(0.02),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_kept_tokens_and_probabilities(name: str, seed: int) -> None:
    params, make = CASES[name]
    logits = np.random.default_rng(seed).normal(0, 2.5, 1000).astype(np.float32)
    scores = torch.from_numpy(logits).double()[None]
    for warper in make(generation):
        scores = warper(torch.zeros((1, 1), dtype=torch.long), scores)
    want = torch.softmax(scores, -1)[0].numpy()
    ids, w = candidates(logits, params)
    assert ids.tolist() == np.flatnonzero(want).tolist()
    # A weight is off by at most 1 in 2**44 of the largest, a probability by about n times that.
    np.testing.assert_allclose(w / w.sum(), want[ids], rtol=1e-9, atol=1000 * 2.0**-44)


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty(penalty: float) -> None:
    logits = np.random.default_rng(1).normal(0, 2, 300).astype(np.float32)
    seen = [3, 5, 5, 200, 7]
    warper = generation.RepetitionPenaltyLogitsProcessor(penalty)
    want = warper(torch.tensor([seen]), torch.from_numpy(logits.copy())[None])[0].numpy()
    got = adjust(logits, SamplingParams(repetition_penalty=penalty), seen, 2, ())
    np.testing.assert_allclose(got, want, rtol=2.0**-23)
