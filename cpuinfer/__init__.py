"""cpuinfer: LLM inference on CPUs. Start with `cpuinfer.LLM`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpuinfer.async_llm import AsyncLLM
    from cpuinfer.config import SamplingParams
    from cpuinfer.llm import LLM

__all__ = ["LLM", "AsyncLLM", "SamplingParams"]


def __getattr__(name: str) -> Any:
    # All are imported on first use, so that `import cpuinfer` and `cpuinfer --help` cost nothing.
    if name == "LLM":
        from cpuinfer.llm import LLM

        return LLM
    if name == "AsyncLLM":
        from cpuinfer.async_llm import AsyncLLM

        return AsyncLLM
    if name == "SamplingParams":
        from cpuinfer.config import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
