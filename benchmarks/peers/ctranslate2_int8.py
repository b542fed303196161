"""Writes the folder that --peer ctranslate2=FOLDER takes, from a GGUF file: by transformers, which expands the weights, and
the converter of CTranslate2, which quantises them to int8 with a scale a row.

    pip install ctranslate2 torch transformers gguf
    python benchmarks/peers/ctranslate2_int8.py MODEL.gguf FOLDER
"""

from __future__ import annotations

from ctranslate2.converters import TransformersConverter
from hf_folder import run


def convert(source: str, folder: str) -> None:
    """A folder of transformers' -> one of CTranslate2's."""
    TransformersConverter(source).convert(folder, quantization="int8", force=True)


if __name__ == "__main__":
    run(__doc__, convert)
