"""The bandwidth's cache, the working set, and bytes per token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_gguf import LAYERS

from cpuinfer.machine import roofline
from cpuinfer.machine.roofline import read_bandwidth


class Reader:
    """Stands in for ci_read_words over words that are all one; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, address: int, n: int, threads: int, repetitions: int) -> int:
        self.calls += 1
        assert address % 8 == 0
        return n * repetitions


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    monkeypatch.setattr(roofline, "working_set", lambda: 1 << 16)
    return tmp_path / "roofline.json"


def test_measured_once_for_each_machine_level_and_team(cache: Path) -> None:
    reader = Reader()
    first = read_bandwidth(reader, "cpu", "avx2", 2)
    calls = reader.calls
    assert first > 0
    assert read_bandwidth(reader, "cpu", "avx2", 2) == first
    assert reader.calls == calls
    for other in (("cpu", "avx2", 1), ("cpu", "scalar", 2), ("other", "avx2", 2)):
        read_bandwidth(reader, *other)
    assert reader.calls == 4 * calls
    assert len(json.loads(cache.read_text())) == 4
    read_bandwidth(reader, "cpu", "avx2", 2, fresh=True)
    assert reader.calls == 5 * calls


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"cpu|avx2|2": "fast"}',
        '{"cpu|avx2|2": -1}',
        '{"cpu|avx2|2": NaN}',
        "\0\xff",
    ],
)
def test_a_spoilt_cache_is_measured_again(cache: Path, content: str) -> None:
    cache.write_text(content, encoding="latin-1")
    reader = Reader()
    measured = read_bandwidth(reader, "cpu", "avx2", 2)
    assert reader.calls
    assert json.loads(cache.read_text()) == {"cpu|avx2|2": measured}


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("CPUINFER_CACHE", str(blocked))
    assert read_bandwidth(Reader(), "cpu", "avx2", 2) > 0


def test_last_level_cache_adds_up_what_is_not_shared(tmp_path: Path) -> None:
    def add(cpu: int, index: int, level: int, size: str, shared: str) -> None:
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(text + "\n")

    for cpu in range(4):
        add(cpu, 2, 2, "512K", str(cpu))
        add(cpu, 3, 3, "32M", "0-1" if cpu < 2 else "2-3")
    assert roofline.last_level_cache(tmp_path) == 64 << 20
    assert roofline.last_level_cache(tmp_path / "nothing") == 0


def test_working_set_is_bounded() -> None:
    assert 0 < roofline.working_set() <= 1 << 30
    assert roofline.working_set() % 4096 == 0


def test_decode_bytes_are_weights_and_keys(tiny_model: Path, cache: Path) -> None:
    from cpuinfer.cli.limit import decode_bytes
    from cpuinfer.cli.load import load_program
    from cpuinfer.graph.dtypes import KVType

    packed, program = load_program(tiny_model)
    weights = sum(
        weight.data.nbytes for weight in packed.weights.values()
    )  # the embedding is the output too
    token = 2 * LAYERS * 2 * 16 * 2
    assert decode_bytes(program, KVType.F16, 0) == weights
    assert decode_bytes(program, KVType.F16, 100) == weights + 100 * token
    assert decode_bytes(program, KVType.F32, 100) == weights + 200 * token
    assert decode_bytes(program, KVType.F16, 100, n_seqs=4) == weights / 4 + 100 * token
