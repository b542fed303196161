"""A load on llama.cpp's server: a process of its own on the loopback, a thread and a connection for each request."""

from __future__ import annotations

import http.client
import json
import math
import queue
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from serving_load import Item
from serving_run import Arrivals, Due

HOST = "127.0.0.1"
START_S = 300.0
REQUEST_S = 3600.0
SETTINGS = {"fa=on": ["-fa", "on"], "fa=off": ["-fa", "off"]}
BATCH, UBATCH = 2048, 512
"""llama.cpp's defaults."""


class Server:
    """llama-server with `size` slots of `context` tokens each, until its end; a context manager.

    Continuous batching and the reuse of prompts are its defaults and stay on. Raises RuntimeError where it does not
    start.
    """

    def __init__(
        self,
        program: Path,
        model: Path,
        size: int,
        context: int,
        threads: int,
        kv_type: str,
        more: Sequence[str],
    ) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = int(free.getsockname()[1])
        self.command = [str(program), "-m", str(model), "--host", HOST, "--port", str(self.port)]
        self.command += ["-np", str(size), "-c", str(size * context), "-t", str(threads)]
        self.command += ["-tb", str(threads), "-b", str(BATCH), "-ub", str(UBATCH), "-ctk", kv_type]
        self.command += ["-ctv", kv_type, *more]
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (until close)
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> Self:
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        self._log.seek(0)
        words = " ".join(self._log.read().split()[-40:])
        raise RuntimeError(f"{self.command[0]} does not answer: {words}")


def version(program: Path) -> str:
    """What the program says of itself."""
    done = subprocess.run(
        [str(program), "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return next((line for line in lines if "version" in line), lines[-1] if lines else "unknown")


def complete(port: int, prompt: Sequence[int], n: int) -> Iterator[list[int]]:
    """The tokens of a completion, greedy and of n tokens, as they come.

    Raises RuntimeError for any other answer, OSError where none comes.
    """
    body = {
        "prompt": list(prompt),
        "n_predict": n,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": True,
    }
    connection = http.client.HTTPConnection(HOST, port, timeout=REQUEST_S)
    try:
        connection.request(
            "POST", "/completion", json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"the server answers {answer.status}: {answer.read(500)!r}")
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if event.get("stop"):
                if event.get("tokens_predicted") != n:
                    raise RuntimeError(f"{event.get('tokens_predicted')} tokens came, {n} wanted")
                return
            yield event.get("tokens") or []
        raise RuntimeError("the answer ends before its end")
    finally:
        connection.close()


News = tuple[int, float, list[int] | None, Exception | None]
"""(request, when, tokens, None), at its end (request, when, None, None), or with what went wrong."""


class Client:
    """Sends a load's requests when they are due, however many are unanswered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()

    def run(self, load: Sequence[Item]) -> dict[str, Any]:
        """The records of a load, in its order. Raises what a request raised."""
        arrivals = Arrivals(load)
        begin = time.perf_counter()
        while not arrivals.done:
            now = time.perf_counter() - begin
            for due in arrivals.due(now):
                threading.Thread(target=self._ask, args=(due, begin), daemon=True).start()
            wait = arrivals.next - (time.perf_counter() - begin)
            try:
                news = self._news.get(timeout=None if math.isinf(wait) else max(wait, 0))
            except queue.Empty:
                continue
            self._take(arrivals, news, load)
        records = [arrivals.records[i].as_json() for i in range(len(load))]
        return {"records": records, "slots": {}}

    def _take(self, arrivals: Arrivals, news: News, load: Sequence[Item]) -> None:
        number, now, tokens, error = news
        if error is not None:
            raise error
        record = arrivals.records[number]
        if tokens is None:
            # A character may need several tokens; those of an unfinished one are not told of.
            record.n_output = load[number].n_output
            arrivals.end(number, now)
        else:
            record.times += [now] * max(1, len(tokens))
            record.tokens += tokens

    def _ask(self, due: Due, begin: float) -> None:
        try:
            for tokens in complete(self._port, due.prompt, due.n_output):
                self._news.put((due.number, time.perf_counter() - begin, tokens, None))
            self._news.put((due.number, time.perf_counter() - begin, None, None))
        except Exception as error:
            self._news.put((due.number, 0.0, None, error))


def find_server(given: Path) -> Path:
    """llama-server: `given` itself, or in the folder `given`. Raises FileNotFoundError where there is none."""
    program = given / "llama-server" if given.is_dir() else given
    if not program.is_file():
        raise FileNotFoundError(f"{program} is no program; benchmarks/peers/llama_cpp.sh builds it")
    return program
