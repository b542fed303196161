"""Engines that `bench --peer` measures, each in a process of its own that speaks JSON lines on stdin and stdout.

The parent sends a Start as an object; the engine answers {"version", "settings", "flags"}. Then {"point": {...}} asks for
one run of a bench_spec.Case; the answer is {"seconds": {setting: seconds}}, or {"unsupported": why}. {"error": what} may
answer anything. The end of stdin ends the process. What seconds mean is the same for all: after `n_depth` tokens of each
sequence, which are not timed, and a warm-up, the time of n_prompt tokens at once and n_gen tokens one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cpuinfer.cli.bench_spec import Case

OURS = "cpuinfer"
LIMIT = "limit"
"""What the machine could do at most, measured among the engines."""


@dataclass(frozen=True)
class Peer:
    """An engine: the module of its adapter, and how to get it where it is missing."""

    module: str
    remedy: str


PEERS = {
    OURS: Peer("ours", "pip install cpuinfer"),
    LIMIT: Peer("machine_limit", "pip install cpuinfer"),
    "cpuinfer-engine": Peer("ours_engine", "pip install cpuinfer"),
    "llama.cpp": Peer(
        "llama_cpp",
        "build it with benchmarks/peers/llama_cpp.sh FOLDER and give --peer llama.cpp=FOLDER, or pip install "
        "llama-cpp-python",
    ),
    "transformers": Peer("transformers", "pip install torch transformers gguf"),
    "openvino-genai": Peer("openvino_genai", "pip install openvino-genai"),
    "onnxruntime-genai": Peer(
        "onnxruntime_genai",
        "pip install onnxruntime-genai, make a folder with benchmarks/peers/onnxruntime_genai.py and give "
        "--peer onnxruntime-genai=FOLDER",
    ),
    "ctranslate2": Peer(
        "ctranslate2",
        "pip install ctranslate2, make a folder with benchmarks/peers/ctranslate2_int8.py and give "
        "--peer ctranslate2=FOLDER",
    ),
}
"""By the name that --peer takes."""


@dataclass(frozen=True)
class Start:
    """What an engine is opened with. path: what follows the = of --peer NAME=PATH; points: all that will be asked for;
    isa and ubatch (tokens of a step of a prompt) are for ours."""

    model: str
    threads: int
    points: tuple[Case, ...]
    kv_type: str = "f16"
    path: str | None = None
    isa: str | None = None
    ubatch: int = 512

    @property
    def context(self) -> int:
        """Positions that the longest point needs."""
        return max(point.context for point in self.points)

    @property
    def n_seqs(self) -> int:
        """Sequences of the widest point."""
        return max(point.n_seqs for point in self.points)

    @staticmethod
    def of(sent: Mapping[str, Any]) -> Start:
        """The object as it was sent."""
        points = tuple(Case(**point) for point in sent["points"])
        return Start(**{**sent, "points": points})


class Unsupported(ValueError):
    """A point that an engine cannot run, or not so that its time would mean the same."""


class Adapter(Protocol):
    """An open engine."""

    @property
    def version(self) -> str:
        """Of the engine."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The ways in which it is measured; the best at each point counts."""

    @property
    def flags(self) -> Mapping[str, Any]:
        """What else a reader must know to repeat it."""

    def seconds(self, point: Case) -> dict[str, float]:
        """One run of the point with each setting. Raises Unsupported."""
