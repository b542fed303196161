"""Measures what this machine can do at most: read bandwidth by working set and threads, and the peaks of every level.

Prints a table, or JSON with --json. Longer and finer than what `cpuinfer doctor` measures; keeps nothing. A figure is
the best of --times samples of at least --seconds; the machine should have nothing else to do.

    python benchmarks/machine.py --threads 1 2 --level avx2 --seconds 0.02 --times 20
"""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

from cpuinfer.machine.ceilings import PEAKS, Ceilings, Effort, measure, working_sets
from cpuinfer.machine.cpu import cpu_name, default_threads
from cpuinfer.machine.isa import best, levels, load


def main() -> None:
    runnable = [level.name for level in levels() if level.runnable]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    count = default_threads().count
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, count}), metavar="N")
    parser.add_argument("--level", nargs="+", default=[best()], choices=runnable)
    parser.add_argument("--seconds", type=float, default=0.01, help="of a sample, at least")
    parser.add_argument("--times", type=int, default=15, help="samples of each figure")
    parser.add_argument("--sets", type=int, default=2, help="working sets for each doubling")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args()
    effort = Effort(options.seconds, options.times)
    reader, found = load(best()), []
    for threads in options.threads:
        sizes = working_sets(threads, options.sets)
        for level in options.level:
            found.append(measure(load(level), reader, level, threads, sizes, effort))
    if options.json:
        print(json.dumps(report(found, options), indent=1))
        return
    print(f"{cpu_name()} ({platform.machine()}), kernel {platform.release()}")
    for one in found:
        print_table(one)


def report(found: list[Ceilings], options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, and how."""
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "seconds": options.seconds,
        "times": options.times,
        "ceilings": [one.as_json() for one in found],
    }


def print_table(found: Ceilings) -> None:
    """Peaks, then the bandwidth of every working set and the level of memory that holds it."""
    busy = "; others used the processors meanwhile, so all is too low" if found.busy else ""
    print(f"\n{found.isa}, {found.threads} threads{busy}")
    for name in PEAKS:
        print(f"{name + ' peak':>12} {1e-9 * found.peaks[name]:9.1f} GOP/s")
    for size, rate in found.bandwidth:
        print(f"{size / 1024:8.0f} KiB {1e-9 * rate:9.1f} GB/s  {found.level_of(size)}")


if __name__ == "__main__":
    main()
