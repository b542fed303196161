"""llama.cpp: its own llama-bench and llama-batched-bench where they are built, or else llama-cpp-python.

Flash attention is measured off and on. Flags and outputs: tools/llama-bench/README.md, tools/batched-bench/README.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import Adapter, Start, Unsupported

BATCH, UBATCH = 2048, 512
"""llama.cpp's defaults."""
SETTINGS = ("fa=0", "fa=1")


class Tools:
    """llama-bench, a process per run, with its own warm-up; and llama-batched-bench for several sequences."""

    settings = SETTINGS

    def __init__(self, start: Start, bench: Path) -> None:
        self._start = start
        self._bench = bench
        (row,) = self._json(["-p", "1", "-n", "0", "-fa", "1"])
        self.version = f"{row['build_commit']} ({bench.name})"
        kept = (
            "n_batch",
            "n_ubatch",
            "n_threads",
            "type_k",
            "type_v",
            "repack",
            "poll",
            "backends",
        )
        self.flags: Mapping[str, Any] = {key: row[key] for key in kept if key in row}

    def seconds(self, point: Case) -> dict[str, float]:
        """llama-bench for one sequence, llama-batched-bench for more."""
        return self._batched(point) if point.n_seqs > 1 else self._single(point)

    def _single(self, point: Case) -> dict[str, float]:
        if point.n_prompt and point.n_gen:
            test = ["-p", "0", "-n", "0", "-pg", f"{point.n_prompt},{point.n_gen}"]
        else:
            test = ["-p", str(point.n_prompt), "-n", str(point.n_gen)]
        depth = ["-d", str(point.n_depth)] if point.n_depth else []
        rows = self._json([*test, *depth, "-fa", "0,1"])
        return {f"fa={int(row['flash_attn'])}": row["samples_ns"][0] * 1e-9 for row in rows}

    def _json(self, options: list[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(
            _output([str(self._bench), *self._common(), *options, "-r", "1", "-o", "json"])
        )
        return rows

    def _common(self) -> list[str]:
        kv = self._start.kv_type
        return ["-m", self._start.model, "-t", str(self._start.threads), "-ctk", kv, "-ctv", kv]

    def _batched(self, point: Case) -> dict[str, float]:
        prompt, time = batched_test(point)
        tool = self._bench.with_name("llama-batched-bench")
        if not tool.exists():
            raise Unsupported(f"several sequences need llama-batched-bench beside {self._bench}")
        generate = max(1, point.n_gen)  # 0 would make it print numbers that are not JSON
        context = point.n_seqs * (prompt + generate)
        sizes = ["-c", str(context), "-b", str(BATCH), "-ub", str(UBATCH)]
        sizes += ["-npp", str(prompt), "-ntg", str(generate), "-npl", str(point.n_seqs)]
        found = {}
        for setting, flag in zip(SETTINGS, ("off", "on"), strict=True):
            command = [str(tool), *self._common(), *sizes, "-fa", flag, "--output-format", "jsonl"]
            found[setting] = batched_seconds(_output(command), time)
        return found


def batched_test(point: Case) -> tuple[int, str]:
    """(prompt tokens, the field that holds the seconds) of llama-batched-bench's test for a point."""
    if point.n_prompt and point.n_depth:
        raise Unsupported("llama-batched-bench has no prompt after a depth")
    if not point.n_prompt:
        if not point.n_depth:
            raise Unsupported("llama-batched-bench generates only after a prompt: give a depth")
        return point.n_depth, "t_tg"
    return point.n_prompt, "t" if point.n_gen else "t_pp"


def batched_seconds(output: str, field: str) -> float:
    """The seconds in llama-batched-bench's jsonl output, of one test. Raises ValueError for any other output."""
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(rows) != 1 or field not in rows[0]:
        raise ValueError(
            f"llama-batched-bench: expected one line with {field}, got {output!r:.200}"
        )
    return float(rows[0][field])


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = " ".join(done.stderr.split()[-40:])
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {last}")
    return done.stdout


def find_bench(path: str | None) -> Path | None:
    """llama-bench: `path` itself or in the folder `path`, or where PATH has one; None where there is none.

    Raises FileNotFoundError for a path that has none.
    """
    if path is None:
        found = shutil.which("llama-bench")
        return Path(found) if found else None
    given = Path(path)
    bench = given / "llama-bench" if given.is_dir() else given
    if not os.access(bench, os.X_OK):
        raise FileNotFoundError(f"{bench} is no program")
    return bench


def open_adapter(start: Start) -> Adapter:
    """See peers.Adapter. Raises ImportError where neither the tools nor llama-cpp-python is there."""
    bench = find_bench(start.path)
    if bench is not None:
        return Tools(start, bench)
    from cpuinfer.cli.peers.llama_cpp_python import Library

    return Library(start)
