"""Passes: functions from a Program to a Program that computes the same. Their order is the order of PASSES."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from cpuinfer.graph.passes.fuse import fuse_qkv, fuse_quantize, fuse_residual, fuse_swiglu
from cpuinfer.graph.passes.lower import hoist_rows, lower
from cpuinfer.graph.program import Program

LOWERING: Mapping[str, Callable[[Program], Program]] = {"hoist_rows": hoist_rows, "lower": lower}
"""What a kernel device needs: without `lower` a matmul's input has the wrong type."""

FUSION: Mapping[str, Callable[[Program], Program]] = {
    "fuse_qkv": fuse_qkv,
    "fuse_swiglu": fuse_swiglu,
    "fuse_residual": fuse_residual,
    "fuse_quantize": fuse_quantize,
}
"""What saves memory traffic and barriers; the bits stay the same without."""

PASSES: Mapping[str, Callable[[Program], Program]] = {**LOWERING, **FUSION}


def stages(
    program: Program, passes: Mapping[str, Callable[[Program], Program]] = PASSES
) -> Iterator[tuple[str, Program]]:
    """The Program as the model file builds it ("model"), then after each pass, by the pass's name."""
    yield "model", program
    for name, rewrite in passes.items():
        program = rewrite(program)
        yield name, program


def optimise(
    program: Program, passes: Mapping[str, Callable[[Program], Program]] = PASSES
) -> Program:
    """The Program after all passes, checked again. Raises ValueError for a weight type without a kernel."""
    for rewrite in passes.values():
        program = rewrite(program)
    program.check()
    return program
