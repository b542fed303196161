"""The share of the machine's limit that a run reached: bytes from the Program, bandwidth from the machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cpuinfer.cli.output import human_bytes

if TYPE_CHECKING:
    from cpuinfer.graph.dtypes import KVType
    from cpuinfer.graph.program import Program
    from cpuinfer.machine.roofline import Roofline


def decode_bytes(program: Program, kv_type: KVType, context: float, n_seqs: int = 1) -> float:
    """Bytes per token that decoding must read from memory: weights, shared by n_seqs sequences, and `context` keys.

    Activations are left out: they stay in the caches.
    """
    from cpuinfer.graph.ops import StepSize

    # A step without rows: the op table then counts only what a step reads whatever its rows.
    keys = round(n_seqs * context)
    return program.bytes(StepSize(0, 0, keys, keys, kv_type)) / n_seqs


def decode_roofline(
    program: Program,
    kv_type: KVType,
    context: float,
    tokens_per_s: float,
    isa: str,
    threads: int,
    n_seqs: int = 1,
) -> Roofline | None:
    """How near decoding came to the read bandwidth of `threads` threads; None where nothing was decoded."""
    from cpuinfer.machine.roofline import last_level_cache, roofline

    if tokens_per_s <= 0:
        return None
    per_token = decode_bytes(program, kv_type, context, n_seqs)
    found = roofline(per_token, tokens_per_s, bandwidth(isa, threads))
    if found.share > 1 and per_token > last_level_cache():  # measured while the machine was busy
        found = roofline(per_token, tokens_per_s, bandwidth(isa, threads, fresh=True))
    return found


def bandwidth(isa: str, threads: int, fresh: bool = False) -> float:
    """Bytes per second that this machine reads with `threads` threads; measured where it is not known yet."""
    from cpuinfer.machine.cpu import cpu_name
    from cpuinfer.machine.isa import load
    from cpuinfer.machine.roofline import read_bandwidth

    return read_bandwidth(load(isa).read_words, cpu_name(), isa, threads, fresh)


def as_json(roofline: Roofline | None) -> dict[str, Any] | None:
    """The roofline as an object, or null."""
    return None if roofline is None else asdict(roofline)


def in_words(roofline: Roofline) -> str:
    """84.1 MB/token, 9.1 GB/s: 71 % of this machine's 12.8 GB/s."""
    return (
        f"{human_bytes(roofline.bytes_per_token)}/token, {human_bytes(roofline.bytes_per_s)}/s: "
        f"{100 * roofline.share:.0f} % of this machine's {human_bytes(roofline.read_bandwidth)}/s"
    )
