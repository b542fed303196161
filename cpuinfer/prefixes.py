"""The prefix store of a model: what a page's bits depend on, and the folder that keeps them."""

from __future__ import annotations

from pathlib import Path

from cpuinfer.config import EngineConfig
from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.engine.prefix_store import PrefixStore, fingerprint
from cpuinfer.formats.cache import content_sha256
from cpuinfer.formats.kv_folder import PageFolder
from cpuinfer.graph.dtypes import KVType
from cpuinfer.graph.program import Program
from cpuinfer.machine.known_answers import ANSWERS


def open_prefix_store(
    config: EngineConfig, program: Program, weights: str, device: str, kv: KVMemory
) -> PrefixStore | None:
    """The store that config names, for a Program of a packed file's weights. Raises ValueError and OSError."""
    if config.prefix_store is None:
        return None
    # All devices but the reference compute the same bits: those of the known answers.
    numerics = device if device == "reference" else repr(sorted(ANSWERS.items()))
    key = fingerprint(program, content_sha256(weights), KVType(config.kv_type), numerics)
    folder = Path(config.prefix_store)
    pages = PageFolder(folder, key, PAGE_TOKENS, kv.image_bytes, config.prefix_store_bytes)
    return PrefixStore(pages, kv)
