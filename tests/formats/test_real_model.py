"""The real model: what we read is what `gguf` reads, and packing keeps it."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from cpuinfer.formats import dequantize, load_model, open_gguf
from cpuinfer.graph import r16k4
from cpuinfer.hub import ALIASES

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model_path() -> Path:
    path = Path(os.environ.get("CPUINFER_TEST_MODEL") or ALIASES["smollm2-135m"].path)
    if not path.is_file():
        pytest.skip(
            f"no model at {path}: run `cpuinfer pull smollm2-135m` or set CPUINFER_TEST_MODEL"
        )
    return path


def test_metadata_and_tensors_equal_those_of_gguf(model_path: Path) -> None:
    theirs = gguf.GGUFReader(model_path)
    ours = open_gguf(model_path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value = ours.metadata[key]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents()
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.type == tensor.tensor_type
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert np.array_equal(mine.data, tensor.data.view(np.uint8).reshape(-1))


def test_packed_weights_keep_their_values(model_path: Path, tmp_path: Path) -> None:
    packed = load_model(model_path, tmp_path)
    source = open_gguf(model_path)
    assert list(packed.weights) == list(source.tensors)
    for name, weight in packed.weights.items():
        if "blk." not in name or "blk.0." in name or "blk.29." in name:
            assert np.array_equal(r16k4.unpack(weight), dequantize(source.tensors[name])), name
    tokens = "tokenizer.ggml.tokens"
    assert packed.metadata[tokens] == source.metadata[tokens]
