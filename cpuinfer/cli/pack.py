"""`cpuinfer pack`: write the packed file of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpuinfer.cli.options import Json, Model


def pack(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="The packed file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
    json: Json = False,
) -> None:
    """Pack a model's weights once into the layout that every ISA level maps."""
    from cpuinfer import hub
    from cpuinfer.cli.output import expansion, human_bytes, print_json, progress_bar
    from cpuinfer.formats import pack as pack_file

    source = hub.resolve(model, progress=True)
    if output.exists() and not force:
        raise FileExistsError(f"{output} exists; give --force to replace it")
    with progress_bar(f"packing {source.name}") as advance:
        packed = pack_file(source, output, progress=advance)
    expanded = {name: kind.name for name, kind in packed.expanded.items()}
    if json:
        print_json(
            {
                "model": model,
                "path": output,
                "bytes": packed.nbytes,
                "source_bytes": source.stat().st_size,
                "source_sha256": packed.source_sha256,
                "tensors": len(packed.weights),
                "expanded": expanded,
            }
        )
        return
    print(f"{output}: {len(packed.weights)} tensors, {human_bytes(packed.nbytes)}")
    if expanded:
        print(expansion(packed.expanded))
