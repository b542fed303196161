"""The process of one engine: `python -m cpuinfer.cli.peers.serve NAME`, JSON lines on stdin and stdout."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.peers import PEERS, Adapter, Start, Unsupported


def serve(name: str, requests: IO[str], answer: Callable[[Mapping[str, Any]], None]) -> None:
    """Open the engine with the first request, then run a point for each that follows."""
    peer = PEERS[name]
    try:
        start = Start.of(json.loads(requests.readline()))
        module = importlib.import_module(f"cpuinfer.cli.peers.{peer.module}")
        adapter: Adapter = module.open_adapter(start)
    except (ImportError, FileNotFoundError) as error:
        answer({"error": f"{name} is not there ({error}): {peer.remedy}"})
        return
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{name} does not open the model: {type(error).__name__}: {error}"})
        return
    answer({k: getattr(adapter, k) for k in ("version", "settings", "flags")})
    for line in requests:
        answer(_run(name, adapter, Case(**json.loads(line)["point"])))


def _run(name: str, adapter: Adapter, point: Case) -> Mapping[str, Any]:
    try:
        return {"seconds": adapter.seconds(point)}
    except Unsupported as error:
        return {"unsupported": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{name}, {point.label}: {type(error).__name__}: {error}"}


def answers() -> Callable[[Mapping[str, Any]], None]:
    """Keep stdout for answers: whatever else is printed from now on goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: Mapping[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    return answer


def main() -> None:
    """Serve the engine that the command line names."""
    (name,) = sys.argv[1:]
    serve(name, sys.stdin, answers())


if __name__ == "__main__":
    main()
