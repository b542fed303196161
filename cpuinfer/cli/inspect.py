"""`cpuinfer inspect`: what a model file holds, and the Program made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpuinfer.cli.options import Json, Model

if TYPE_CHECKING:
    from cpuinfer.graph.ops import StepSize
    from cpuinfer.graph.program import Program

MOST_SHOWN = 8
"""Elements of an array that are printed."""
MOST_CHARACTERS = 200


def inspect(
    model: Model,
    program: Annotated[
        bool, typer.Option("--program", help="Print the Program before and after each pass.")
    ] = False,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Tokens of the step to count.")
    ] = 1,
    context: Annotated[
        int, typer.Option("--context", min=1, help="Keys that the step's last token sees.")
    ] = 512,
    json: Json = False,
) -> None:
    """Print a model's metadata and tensors; with --program, the bytes and operations of a step."""
    from cpuinfer import hub

    path = hub.resolve(model, progress=True)
    if not program:
        _print_file(str(path), json)
        return
    from cpuinfer.graph.ops import StepSize

    size = StepSize.of_sequence(tokens, 1, max(context, tokens))
    _print_stages(list(_stages(path)), size, json)


def _print_file(path: str, json: bool) -> None:
    from cpuinfer.cli.output import human_bytes, print_json

    metadata, tensors = _contents(path)
    if json:
        print_json({"path": path, "metadata": metadata, "tensors": tensors})
        return
    width = max(map(len, metadata), default=0)
    for key, value in metadata.items():
        print(f"{key:<{width}}  {_short(value)}")
    width = max((len(tensor["name"]) for tensor in tensors), default=0)
    print(f"\n{len(tensors)} tensors")
    for tensor in tensors:
        shape = " x ".join(map(str, tensor["shape"]))
        print(
            f"{tensor['name']:<{width}}  {tensor['type']:<6}  {shape:<16}  {human_bytes(tensor['bytes'])}"
        )


def _contents(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metadata (long arrays cut) and tensors of a plain or packed file."""
    from cpuinfer.formats import open_gguf, open_packed
    from cpuinfer.formats.gguf import PACK_VERSION_KEY, read_metadata

    metadata: dict[str, Any]
    if PACK_VERSION_KEY in read_metadata(path):
        packed = open_packed(path)
        tensors = [(w.name, w.type, w.shape, w.data.nbytes) for w in packed.weights.values()]
        metadata = packed.metadata
    else:
        with open_gguf(path) as file:
            tensors = [(t.name, t.type, t.shape, t.data.nbytes) for t in file.tensors.values()]
            metadata = dict(file.metadata)
    return (
        {key: _cut(value) for key, value in metadata.items()},
        [
            {"name": name, "type": kind.name, "shape": list(shape), "bytes": n_bytes}
            for name, kind, shape, n_bytes in tensors
        ],
    )


def _cut(value: Any) -> Any:
    """Arrays as {count, first}: a vocabulary is no reading matter."""
    if isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has no infinities
    if len(value) <= MOST_SHOWN:
        return [_cut(element) for element in _plain(value)]
    return {"count": len(value), "first": [_cut(element) for element in _plain(value[:MOST_SHOWN])]}


def _plain(value: Any) -> list[Any]:
    return list(value.tolist() if hasattr(value, "tolist") else value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['count']} x: " + ", ".join(map(_short, value["first"])) + ", ..."
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    text = ascii(value) if isinstance(value, str) else str(value)
    return (
        text
        if len(text) <= MOST_CHARACTERS
        else f"{text[:MOST_CHARACTERS]}... ({len(text)} characters)"
    )


def _stages(path: Path) -> list[tuple[str, Program]]:
    """The Program as built, then after each pass."""
    from cpuinfer.cli.load import load_program
    from cpuinfer.graph.passes import stages

    return list(stages(load_program(path)[1]))


def _print_stages(named: list[tuple[str, Program]], size: StepSize, json: bool) -> None:
    from cpuinfer.cli.output import print_json
    from cpuinfer.graph.display import format_program

    if not json:
        print("\n\n".join(f"== {name}\n{format_program(p, size)}" for name, p in named))
        return
    from cpuinfer.graph.ops import spec_of

    print_json(
        {
            "tokens": size.tokens,
            "context": size.context,
            "stages": [
                {
                    "pass": name,
                    "bytes": program.bytes(size),
                    "operations": program.operations(size),
                    "ops": [
                        {
                            "label": op.label,
                            "kind": op.kind,
                            "bytes": spec_of(op).bytes(op, program, size),
                            "operations": spec_of(op).operations(op, program, size),
                        }
                        for op in program.ops
                    ],
                }
                for name, program in named
            ],
        }
    )
