"""The self-test of a level: every kernel on known numbers, when its library is loaded and before anything relies on it.

What the kernels must write is the same on every level (docs/design.md, sections 3 and 4), so that its hashes, recorded
from the scalar level, hold on every machine. `python -m cpuinfer.machine.selftest` prints them anew, for a change of the
numerics or a new case in native/selftest.c: it goes to known_answers.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpuinfer.machine.known_answers import ANSWERS

if TYPE_CHECKING:
    from cpuinfer.machine.isa import Library


@dataclass(frozen=True)
class SelfTest:
    """What the self-test of a level found. `failed`: the cases whose answers were wrong, in order; seconds: it took."""

    level: str
    cases: int
    failed: tuple[str, ...]
    seconds: float

    @property
    def problem(self) -> str:
        """What failed, in words; empty where nothing did."""
        if not self.failed:
            return ""
        names = ", ".join(self.failed[:3]) + (", ..." if len(self.failed) > 3 else "")
        return f"{len(self.failed)} of {self.cases} kernels gave wrong answers in the self-test ({names})"


def answers(library: Library) -> Iterator[tuple[str, int]]:
    """Name and hash of every case, as the level computes it now; a hash of 0 is a refusal."""
    ffi, lib = library.ffi, library.lib
    memory = ffi.new("char[]", lib.ci_selftest_bytes())
    index = 0
    while (name := lib.ci_selftest_name(index)) != ffi.NULL:
        yield ffi.string(name).decode(), int(lib.ci_selftest_run(index, memory))
        index += 1


def run(library: Library, known: Mapping[str, int] = ANSWERS) -> SelfTest:
    """Compare every case's answer with the known one. A case without one has failed, and so has one that is missing."""
    begin = time.perf_counter()
    found = dict(answers(library))
    failed = [name for name, value in found.items() if known.get(name) != value]
    failed += [name for name in known if name not in found]
    return SelfTest(library.level, len(found), tuple(failed), time.perf_counter() - begin)


def as_module(found: Mapping[str, int]) -> str:
    """The text of known_answers.py for these answers."""
    lines = "".join(f'    "{name}": 0x{value:016X},\n' for name, value in found.items())
    return (
        '"""What the cases of native/selftest.c must answer. Written by `python -m cpuinfer.machine.selftest`."""\n\n'
        f"ANSWERS = {{\n{lines}}}\n"
    )


def main() -> None:
    """Print known_answers.py as the scalar level of this machine computes it."""
    from cpuinfer.machine import isa

    print(as_module(dict(answers(isa.untested(isa.levels()[0])))), end="")


if __name__ == "__main__":
    main()
