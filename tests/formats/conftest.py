"""Small GGUF files, written by the `gguf` library."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType

Tensors = Iterable[tuple[str, WeightType, tuple[int, ...], NDArray[np.uint8]]]


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """write(tensors, name="model.gguf", **metadata) -> path of a GGUF file (llama)."""

    def write(tensors: Tensors = (), name: str = "model.gguf", **metadata: object) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "Ġthe", "\u4e16"])
        for key, value in metadata.items():
            writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
        for tensor_name, kind, shape, data in tensors:
            row_bytes = shape[-1] // kind.block[0] * kind.block[1]
            array = np.ascontiguousarray(data).reshape(*shape[:-1], row_bytes)
            writer.add_tensor(tensor_name, array, raw_dtype=gguf.GGMLQuantizationType(kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
