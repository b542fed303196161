"""Options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class DeviceName(StrEnum):
    """Devices that run a Program."""

    auto = "auto"
    native = "native"
    numba = "numba"
    reference = "reference"


class KVName(StrEnum):
    """Element types of KV pages."""

    f16 = "f16"
    bf16 = "bf16"
    int8 = "int8"
    f32 = "f32"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="An alias (smollm2-135m), a path, or hf:owner/repo/file.gguf."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", min=1, help="Threads of the team. [default: what this process may use]"
    ),
]
Isa = Annotated[
    str | None,
    typer.Option(
        "--isa", help="ISA level, as `doctor` lists them. [default: CPUINFER_ISA, or the best]"
    ),
]
Device = Annotated[
    DeviceName,
    typer.Option(
        "--device",
        help="What runs the Program; auto: native, or numba where no native library loads.",
    ),
]
KV = Annotated[KVName, typer.Option("--kv-type", help="Element type of KV pages.")]
MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context", min=1, help="Longest sequence, in tokens. [default: the model's]"
    ),
]
