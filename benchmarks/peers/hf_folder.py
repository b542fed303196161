"""A folder of transformers' from a GGUF file, for the peers whose converters read nothing else. transformers expands the
weights to f32."""

from __future__ import annotations

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
