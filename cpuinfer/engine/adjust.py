"""Penalties, bias and the mask of min_tokens: the few logits that they change, kept up as a sequence grows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.devices.sampling import Edits


class Adjustment:
    """What the parameters of one sequence do to its logits.

    Order: repetition penalty (prompt and output), frequency and presence penalty (output), bias, then -inf for the
    end tokens until min_tokens have been generated. end_ids: those tokens.
    """

    def __init__(self, params: SamplingParams, end_ids: Iterable[int]) -> None:
        self._params = params
        self._counts_output = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._counts_prompt = params.repetition_penalty != 1
        self._at: dict[int, int] = {}  # token to its place in the lists
        self._seen: list[bool] = []
        self._counts: list[int] = []
        self._read = 0
        for token in params.logit_bias or ():
            self._place(token)
        self._ends = [self._place(t) for t in end_ids] if params.min_tokens else []
        self._bias = np.array(list((params.logit_bias or {}).values()), np.float32)

    @staticmethod
    def of(params: SamplingParams, end_ids: Iterable[int]) -> Adjustment | None:
        """None where the parameters never change a logit."""
        made = Adjustment(params, end_ids)
        return made if made._counts_prompt or made._counts_output or made._at else None

    def edits(self, row: NDArray[np.float32], tokens: Sequence[int], n_prompt: int) -> Edits | None:
        """The logits [V] of `row` that change, after `tokens`: n_prompt of the prompt, then the generated.

        From call to call tokens only grow. None where nothing changes.
        """
        self._take(tokens, n_prompt)
        params = self._params
        masked = len(tokens) - n_prompt < params.min_tokens
        if not (
            self._seen and (masked or self._bias.size or self._counts_prompt or self._counts_output)
        ):
            return None
        ids = np.fromiter(self._at, np.int32, len(self._at))
        values = row[ids]
        if self._counts_prompt:
            penalty = np.float32(params.repetition_penalty)
            penalised = np.where(values > 0, values / penalty, values * penalty)
            values = np.where(np.array(self._seen), penalised, values)
        if self._counts_output:
            counts = np.array(self._counts, np.float32)
            values -= counts * np.float32(params.frequency_penalty)
            values -= (counts > 0) * np.float32(params.presence_penalty)
        values[: self._bias.size] += self._bias
        if masked:
            values[self._ends] = -np.inf
        return Edits(ids, values)

    def _place(self, token: int) -> int:
        at = self._at.setdefault(token, len(self._at))
        if at == len(self._seen):
            self._seen.append(False)
            self._counts.append(0)
        return at

    def _take(self, tokens: Sequence[int], n_prompt: int) -> None:
        begin = self._read if self._counts_prompt else max(self._read, n_prompt)
        self._read = len(tokens)
        if not (self._counts_prompt or self._counts_output):
            return
        for position in range(begin, len(tokens)):
            at = self._place(tokens[position])
            self._seen[at] = True
            self._counts[at] += position >= n_prompt
