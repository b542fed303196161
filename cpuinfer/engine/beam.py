"""Beam search: after every step the likeliest continuations of a prompt go on, on pages that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cpuinfer.config import BeamSearchParams
from cpuinfer.engine.sampler import TokenLogprob

if TYPE_CHECKING:
    from cpuinfer.engine.scheduler import Scheduler
    from cpuinfer.engine.sequence import Sequence

PRUNED = "pruned"
"""finish_reason of a beam that others have displaced, or that the end of its search has; nobody is shown it."""


class Hypothesis(NamedTuple):
    """A continuation that has ended: its score is log-probability / tokens ** length_penalty."""

    score: float
    sequence: Sequence


class _Candidate(NamedTuple):
    total: float  # log-probability of the continuation, this token included
    beam: Sequence
    entry: TokenLogprob


class BeamSearch:
    """The search of one request. Its beams are sequences of one group, all of one length.

    Each step takes the K = max(2, 1 + end tokens) * beam_width likeliest continuations of all beams. Those of the first
    beam_width that end are hypotheses, of which the best beam_width stay; the first beam_width of the others go on.
    The search is over when nothing goes on, or beam_width hypotheses are there and
    - early_stopping is True, or
    - the best beam's log-probability / n ** length_penalty is not above the worst of them, where n is the tokens so
      far, but with "never" and a positive length_penalty the most tokens that there can be.
    That is transformers' definition (GenerationMixin._beam_search). Of equals the one of the better beam counts, then
    that of the lower token, and a hypothesis before a later one: no result depends on a sorting order.
    """

    def __init__(self, first: Sequence, params: BeamSearchParams) -> None:
        self.params = params
        self.beams = [first]
        self.hypotheses: list[Hypothesis] = []
        self.n_listed = max(2, 1 + len(first.end_ids)) * params.beam_width
        self._most = first.limit - first.n_prompt
        self._totals = {first: 0.0}
        self._found: dict[Sequence, list[TokenLogprob]] = {}

    @property
    def done(self) -> bool:
        """Whether nothing goes on any more."""
        return all(beam.finish_reason for beam in self.beams)

    @property
    def completions(self) -> list[Sequence]:
        """The best first; where the search was cut off, the beams that were on their way after them."""
        ended = [hypothesis.sequence for hypothesis in self.hypotheses]
        return (ended + self.beams)[: self.params.beam_width]

    def take(self, beam: Sequence, likeliest: list[TokenLogprob]) -> bool:
        """The n_listed likeliest tokens after a beam, best first. Returns whether all beams have theirs: advance then.

        A beam waits for the others where a step has no room for all; what it found is found again, the same, where it
        has lost its pages meanwhile.
        """
        self._found[beam] = likeliest
        return all(beam.remaining == 0 and beam in self._found for beam in self.beams)

    def advance(self, scheduler: Scheduler) -> None:
        """Take the step: beams that do not go on are removed, which frees their pages, others are forked."""
        going: list[_Candidate] = []
        for rank, candidate in enumerate(self._candidates()):
            if not candidate.beam.would_end(candidate.entry.token):
                if len(going) < self.params.beam_width:
                    going.append(candidate)
            elif rank < self.params.beam_width:
                self._end(candidate)
        if self._is_over(going):
            going = []
        parents = {candidate.beam for candidate in going}
        for beam in self.beams:
            if beam not in parents:
                scheduler.remove(beam)
                beam.finish(PRUNED)
        if not going:
            self.beams, self._totals, self._found = [], {}, {}
            return
        free = set(parents)  # whose own sequence none of its continuations has taken yet
        self.beams = []
        for beam in (candidate.beam for candidate in going):
            self.beams.append(beam if beam in free else scheduler.fork(beam, 0))
            free.discard(beam)
        for beam, candidate in zip(self.beams, going, strict=True):
            beam.append(candidate.entry.token, (candidate.entry,))
        self._totals = {b: candidate.total for b, candidate in zip(self.beams, going, strict=True)}
        self._found = {}

    def _candidates(self) -> list[_Candidate]:
        found = [
            _Candidate(self._totals[beam] + entry.logprob, beam, entry)
            for beam in self.beams
            for entry in self._found[beam]
        ]
        found.sort(
            key=lambda candidate: -candidate.total
        )  # stable: beams and their lists are in order
        return found[: self.n_listed]

    def _score(self, total: float, n_tokens: int) -> float:
        penalty: float = n_tokens**self.params.length_penalty
        return total / penalty

    def _end(self, candidate: _Candidate) -> None:
        sequence = candidate.beam.fork(0)
        sequence.append(candidate.entry.token, (candidate.entry,))
        score = self._score(candidate.total, len(sequence.tokens) - sequence.n_prompt)
        self.hypotheses.append(Hypothesis(score, sequence))
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self.hypotheses[self.params.beam_width :]

    def _is_over(self, going: list[_Candidate]) -> bool:
        params = self.params
        if not going or len(self.hypotheses) < params.beam_width:
            return not going
        if params.early_stopping is True:
            return True
        best = going[0]
        n_tokens = len(best.beam.tokens) - best.beam.n_prompt + 1
        if params.early_stopping == "never" and params.length_penalty > 0:
            n_tokens = self._most
        return self._score(best.total, n_tokens) <= self.hypotheses[-1].score
