"""Writes the folder that --peer ctranslate2=FOLDER takes, from a GGUF file: by transformers, which expands the weights, and
the converter of CTranslate2, which quantises them to int8 with a scale a row.

    pip install ctranslate2 torch transformers gguf
    python benchmarks/peers/ctranslate2_int8.py MODEL.gguf FOLDER
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ctranslate2.converters import TransformersConverter
from hf_folder import save


def main() -> None:
    """GGUF -> a folder of transformers' -> a folder of CTranslate2's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        save(args.model, Path(temporary))
        TransformersConverter(temporary).convert(str(args.folder), quantization="int8", force=True)


if __name__ == "__main__":
    main()
