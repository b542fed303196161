"""The ceilings: their cache, interpolation, levels, and what the measuring functions really do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from cpuinfer.machine import ceilings as module
from cpuinfer.machine.ceilings import (
    PEAKS,
    Ceilings,
    Effort,
    calibrate,
    ceilings,
    largest_set,
    last_level_cache,
    measure,
    team_levels,
    working_sets,
)
from cpuinfer.machine.cpu import Cache, cpu_name
from cpuinfer.machine.isa import levels, load

LEVELS = [level.name for level in levels() if level.runnable]
QUICK = Effort(seconds=1e-5, times=1)
SIZES = [1 << 13, 1 << 15]


class FakeMachine:
    """Memory of ones, and products that take no time; counts what it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def fill(self, address: int, n: int, threads: int, value: float) -> None:
        assert address % 64 == 0 and n % 128 == 0 and value == 1.0

    def read(self, address: int, n: int, threads: int, streams: int, repetitions: int) -> int:
        self.calls += 1
        assert address % 64 == 0 and n % 128 == 0
        time.sleep(1e-5)
        return n * repetitions

    def peak(self, kind: str, threads: int, repetitions: int) -> int:
        self.calls += 1
        time.sleep(1e-5)
        return 0 if kind == "int8" else 1000 * threads * repetitions


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "working_sets", lambda threads: [n * threads for n in SIZES])
    monkeypatch.setattr(module, "DEFAULT_EFFORT", QUICK)
    monkeypatch.setattr(module, "_QUIET", 0.0)  # a machine that sleeps is not busy
    return tmp_path / "ceilings.json"


def test_measured_once_for_each_machine_level_and_team(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = FakeMachine()
    first = ceilings(machine, machine, "avx2", 2)
    calls = machine.calls
    assert ceilings(machine, machine, "avx2", 2) == first
    assert machine.calls == calls
    for isa, threads in (("avx2", 1), ("scalar", 2)):
        ceilings(machine, machine, isa, threads)
        assert machine.calls > calls
        calls = machine.calls
    monkeypatch.setattr(module.cpu, "cpu_name", lambda: "another")
    ceilings(machine, machine, "avx2", 2)
    assert machine.calls > calls
    calls = machine.calls
    assert len(json.loads(cache.read_text())["machines"]) == 4
    ceilings(machine, machine, "avx2", 2, fresh=True)
    assert machine.calls > calls


def test_a_measurement_has_all_figures() -> None:
    machine = FakeMachine()
    found = measure(machine, machine, "avx2", 2, SIZES, QUICK)
    assert [size for size, _ in found.bandwidth] == SIZES
    assert found.peaks.keys() == PEAKS.keys()
    assert all(rate > 0 for rate in [r for _, r in found.bandwidth] + list(found.peaks.values()))
    assert found.bandwidth[0][1] >= found.bandwidth[1][1]
    assert (found.isa, found.threads) == ("avx2", 2)


def entry(**changed: object) -> dict[str, object]:
    whole: dict[str, object] = {
        "bandwidth": [[1024, 2e9], [4096, 1e9]],
        "peaks": dict.fromkeys(PEAKS, 1e9),
        "busy": False,
        "measured": 0.0,
    }
    return whole | changed


def text(version: object = 1, **changed: object) -> str:
    key = f"{cpu_name()}|avx2|2"
    return json.dumps({"version": version, "machines": {key: entry(**changed)}})


def test_a_whole_entry_is_read(cache: Path) -> None:
    cache.write_text(text())
    machine = FakeMachine()
    found = ceilings(machine, machine, "avx2", 2)
    assert not machine.calls
    assert found.bandwidth == ((1024, 2e9), (4096, 1e9))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "\0\xff",
        "[" * 100_000,
        '{"version": 1}',
        '{"version": 1, "machines": []}',
        text(version=0),
        text(bandwidth=[]),
        text(bandwidth=[[1024]]),
        text(bandwidth=[[1024, "fast"]]),
        text(bandwidth=[[1024, -1]]),
        text(bandwidth=[[1024, float("nan")]]),
        text(bandwidth=[[1024, float("inf")]]),
        text(bandwidth=[[1024, True]]),
        text(bandwidth=[[4096, 1e9], [1024, 1e9]]),
        text(bandwidth={"1024": 1e9}),
        text(peaks={}),
        text(peaks=dict.fromkeys(PEAKS, 0)),
        text(peaks=dict.fromkeys(PEAKS, None)),
        text(peaks=dict.fromkeys(PEAKS, 1e9) | {"x": 1e9}),
        text(busy=1),
        text(measured="now"),
        text(surplus=1),
    ],
)
def test_a_spoilt_cache_is_measured_again(cache: Path, content: str) -> None:
    cache.write_text(content, encoding="latin-1")
    machine = FakeMachine()
    ceilings(machine, machine, "avx2", 2)
    calls = machine.calls
    assert calls
    ceilings(machine, machine, "avx2", 2)
    assert machine.calls == calls


