"""Writes the folder that --peer onnxruntime-genai=FOLDER takes, from a GGUF file: by transformers, which expands the
weights, and the model builder of onnxruntime-genai, which quantises them to 4 bits in blocks of 32 (accuracy level 4:
products in int8). Logits are made for the last token of a prompt only.

    pip install onnxruntime-genai onnx onnx-ir torch transformers gguf
    python benchmarks/peers/onnxruntime_genai.py MODEL.gguf FOLDER
"""

from __future__ import annotations

import subprocess
import sys

from hf_folder import run

OPTIONS = ("block_size=32", "accuracy_level=4", "prune_lm_head=true")


def convert(source: str, folder: str) -> None:
    """A folder of transformers' -> one of onnxruntime-genai's."""
    builder = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder"]  # -P: not this file
    kinds = ["-p", "int4", "-e", "cpu", "--extra_options", *OPTIONS]
    subprocess.run([*builder, "-i", source, "-o", folder, *kinds], check=True)


if __name__ == "__main__":
    run(__doc__, convert)
