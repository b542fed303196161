"""The engine's thread: who keeps it, what ends it, and forks."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from time import sleep

import pytest
from engine_cases import engine, request
from stepping import PATIENCE_S, idle, stepping

from cpuinfer import LLM, SamplingParams
from cpuinfer.engine.outputs import RequestOutput, Timings
from cpuinfer.engine.results import Reader
from cpuinfer.engine.runner import Ticket, mark

LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPUINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def llm(cache: None, tiny_model: Path) -> Iterator[LLM]:
    with LLM(tiny_model, threads=2, token_budget=24, max_sequences=3) as made:
        yield made


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(PATIENCE_S * 1000):
        if condition():
            return
        sleep(0.001)
    raise AssertionError("it did not come to pass")


def test_a_dropped_llm_ends_its_thread_and_frees_its_memory(cache: None, tiny_model: Path) -> None:
    llm = LLM(tiny_model, threads=1)
    llm.generate("hello", SHORT)
    thread, executable = llm._runner._thread, weakref.ref(llm.executable)
    assert thread.is_alive()
    stream = llm.stream("hello", LONG)
    next(stream)
    del llm  # the stream keeps it
    assert executable() is not None
    del stream
    gc.collect()
    wait_until(lambda: executable() is None and not thread.is_alive())


def test_close_is_clean_and_may_be_repeated(llm: LLM) -> None:
    llm.close()
    assert not llm._runner._thread.is_alive()
    llm.close()
    for ask in (
        lambda: llm.generate("hello"),
        lambda: llm.stream("hello"),
        lambda: llm.logits([1]),
    ):
        with pytest.raises(RuntimeError, match="this LLM is closed"):
            ask()
    assert idle(llm)


def test_close_ends_what_runs_and_what_waits(llm: LLM) -> None:
    reasons: list[str | None] = []

    def generate() -> None:
        outputs = llm.generate(["hello", "world"] * 4, LONG)
        reasons.extend(output.outputs[0].finish_reason for output in outputs)

    with stepping(llm) as steps:
        thread = threading.Thread(target=generate)
        thread.start()
        steps.wait_begun()
        closer = threading.Thread(target=llm.close)
        closer.start()
        wait_until(lambda: llm._runner._core.closed)
        steps.permit()
        for waited in (thread, closer):
            waited.join(PATIENCE_S)
    assert reasons == ["abort"] * 8
    assert idle(llm)


@pytest.mark.parametrize("n", [1, 3])
def test_a_reader_takes_the_last_news_with_the_end(n: int) -> None:
    """Also one that looks while the engine's thread has written the last marks and not yet that it is done."""
    output = RequestOutput("", None, [], None, [], 0, 0, Timings(*[0.0] * 6))
    runs, asked = engine(), request([1, 2], SamplingParams(n=n, max_tokens=4, ignore_eos=True))
    ticket = Ticket(asked, SimpleQueue(), follows=True)
    reader = Reader(ticket)
    runs.add(asked)
    while runs.has_work:
        runs.step()
    final = [mark(sequence) for sequence in asked.sequences]
    ticket.marks[: n - 1] = final[: n - 1]
    assert [c.index for c in reader.chunks(lambda: output)] == list(range(n - 1))
    ticket.marks = final
    assert list(reader.chunks(lambda: output)) == []
    ticket.done = True
    (last,) = reader.chunks(lambda: output)
    assert (last.index, last.finish_reason, last.output) == (n - 1, "length", output)


def test_ctrl_c_in_generate_ends_its_requests(llm: LLM) -> None:
    with stepping(llm) as steps:

        def interrupt() -> None:
            steps.wait_begun()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["hello", "world"] * 4, LONG)
        thread.join()
        steps.permit()
        assert idle(llm)
        assert steps.n_run == 1
    assert llm.metrics().requests_finished["abort"] == 8


def test_a_fault_outside_a_step_ends_everything_with_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a fault")

    monkeypatch.setattr(llm._runner._core, "publish", fail)
    with pytest.raises(LookupError, match="a fault"):
        llm.generate(["hello"] * 5, SHORT)
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("hello")
    assert idle(llm)


SCRIPT = """
import sys, threading
from cpuinfer import LLM, SamplingParams
llm = LLM(sys.argv[1], threads=2)
stream = llm.stream("hello", SamplingParams(max_tokens=250, ignore_eos=True))
next(stream)
thread = threading.Thread(target=lambda: list(stream), daemon=True)
{at_end}
print("end", flush=True)
"""


@pytest.mark.parametrize("at_end", ["", "thread.start()", "llm.close()", "raise SystemExit(3)"])
def test_the_interpreter_exits_while_requests_run(
    cache: None, tiny_model: Path, at_end: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT.format(at_end=at_end), tiny_model],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    expected = (3, "", "") if "SystemExit" in at_end else (0, "end\n", "")
    assert (run.returncode, run.stdout, run.stderr) == expected


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_a_forked_child_is_told(llm: LLM, tiny_model: Path) -> None:
    """Nothing hangs there, the parent goes on, and an LLM made in the child works."""
    before = llm.generate("hello", SHORT)[0].outputs

    def child(results: object) -> None:
        def told(ask: Callable[[], object]) -> str:
            try:
                ask()
            except RuntimeError as error:
                return str(error)
            return "nothing was raised"

        asks: list[Callable[[], object]] = [
            lambda: llm.generate("hello", SHORT),
            lambda: llm.chat([{"role": "user", "content": "hello"}], SHORT),
            lambda: llm.stream("hello", SHORT),
            lambda: next(stream),
            lambda: llm.logits([1]),
            lambda: llm.metrics(),
        ]
        messages = [told(ask) for ask in asks]
        llm.close()  # at the end of a with block: no error hides another
        with LLM(tiny_model, threads=2) as own:
            results.put((messages, own.generate("hello", SHORT)[0].outputs))  # type: ignore[attr-defined]

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=child, args=(results,))
    with stepping(llm) as steps:
        stream = llm.stream("hello", LONG)
        steps.permit()
        next(stream)
        process.start()  # in the middle of a request
        process.join(PATIENCE_S)
    assert process.exitcode == 0
    messages, own = results.get()
    assert all("fork" in m and "create the LLM in the child" in m for m in messages), messages
    assert own == before
    assert list(stream)[-1].finish_reason == "length"
    assert llm.generate("hello", SHORT)[0].outputs == before


@needs_fork
def test_a_forked_child_exits_by_itself(llm: LLM) -> None:
    """Through the interpreter's own end, finalisers included."""
    llm.generate("hello", SHORT)
    pid = os.fork()
    if pid == 0:
        try:
            atexit._run_exitfuncs()
        finally:
            os._exit(0)
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
    assert llm.generate("hello", SHORT)[0].outputs[0].finish_reason == "length"
