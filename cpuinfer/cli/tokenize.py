"""`cpuinfer tokenize`: text to token ids."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cpuinfer.cli.options import Json, Model


def tokenize(
    model: Model,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Default: stdin.")] = None,
    no_special: Annotated[
        bool,
        typer.Option(
            "--no-special", help="Add no begin or end token, and read special tokens as plain text."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Print the token ids of a text, with the piece of text that each stands for."""
    from cpuinfer import hub
    from cpuinfer.cli.output import print_json
    from cpuinfer.formats import read_metadata
    from cpuinfer.text import Tokenizer

    if text is None:
        text = sys.stdin.read()
    tokenizer = Tokenizer.from_gguf(read_metadata(hub.resolve(model, progress=True)))
    ids = tokenizer.encode(text, add_special=not no_special, parse_special=not no_special)
    pieces = [tokenizer.token_bytes(token).decode(errors="replace") for token in ids]
    if json:
        print_json({"model": model, "tokens": ids, "pieces": pieces, "count": len(ids)})
        return
    for token, piece in zip(ids, pieces, strict=True):
        print(f"{token:>8}  {piece!r}")
