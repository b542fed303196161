"""Model files: GGUF read as untrusted input, the packed file, and the cache that makes one from the
other.
"""

from cpuinfer.formats.cache import load_model
from cpuinfer.formats.gguf import GGUFFile, GGUFTensor, open_gguf, read_metadata
from cpuinfer.formats.header import FormatError
from cpuinfer.formats.packed import PackedModel, open_packed
from cpuinfer.formats.packer import pack
from cpuinfer.formats.quant_types import dequantize

__all__ = [
    "FormatError",
    "GGUFFile",
    "GGUFTensor",
    "PackedModel",
    "dequantize",
    "load_model",
    "open_gguf",
    "open_packed",
    "pack",
    "read_metadata",
]
