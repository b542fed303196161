"""ISA levels: what this processor runs, and the native library of one level, loaded once.

The table is simd/isa.toml, installed beside the libraries; the signatures are native/api.h, read by cffi.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpuinfer
from cpuinfer.machine import selftest

ENVIRONMENT = "CPUINFER_ISA"
"""Names the level to use instead of the best one; empty counts as unset."""

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Level:
    """A level of this architecture. `features`: what it needs, its bases' needs first; `missing`: those that the
    processor or the operating system lacks; `library`: where its library is, None where it was not built; `measured`:
    whether it must be measured to be faster than the level before it; `refused`: the operating system's reason for not
    letting this process use it, empty where it does."""

    name: str
    features: tuple[str, ...]
    missing: tuple[str, ...]
    library: Path | None
    measured: bool = False
    refused: str = ""

    @property
    def runnable(self) -> bool:
        """Whether it can be loaded here."""
        return not self.missing and not self.refused and self.library is not None

    @property
    def why_not(self) -> str:
        """Why it is not runnable, in words; empty where it is."""
        if self.missing:
            return f"this processor lacks {', '.join(self.missing)}"
        if self.refused:
            return self.refused
        return "" if self.library else "its library was not built"


@dataclass(frozen=True)
class Choice:
    """A level and why it was taken, in words."""

    level: Level
    reason: str


@dataclass(frozen=True)
class Library:
    """A loaded level. `lib` has the functions of native/api.h, `ffi` their types."""

    level: str
    ffi: Any
    lib: Any

    def build_map(self) -> dict[str, str]:
        """Header -> the folder of simd/ that this level took it from."""
        text = self.ffi.string(self.lib.ci_build_map()).decode()
        return dict(line.split("\t") for line in text.splitlines())

    def fill(self, address: int, n: int, threads: int, value: float) -> None:
        """Write a value into the n floats at an address, `threads` threads each into its share of them.

        Raises ValueError unless n is a multiple of 128.
        """
        if self.lib.ci_fill(self.ffi.cast("float *", address), n, threads, value):
            raise ValueError(f"fill: {n} floats; it must be a multiple of 128")

    def read(self, address: int, n: int, threads: int, streams: int, repetitions: int) -> int:
        """Sum of n floats (whole numbers), times repetitions; each thread reads `streams` (1, 2, 4) runs side by side.

        Raises ValueError for other streams, or unless n is a multiple of 128.
        """
        floats = self.ffi.cast("float *", address)
        total = int(self.lib.ci_read(floats, n, threads, streams, repetitions))
        if total < 0:
            raise ValueError(f"read: {n} floats in {streams} streams; multiples of 128 in 1, 2, 4")
        return total

    def peak(self, kind: str, threads: int, repetitions: int) -> int:
        """Operations of a kind (api.h: f32, int4, int8, bf16_blocks, int4_blocks, int8_blocks) done by `threads` threads.

        0 where the level has no such sequence. Raises ValueError for an unknown kind.
        """
        number = getattr(self.lib, f"CI_PEAK_{kind.upper()}", None)
        if number is None:
            raise ValueError(f"peak: unknown kind {kind!r}")
        return int(self.lib.ci_peak(number, threads, repetitions))


def native_folder() -> Path:
    """The folder of the native libraries. Raises ValueError where none is installed."""
    for root in cpuinfer.__path__:
        folder = Path(root) / "_native"
        if (folder / "isa.toml").is_file():
            return folder
    raise ValueError(
        "no native library is installed beside the package; for the fastest kernels install a wheel of this platform, "
        "or with pip where there is a C compiler"
    )


@functools.cache
def processor_features() -> frozenset[str]:
    """Names, as in isa.toml, of what the processor has and the operating system has switched on."""
    return _names("ci_probe_features")


@functools.cache
def blocked_features() -> frozenset[str]:
    """Names of what the processor has and the operating system, or a virtual machine's host, has not switched on."""
    return _names("ci_probe_blocked")


def _names(function: str) -> frozenset[str]:
    ffi, lib = _probe()
    names = ffi.new("char[]", 4096)
    if getattr(lib, function)(names, len(names)) < 0:
        raise RuntimeError("the probe's feature names do not fit in its buffer")
    return frozenset(ffi.string(names).decode().split())


@functools.cache
def _refusal(feature: str) -> str:
    """Why this process may not use a feature that the processor has; empty where it may. Asks for leave, once."""
    _, lib = _probe()
    error = lib.ci_probe_permit(feature.encode())
    return f"the operating system refuses {feature}: {os.strerror(error)}" if error else ""


@functools.cache
def _probe() -> tuple[Any, Any]:
    folder = native_folder()
    ffi = _ffi(folder / "probe.h")
    return ffi, ffi.dlopen(str(folder / f"libcpuinfer_probe{_SUFFIX}"))


@functools.cache
def _table() -> dict[str, Any]:
    with (native_folder() / "isa.toml").open("rb") as file:
        return tomllib.load(file)


