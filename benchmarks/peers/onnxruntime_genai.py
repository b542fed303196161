"""Writes the folder that --peer onnxruntime-genai=FOLDER takes, from a GGUF file: by transformers, which expands the
weights, and the model builder of onnxruntime-genai, which quantises them to 4 bits in blocks of 32 (accuracy level 4:
products in int8). Logits are made for the last token of a prompt only.

    pip install onnxruntime-genai onnx onnx-ir torch transformers gguf
    python benchmarks/peers/onnxruntime_genai.py MODEL.gguf FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from hf_folder import save

OPTIONS = ("block_size=32", "accuracy_level=4", "prune_lm_head=true")


def main() -> None:
    """GGUF -> a folder of transformers' -> a folder of onnxruntime-genai's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        save(args.model, Path(temporary))
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        kinds = ["-p", "int4", "-e", "cpu", "--extra_options", *OPTIONS]
        command = [*builder, "-i", temporary, "-o", str(args.folder), *kinds]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
