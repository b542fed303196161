"""A folder of transformers' from a GGUF file, for the peers whose converters read nothing else. transformers expands the
weights to f32."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def save(model: Path, folder: Path) -> None:
    """Write weights, config and tokenizer of the GGUF file `model` into `folder`."""
    where = {"gguf_file": model.name, "local_files_only": True}
    net = AutoModelForCausalLM.from_pretrained(str(model.parent), dtype=torch.float32, **where)
    if quantizer := getattr(net, "hf_quantizer", None):  # transformers 5: with it, nothing is saved
        quantizer.remove_quantization_config(net)
    net.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(model.parent), **where).save_pretrained(str(folder))


def run(description: str | None, convert: Callable[[str, str], None]) -> None:
    """A script of two arguments: GGUF file -> a folder of transformers' -> what `convert` makes of it in a folder."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        save(args.model, Path(temporary))
        convert(temporary, str(args.folder))
