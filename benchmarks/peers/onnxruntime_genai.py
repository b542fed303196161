"""Writes the folder that --peer onnxruntime-genai=FOLDER takes, from a GGUF file: by transformers, which expands the
weights, and the model builder of onnxruntime-genai, which quantises them to 4 bits in blocks of 32 (accuracy level 4:
products in int8).

    pip install onnxruntime-genai onnx onnx-ir torch transformers gguf
    python benchmarks/peers/onnxruntime_genai.py MODEL.gguf FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

OPTIONS = ("int4_block_size=32", "int4_accuracy_level=4")


def main() -> None:
    """GGUF -> a folder of transformers' -> a folder of onnxruntime-genai's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    where = {"gguf_file": args.model.name, "local_files_only": True}
    with tempfile.TemporaryDirectory() as temporary:
        model = AutoModelForCausalLM.from_pretrained(
            str(args.model.parent), dtype=torch.float32, **where
        )
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(str(args.model.parent), **where).save_pretrained(temporary)
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        kinds = ["-p", "int4", "-e", "cpu", "--extra_options", *OPTIONS]
        command = [*builder, "-i", temporary, "-o", str(args.folder), *kinds]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
