"""Is the default number of threads right? Speed by threads under cgroup quotas, a cpuset of one processor, beside processes
that keep processors busy, and none. `auto` is the device as it comes, which may run fewer threads while others are busy.

Needs Linux, root and a cgroup with the controllers cpu and cpuset (version 1 or 2), in which it makes groups of its own
and removes them. Rounds are interleaved; the machine should have nothing else to do: what others used is reported.

    python benchmarks/threads.py MODEL.gguf --quota 0.5 1 1.5 --busy 1 2 --threads 1 2 4 --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
NAME = f"cpuinfer-bench-{os.getpid()}"
AUTO = "auto"


@contextmanager
def group(quota: float | None, cpus: str | None) -> Iterator[list[Path]]:
    """Folders of cgroups with these limits, of this benchmark alone. Raises OSError where none may be made."""
    first = (CGROUPS / "cpu").is_dir()
    folders: list[Path] = []
    try:
        if quota is not None:
            folders.append(_make(CGROUPS / "cpu" if first else CGROUPS))
            limit = round(quota * PERIOD_US)
            if first:
                (folders[-1] / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (folders[-1] / "cpu.cfs_quota_us").write_text(str(limit))
            else:
                (folders[-1] / "cpu.max").write_text(f"{limit} {PERIOD_US}")
        if cpus is not None:
            root = CGROUPS / "cpuset" if first else CGROUPS
            folders.append(_make(root))
            if first:
                (folders[-1] / "cpuset.mems").write_text((root / "cpuset.mems").read_text())
            (folders[-1] / "cpuset.cpus").write_text(cpus)
        yield folders
    finally:
        for folder in folders:
            folder.rmdir()


def _make(root: Path) -> Path:
    folder = root / NAME
    folder.mkdir()
    return folder


def inside(options: argparse.Namespace) -> dict[str, Any]:
    """What runs in the group: the default, and tokens per second of each number of threads."""
    from cpuinfer.cli.bench_run import Runner
    from cpuinfer.cli.bench_spec import Case
    from cpuinfer.graph.dtypes import KVType
    from cpuinfer.machine.cpu import default_threads

    prompt, block = 128, 16
    case = Case(prompt, 8 * block, 0, 1)
    default = default_threads()
    runners = {
        str(n or AUTO): Runner(options.model, [case], n, options.isa, "native", KVType.F16, prompt)
        for n in (*sorted(set(options.threads)), None)
    }
    found: dict[str, dict[str, list[float]]] = {
        phase: {n: [] for n in runners} for phase in ("decode", "prefill")
    }
    for _ in range(options.rounds):
        for phase, n in ((phase, n) for phase in found for n in runners):
            runner = runners[n]
            begin, tokens = time.perf_counter(), 0
            while (seconds := time.perf_counter() - begin) < options.seconds:
                if phase == "prefill":
                    runner.prefill(0, prompt, 1)
                    tokens += prompt
                else:
                    runner.decode(prompt + tokens % (7 * block), block, 1)
                    tokens += block
            found[phase][n].append(tokens / seconds)
    return {"default": default.count, "reason": default.reason, "samples": found}


def busy_seconds() -> float:
    """CPU seconds of all processes of the machine so far, and those that its host took away."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process's ended children so far."""
    times = os.times()
    return times.children_user + times.children_system


@contextmanager
def rivals(n: int) -> Iterator[None]:
    """n processes that keep a processor busy each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(
    options: argparse.Namespace, quota: float | None, cpus: str | None, others_busy: int = 0
) -> dict[str, Any]:
    """A run of `inside` under these limits."""
    with group(quota, cpus) as folders, rivals(others_busy):

        def enter() -> None:
            for folder in folders:
                (folder / "cgroup.procs").write_text(str(os.getpid()))

        words = [sys.executable, __file__, "--inside", *sys.argv[1:]]
        begin, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
        environment = {k: v for k, v in os.environ.items() if k != "CPUINFER_THREADS"}
        done = subprocess.run(
            words, capture_output=True, text=True, preexec_fn=enter, env=environment
        )
        others = busy_seconds() - busy - (own_seconds() - own)
        others /= time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"the run under a limit failed: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    limit = "none" if quota is None else f"quota {quota:g}"
    if cpus is not None:
        limit = f"cpuset {cpus}"
    if others_busy:
        limit = f"{others_busy} busy"
    return {"limit": limit, "others": others, **found}


def rows(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line of a table for each limit and phase; medians, and what the default reached of the best."""
    yield "| limit | phase | tokens/s by threads | default: at most | of the best | processors that others used |"
    yield "|---|---|---|---|---:|---:|"
    for run in found:
        for phase, by_threads in run["samples"].items():
            medians = {n: statistics.median(s) for n, s in by_threads.items()}
            share = medians[AUTO] / max(speed for n, speed in medians.items() if n != AUTO)
            cells = (
                run["limit"],
                phase,
                ", ".join(f"{n}: {speed:.1f}" for n, speed in medians.items()),
                f"{run['default']} ({run['reason']})",
                f"{100 * share:.0f} %",
                f"{run['others']:.2f}",
            )
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2, 4], metavar="N")
    parser.add_argument("--quota", nargs="*", type=float, default=[0.5, 1, 1.5], metavar="CPUS")
    parser.add_argument("--cpuset", nargs="*", default=["0"], metavar="LIST")
    parser.add_argument("--busy", nargs="*", type=int, default=[], metavar="PROCESSES")
    parser.add_argument("--no-limit", action="store_true", help="also without any limit")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a sample, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--isa")
    parser.add_argument("--json", type=Path, help="write the samples here")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options)))
        return
    from cpuinfer.cli.bench_machine import git_commit, machine

    limits = [(None, None)] * int(options.no_limit) + [(q, None) for q in options.quota]
    found = [measure(options, *limit) for limit in [*limits, *((None, c) for c in options.cpuset)]]
    found += [measure(options, None, None, n) for n in options.busy]
    print("\n".join(rows(found)))
    if options.json:
        report = {
            "machine": machine(),
            "git_commit": git_commit(),
            "model": options.model.name,
            "runs": found,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