def test_what_a_busy_machine_gave_expires_and_replaces_nothing_better(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = FakeMachine()
    cache.write_text(text(busy=True, measured=time.time()))
    assert ceilings(machine, machine, "avx2", 2).busy
    assert not machine.calls
    cache.write_text(text(busy=True, measured=time.time() - 3600))
    assert not ceilings(machine, machine, "avx2", 2).busy
    assert machine.calls
    kept = cache.read_text()
    monkeypatch.setattr(module, "_QUIET", 1e9)
    assert ceilings(machine, machine, "avx2", 2, fresh=True).busy
    assert cache.read_text() == kept


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("CPUINFER_CACHE", str(blocked))
    machine = FakeMachine()
    assert ceilings(machine, machine, "avx2", 2).bandwidth


def made(**changed: object) -> Ceilings:
    fields: dict[str, object] = {
        "cpu": "cpu",
        "isa": "avx2",
        "threads": 2,
        "bandwidth": ((1 << 10, 8e9), (1 << 12, 4e9), (1 << 20, 1e9)),
        "peaks": dict.fromkeys(PEAKS, 1e11),
        "levels": (("L1", 1 << 11), ("L2", 1 << 14)),
    }
    return Ceilings(**(fields | changed))  # type: ignore[arg-type]


def test_bandwidth_between_and_beyond_the_sets() -> None:
    found = made()
    assert found.bandwidth_at(0) == found.bandwidth_at(1 << 10) == 8e9
    assert found.bandwidth_at(1 << 11) == pytest.approx(6e9)
    assert found.bandwidth_at(1 << 12) == 4e9
    assert found.bandwidth_at(1 << 20) == found.bandwidth_at(1 << 40) == 1e9
    assert made(bandwidth=((1024, 3.0),)).bandwidth_at(5) == 3.0


def test_levels_by_size() -> None:
    found = made()
    assert [found.level_of(n) for n in (0, 1 << 11, (1 << 11) + 1, 1 << 14, 1 << 15)] == [
        "L1",
        "L1",
        "L2",
        "L2",
        "DRAM",
    ]
    assert list(found.by_level()) == ["L1", "L2", "DRAM"]
    assert found.by_level()["L1"] == found.bandwidth_at(1 << 10)
    assert found.by_level()["DRAM"] == 1e9
    assert list(made(levels=()).by_level()) == ["DRAM"]
    json.dumps(found.as_json(), allow_nan=False)


def test_a_team_holds_private_caches_times_threads() -> None:
    caches = (Cache(1, 100, 2), Cache(2, 1000, 2), Cache(3, 10_000, 8))  # two threads to a core
    assert team_levels(caches, 1) == (("L1", 100), ("L2", 1000), ("L3", 10_000))
    assert team_levels(caches, 4) == (("L1", 400), ("L2", 4000), ("L3", 10_000))
    assert team_levels(caches, 5)[2] == ("L3", 20_000)
    assert team_levels((), 5) == ()


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_working_sets_ascend_in_whole_shares(threads: int) -> None:
    sizes = working_sets(threads)
    assert sizes == sorted(set(sizes))
    assert all(size % (512 * threads) == 0 for size in sizes)
    assert sizes[0] <= 16384 * threads
    assert sizes[-1] <= largest_set() + 512 * threads
    assert len(working_sets(threads, each=3)) > len(sizes)


def test_largest_set_is_bounded() -> None:
    assert 0 < largest_set() <= 1 << 30


def test_calibrate_repeats_until_it_takes_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: each repetition takes a microsecond, each call ten more."""
    now = 0.0
    asked: list[int] = []

    def work(n: int, team: int) -> float:
        nonlocal now
        assert team == 1
        asked.append(n)
        now += 1e-6 * n + 1e-5
        return n

    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    found = calibrate(work, 1e-3)
    assert 990 <= found <= 64 * 990
    assert asked == sorted(asked)
    assert asked[0] == 1
    assert calibrate(work, 0.0) == 1


def test_last_level_cache_adds_up_what_is_not_shared(tmp_path: Path) -> None:
    def add(cpu: int, index: int, level: int, size: str, shared: str) -> None:
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, content in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(content + "\n")

    for cpu in range(4):
        add(cpu, 2, 2, "512K", str(cpu))
        add(cpu, 3, 3, "32M", "0-1" if cpu < 2 else "2-3")
    assert last_level_cache(tmp_path) == 64 << 20
    assert last_level_cache(tmp_path / "nothing") == 0


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_float_is_filled_and_read(name: str, threads: int) -> None:
    library = load(name)
    n = 128 * 13
    x = np.zeros(n + 2, np.float32)
    inner = x[1:-1]
    library.fill(inner.ctypes.data, n, threads, 2.0)
    assert (inner == 2.0).all()
    assert x[0] == x[-1] == 0.0
    for streams in (1, 2, 4):
        assert library.read(inner.ctypes.data, n, threads, streams, 3) == 6 * n
        inner[:] = np.arange(n) % 251
        assert library.read(inner.ctypes.data, n, threads, streams, 1) == inner.sum()
        inner[:] = 2.0


@pytest.mark.parametrize("name", LEVELS)
def test_bad_arguments_are_named(name: str) -> None:
    library = load(name)
    x = np.zeros(256, np.float32)
    with pytest.raises(ValueError, match="100 floats"):
        library.fill(x.ctypes.data, 100, 1, 0.0)
    with pytest.raises(ValueError, match="100 floats"):
        library.read(x.ctypes.data, 100, 1, 1, 1)
    with pytest.raises(ValueError, match="3 streams"):
        library.read(x.ctypes.data, 128, 1, 3, 1)
    with pytest.raises(ValueError, match="'f64'"):
        library.peak("f64", 1, 1)


@pytest.mark.parametrize("name", LEVELS)
def test_peaks_count_operations_of_all_threads(name: str) -> None:
    library = load(name)
    for kinds in PEAKS.values():
        counts = {kind: library.peak(kind, 1, 1) for kind in kinds}
        assert max(counts.values()) > 0
        for kind, count in counts.items():
            assert library.peak(kind, 3, 5) == 15 * count


def test_a_real_measurement() -> None:
    library = load()
    found = measure(library, library, library.level, 2, SIZES, QUICK)
    assert all(rate > 0 for _, rate in found.bandwidth)
    assert all(rate > 0 for rate in found.peaks.values())