@functools.cache
def levels() -> tuple[Level, ...]:
    """Every level of this architecture, least first."""
    folder, table = native_folder(), _table()["level"]
    machine = platform.machine().lower()
    architecture = _ARCHITECTURES.get(machine, machine)
    entries = {entry["name"]: entry for entry in table if entry["architecture"] == architecture}
    present = processor_features()
    found = []
    for name, entry in entries.items():
        features = _features(entries, name)
        missing = tuple(feature for feature in features if feature not in present)
        path = folder / f"libcpuinfer_{name}{_SUFFIX}"
        library = path if path.is_file() else None
        refusals = [] if missing else [_refusal(feature) for feature in features]
        refused = next(filter(None, refusals), "")
        measured = entry.get("when") == "measured"
        found.append(Level(name, features, missing, library, measured, refused))
    return tuple(found)


@functools.cache
def fetch_ahead() -> tuple[int, int]:
    """Bytes, `stream` and `tile`, that products of few tokens fetch ahead on this processor: ci_program.fetch_ahead."""
    present = processor_features()
    known = [entry for entry in _table()["fetch_ahead"] if present.issuperset(entry["features"])]
    return int(known[-1]["stream"]), int(known[-1]["tile"])


def choose(name: str | None = None) -> Level:
    """The level of that name; without one, that of $CPUINFER_ISA; without that, the best.

    Raises ValueError for a level that is unknown, cannot run here or fails its self-test: it says why, and names
    those that can run.
    """
    source = "isa" if name else ENVIRONMENT
    name = name or os.environ.get(ENVIRONMENT) or None
    if name is None:
        return best().level
    names = ", ".join(level.name for level in levels() if level.runnable) or "none"
    for level in levels():
        if level.name == name and (why := level.why_not or problem(level)):
            raise ValueError(f"{source}: level {name!r} cannot run: {why}; can run: {names}")
        if level.name == name:
            return level
    raise ValueError(f"{source}: unknown level {name!r}; can run here: {names}")


def best() -> Choice:
    """The last level that runs here and passes its self-test; one to be measured only where it is faster than what it
    would replace. Warns of every level that it refuses.

    Raises ValueError where no level is left.
    """
    found = _best([level for level in levels() if level.runnable])
    if found is None:
        why = [f"{level.name}: {level.why_not or problem(level)}" for level in levels()]
        raise ValueError(
            f"no ISA level runs on this processor ({'; '.join(why) or 'none is known'})"
        )
    return found


def _best(runnable: Sequence[Level]) -> Choice | None:
    if not runnable:
        return None
    *lower, level = runnable
    if why := problem(level):
        found = _best(lower)
        _warn(level.name, why, found.level.name if found else None)
        return found
    other = _best(lower) if level.measured else None
    if other is None:
        return Choice(level, "the highest that runs here")
    from cpuinfer.machine.contest import compare

    seconds = compare(untested(other.level), untested(level))
    times = f"{other.level.name} {seconds[0] * 1e6:.0f} us, {level.name} {seconds[1] * 1e6:.0f} us"
    winner = level if seconds[1] < seconds[0] else other.level
    return Choice(winner, f"the faster one in a bf16 product: {times}")


@functools.cache
def _warn(level: str, why: str, instead: str | None) -> None:
    """Once per process."""
    from cpuinfer.machine.cpu import cpu_name

    used = f"using {instead!r}" if instead else "no other level is left"
    warnings.warn(
        f"the ISA level {level!r} is not used: {why}; {used}. Answers stay right, but may come slower. Please "
        f"report this with the output of `cpuinfer doctor --json` (processor: {cpu_name()})",
        RuntimeWarning,
        stacklevel=2,
    )


@functools.cache
def self_test(level: Level) -> selftest.SelfTest:
    """The self-test of a runnable level; each is run once. Raises ValueError as `untested` does."""
    return selftest.run(untested(level))


def problem(level: Level) -> str:
    """Why a level with a library must not be used, in words: it does not load, or fails its self-test; else empty."""
    try:
        return self_test(level).problem
    except ValueError as error:
        return str(error)


def load(name: str | None = None) -> Library:
    """The library of a level, chosen as `choose` does; each is loaded and tested once.

    Raises ValueError as `choose` does.
    """
    return untested(choose(name))


@functools.cache
def untested(level: Level) -> Library:
    """The library of a runnable level, whatever its self-test says. Raises ValueError where it does not load."""
    ffi = _ffi(native_folder() / "api.h")
    try:
        return Library(level.name, ffi, ffi.dlopen(str(level.library)))
    except OSError as error:
        raise ValueError(f"its library does not load: {error}") from error


@functools.cache
def _ffi(header: Path) -> Any:
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(header.read_text())
    return ffi


def _features(entries: dict[str, dict[str, Any]], name: str) -> tuple[str, ...]:
    entry = entries[name]
    own = (entry["architecture"],) if "base" not in entry else _features(entries, entry["base"])
    return (*own, *entry["features"])
