"""A model file's Program, without a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cpuinfer.formats import PackedModel
    from cpuinfer.graph.program import Program


def load_program(path: Path, max_positions: int | None = None) -> tuple[PackedModel, Program]:
    """The packed model, with a bar while it is packed, and its Program as the model file builds it."""
    from cpuinfer.cli.output import progress_bar
    from cpuinfer.formats import load_model
    from cpuinfer.models import build_program

    with progress_bar(f"packing {path.name}") as advance:
        packed = load_model(path, progress=advance)
    factors = packed.weights.get("rope_freqs.weight")
    program = build_program(
        packed.metadata,
        packed.weight_types,
        max_positions=max_positions,
        rope_factors=None if factors is None else factors.data.view(np.float32),
    )
    return packed, program


def settle(threads: int | None) -> None:
    """Before a device is made: keep this process on performance cores, on machines that have others, unless somebody
    chose the threads; and say so where more were chosen than can run."""
    import os

    from cpuinfer.cli.output import note
    from cpuinfer.machine import cpu

    if threads is None and not os.environ.get(cpu.ENVIRONMENT):
        if cpus := cpu.stay_on_performance_cores():
            note(f"cpuinfer: on the {len(cpus)} performance processors (-t chooses otherwise)")
    elif (threads or cpu.default_threads().count) > (processors := cpu.processors()):
        note(
            f"cpuinfer: {processors} processors for more threads: the native device starts {processors}"
        )
