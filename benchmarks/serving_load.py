"""Loads for serving.py: who asks when, with how long a prompt, for how many tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHAREGPT_PROMPT, SHAREGPT_OUTPUT = 161.31, 337.99
"""Mean tokens of prompts and answers of ShareGPT as in Kwon et al. 2023 (the vLLM paper), figure 11."""
SIGMA = 1.0
"""Of the logarithm of lengths; our choice: the paper shows the distributions and states means alone."""
LEAST, MOST = 4, 1024
"""Lengths are clipped to these; vLLM's benchmark leaves out what is shorter or longer."""
AGENT_PREFIX, AGENT_TAIL, AGENT_OUTPUT = 1000, 64.0, 96.0
CHAT_TURNS, CHAT_USER, CHAT_OUTPUT, CHAT_THINK_S = 4, 48.0, 96.0, 2.0
"""Agents and chats: our choice. The first two are a length and means of log-normal ones, in tokens."""
BURST = 8


@dataclass(frozen=True)
class Item:
    """A request. arrival: seconds after the start, or, of one that follows another, after that one's end.

    after: the number of the request that it follows. continues: its prompt comes after that one's prompt and answer.
    """

    prompt: tuple[int, ...]
    n_output: int
    arrival: float
    after: int | None = None
    continues: bool = False


@dataclass(frozen=True)
class Spec:
    """A load. rate: requests per second; streams: requests at once, of the load `streams` alone.

    scale: lengths are divided by it, for machines, models or patience that are smaller. context: most tokens of a
    request and its answer. text: tokens that prompts are pieces of.
    """

    kind: str
    n: int
    rate: float
    seed: int
    scale: float
    context: int
    text: tuple[int, ...]
    streams: int = 16


def items(spec: Spec) -> list[Item]:
    """The requests of a load, in order of arrival where they have one. Raises ValueError for an unknown kind."""
    rng = np.random.default_rng(spec.seed)
    if spec.kind not in KINDS:
        raise ValueError(f"load: unknown kind {spec.kind!r}; known are {', '.join(KINDS)}")
    made = list(KINDS[spec.kind](spec, rng))
    return made[: spec.n]


def lengths(rng: np.random.Generator, mean: float, n: int, spec: Spec) -> list[int]:
    """Log-normal lengths of that mean (before clipping), divided by the load's scale."""
    mean /= spec.scale
    drawn = rng.lognormal(math.log(mean) - SIGMA**2 / 2, SIGMA, n)
    most = min(MOST / spec.scale, spec.context // 2 - 1)
    return [int(min(max(x, LEAST), most)) for x in drawn]


def piece(rng: np.random.Generator, spec: Spec, n: int) -> tuple[int, ...]:
    """n tokens of the text from a random place on, around its end."""
    start = int(rng.integers(len(spec.text)))
    repeated = spec.text * (2 + n // len(spec.text))
    return repeated[start : start + n]


def arrivals(rng: np.random.Generator, spec: Spec) -> Sequence[float]:
    """A Poisson process of the load's rate; an infinite rate is all at once."""
    if math.isinf(spec.rate):
        return [0.0] * spec.n
    found: list[float] = np.cumsum(rng.exponential(1 / spec.rate, spec.n)).tolist()
    return found


def sharegpt(spec: Spec, rng: np.random.Generator) -> Iterator[Item]:
    """Independent requests of ShareGPT's lengths, arriving one by one."""
    prompts = lengths(rng, SHAREGPT_PROMPT, spec.n, spec)
    outputs = lengths(rng, SHAREGPT_OUTPUT, spec.n, spec)
    for at, n_prompt, n_output in zip(arrivals(rng, spec), prompts, outputs, strict=True):
        yield Item(piece(rng, spec, n_prompt), n_output, at)


def bursts(spec: Spec, rng: np.random.Generator) -> Iterator[Item]:
    """The same requests, BURST of them at once, as many per second on average."""
    single = list(sharegpt(spec, rng))
    gaps = rng.exponential(BURST / spec.rate, -(-spec.n // BURST)).cumsum().tolist()
    for i, item in enumerate(single):
        yield Item(item.prompt, item.n_output, gaps[i // BURST])


def streams(spec: Spec, rng: np.random.Generator) -> Iterator[Item]:
    """The same requests in `streams` rows, each of which asks again when it has its answer."""
    for i, item in enumerate(sharegpt(spec, rng)):
        after = i - spec.streams if i >= spec.streams else None
        yield Item(item.prompt, item.n_output, 0.0, after)


def agents(spec: Spec, rng: np.random.Generator) -> Iterator[Item]:
    """Requests that all begin with the same tokens."""
    shared = piece(rng, spec, min(int(AGENT_PREFIX / spec.scale), spec.context // 2))
    tails = lengths(rng, AGENT_TAIL, spec.n, spec)
    outputs = lengths(rng, AGENT_OUTPUT, spec.n, spec)
    room = spec.context - len(shared)
    for at, n_tail, n_output in zip(arrivals(rng, spec), tails, outputs, strict=True):
        yield Item(
            shared + piece(rng, spec, min(n_tail, room // 2)), min(n_output, room // 2 - 1), at
        )


def chats(spec: Spec, rng: np.random.Generator) -> Iterator[Item]:
    """Conversations of CHAT_TURNS turns; each turn repeats what was said, after a pause to think."""
    most = spec.context // (2 * CHAT_TURNS)
    users = [min(n, most) for n in lengths(rng, CHAT_USER, spec.n, spec)]
    outputs = [min(n, most) for n in lengths(rng, CHAT_OUTPUT, spec.n, spec)]
    begins = arrivals(rng, spec)
    for i in range(spec.n):
        turn = i % CHAT_TURNS
        at = float(rng.exponential(CHAT_THINK_S / spec.scale)) if turn else begins[i]
        yield Item(
            piece(rng, spec, users[i]), outputs[i], at, i - 1 if turn else None, continues=turn > 0
        )


KINDS = {
    "sharegpt": sharegpt,
    "bursts": bursts,
    "streams": streams,
    "agents": agents,
    "chats": chats,
}
