"""The memory that a model takes on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpuinfer.formats import PackedModel
    from cpuinfer.graph.program import Program


def memory_of(
    model: str, threads: int, isa: str | None, kv_type: str, max_context: int | None
) -> dict[str, Any]:
    """Bytes of the packed weights, of the KV pages of one whole context, and of activations and workspaces.

    kv_reserved_bytes: what an engine reserves for several sequences by default, of which only pages in use are touched.
    activation_bytes is null where no native library runs. Raises ValueError for a model or context that cannot be.
    """
    from cpuinfer import hub
    from cpuinfer.cli.load import load_program
    from cpuinfer.config import EngineConfig
    from cpuinfer.devices.base import PAGE_TOKENS
    from cpuinfer.graph.dtypes import KVType

    path = hub.resolve(model, progress=True)
    packed, program = load_program(path, max_context)
    kv, kind = program.kv, KVType(kv_type)
    token = kv.n_layers * kind.token_bytes(kv.n_kv_heads, kv.head_dim)
    page = PAGE_TOKENS * token
    context = program.max_positions
    pages = EngineConfig(max_context=max_context).pages(context, PAGE_TOKENS, page)
    activations = _activations(packed, program, kind.value, threads, isa)
    one = -(-context // PAGE_TOKENS) * page
    return {
        "name": model,
        "path": str(path),
        "packed_bytes": packed.nbytes,
        "expanded": {name: kind.name for name, kind in packed.expanded.items()},
        "kv_type": kind.value,
        "kv_bytes_per_token": token,
        "max_positions": context,
        "kv_bytes": one,
        "kv_reserved_bytes": pages * page,
        "activation_bytes": activations,
        "total_bytes": packed.nbytes + one + (activations or 0),
    }


def _activations(
    packed: PackedModel, program: Program, kv_type: str, threads: int, isa: str | None
) -> int | None:
    """What the native device allocates beside KV pages, for steps of an engine's usual size; None without one."""
    import numpy as np
    from numpy.typing import NDArray

    from cpuinfer.config import EngineConfig
    from cpuinfer.devices.arena import allocate
    from cpuinfer.devices.base import PAGE_TOKENS, Limits
    from cpuinfer.devices.native import NativeDevice
    from cpuinfer.graph.dtypes import KVType

    allocated: list[int] = []

    def counting(nbytes: int) -> NDArray[np.uint8]:
        allocated.append(nbytes)
        return allocate(nbytes)

    config, kind = EngineConfig(), KVType(kv_type)
    try:
        device = NativeDevice(threads, isa, allocator=counting)
    except (OSError, ValueError):
        return None
    limits = Limits(config.token_budget, config.max_rows, 1, program.max_positions, kind)
    device.compile(program, packed.weights, limits)
    kv = program.kv
    return sum(allocated) - PAGE_TOKENS * kv.n_layers * kind.token_bytes(kv.n_kv_heads, kv.head_dim)
