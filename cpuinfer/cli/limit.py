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

    Activations are left out: they stay in the caches. A gathered table (the embedding) is one row.
    """
    from cpuinfer.graph.ops import spec_of

    read = {name for op in program.ops if not spec_of(op).gathers for name in op.weights}
    specs = [program.weights[name] for name in read]
    weights = sum(spec.type.packed_bytes(spec.shape) for spec in specs)
    kv = program.kv
    kv_token = 2 * kv.n_layers * kv.n_kv_heads * kv.head_dim * kv_type.itemsize
    return weights / n_seqs + kv_token * context


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
    from cpuinfer.machine.roofline import roofline

    if tokens_per_s <= 0:
        return None
    per_token = decode_bytes(program, kv_type, context, n_seqs)
    return roofline(per_token, tokens_per_s, bandwidth(isa, threads))


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
