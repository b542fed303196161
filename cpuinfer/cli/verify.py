"""`cpuinfer verify`: the fingerprint of a model's logits, the same on every machine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cpuinfer.cli.options import KV, Device, DeviceName, Isa, Json, KVName, Model, Threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cpuinfer.llm import LLM

LENGTHS = (1, 2, 15, 16, 17, 70)
"""Tokens of the fixed prompts: around a KV page, and over a block of the matrix product."""


def verify(
    model: Model,
    threads: Threads = None,
    isa: Isa = None,
    device: Device = DeviceName.auto,
    kv_type: KV = KVName.f16,
    json: Json = False,
) -> None:
    """Print SHA-256 over the logits of fixed prompts. Two machines, or two builds, may compare theirs.

    Threads and ISA level change nothing about it; the model's weights and --kv-type do.
    """
    from cpuinfer.cli.generate import open_llm
    from cpuinfer.cli.output import print_json, working
    from cpuinfer.cli.sampling import where

    llm = open_llm(model, threads, isa, device, kv_type, None)
    with working("running the fixed prompts"):
        found = fingerprint(llm)
    if json:
        print_json(
            {
                "model": model,
                "source_sha256": llm.packed.source_sha256,
                "fingerprint": found,
                "prompts": list(LENGTHS),
                "kv_type": kv_type.value,
                **where(llm),
            }
        )
        return
    print(found)


def prompt(length: int, vocab_size: int) -> list[int]:
    """Token ids spread over the vocabulary, the same on every machine (Knuth's multiplicative hash)."""
    return [(2654435761 * (i + 1) + 40503 * length) % 2**32 % vocab_size for i in range(length)]


def fingerprint(llm: LLM) -> str:
    """SHA-256, in hexadecimal, over the logits [T, V] of each prompt in turn as little-endian f32."""
    lengths = [n for n in LENGTHS if n <= llm.limits.max_context]
    digest = hashlib.sha256()
    for length in lengths:
        digest.update(_bytes(llm.logits(prompt(length, llm.program.vocab_size))))
    return digest.hexdigest()


def _bytes(logits: NDArray[np.float32]) -> bytes:
    return logits.astype("<f4").tobytes()
