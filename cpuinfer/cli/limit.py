"""The share of the machine's limit that a run reached: bytes from the Program, bandwidth from the machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cpuinfer.cli.output import human_bytes

if TYPE_CHECKING:
    from cpuinfer.graph.dtypes import KVType
    from cpuinfer.graph.program import Program
    from cpuinfer.machine.ceilings import Ceilings
    from cpuinfer.machine.roofline import Roofline


def decode_bytes(program: Program, kv_type: KVType, context: float, n_seqs: int = 1) -> float:
    """Bytes per token that decoding must read from memory: weights, shared by n_seqs sequences, and `context` keys.

    Activations are left out: they stay in the caches.
    """
    from cpuinfer.graph.ops import StepSize

    # A step without tokens counts what is read whatever their number; two that differ in context alone, the keys,
    # of which a layer with a window reads no more than that.
    keys = round(n_seqs * context)
    weights = program.bytes(StepSize(0, 0, 0, 0, kv_type))
    whole = program.bytes(StepSize(n_seqs, n_seqs, keys, keys, kv_type))
    fresh = program.bytes(StepSize(n_seqs, n_seqs, 0, 0, kv_type))
    return (weights + whole - fresh) / n_seqs


def decode_roofline(
    program: Program,
    kv_type: KVType,
    context: float,
    tokens_per_s: float,
    isa: str,
    threads: int,
    n_seqs: int = 1,
) -> Roofline | None:
    """How near decoding came to the bandwidth at which `threads` threads read what a step reads, over and over.

    None where nothing was decoded.
    """
    from cpuinfer.machine.ceilings import last_level_cache
    from cpuinfer.machine.roofline import roofline

    if tokens_per_s <= 0:
        return None
    per_token = decode_bytes(program, kv_type, context, n_seqs)
    step = per_token * n_seqs
    found = roofline(per_token, tokens_per_s, machine(isa, threads).bandwidth_at(step))
    if found.share > 1 and step > last_level_cache():  # measured while the machine was busy
        bandwidth = machine(isa, threads, fresh=True).bandwidth_at(step)
        found = roofline(per_token, tokens_per_s, bandwidth)
    return found


def machine(isa: str, threads: int, fresh: bool = False) -> Ceilings:
    """The ceilings of `threads` threads at a level; measured where they are not known yet, which takes seconds."""
    from cpuinfer.cli.output import working
    from cpuinfer.machine.ceilings import ceilings
    from cpuinfer.machine.isa import best, load

    with working("measuring this machine's ceilings"):
        return ceilings(load(isa), load(best().level.name), isa, threads, fresh)


def as_json(roofline: Roofline | None) -> dict[str, Any] | None:
    """The roofline as an object, or null."""
    return None if roofline is None else asdict(roofline)


def in_words(roofline: Roofline) -> str:
    """84.1 MB/token, 9.1 GB/s: 71 % of this machine's 12.8 GB/s."""
    return (
        f"{human_bytes(roofline.bytes_per_token)}/token, {human_bytes(roofline.bytes_per_s)}/s: "
        f"{100 * roofline.share:.0f} % of this machine's {human_bytes(roofline.read_bandwidth)}/s"
    )
