"""This engine's Program on its device: random tokens and no sampling, as llama-bench measures its own."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from cpuinfer.cli.bench_run import Runner
from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.output import version
from cpuinfer.cli.peers import Start
from cpuinfer.graph.dtypes import KVType


class Ours:
    """A Runner that is warmed up before every run, as each llama-bench process is."""

    def __init__(self, start: Start) -> None:
        self._runner = Runner(
            Path(start.model),
            list(start.points),
            start.threads,
            start.isa,
            "native",
            KVType(start.kv_type),
            start.ubatch,
        )
        self.version = version()
        self.flags = {**self._runner.describe(), "model_filename": Path(start.model).name}
        self.settings = (str(self.flags["isa"]),)

    def seconds(self, point: Case) -> dict[str, float]:
        """One run; the depth is computed anew, since other points may have written over it."""
        self._runner.prefill(0, point.n_depth, point.n_seqs)
        self._runner.warm_up(point)
        begin = perf_counter()
        self._runner.run(point)
        return {self.settings[0]: perf_counter() - begin}


def open_adapter(start: Start) -> Ours:
    """See peers.Adapter."""
    return Ours(start)
