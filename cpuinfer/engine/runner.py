"""The one thread that runs an engine: requests come in from any thread, news of them go out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event, RLock, Thread, current_thread
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

from cpuinfer.engine.engine import Engine
from cpuinfer.engine.metrics import Metrics, Progress, Recorder, snapshot
from cpuinfer.engine.sequence import Request
from cpuinfer.engine.sequence import Sequence as EngineSequence

Result = TypeVar("Result")


class Mark(NamedTuple):
    """How far a completion is. What lies before a mark never changes, so it may be read by any thread."""

    n_tokens: int
    n_characters: int
    finish_reason: str | None
    stop_reason: str | int | None


def mark(sequence: EngineSequence) -> Mark:
    """Where a sequence is."""
    return Mark(
        len(sequence.tokens),
        len(sequence.stream.text),
        sequence.finish_reason,
        sequence.stop_reason,
    )


class Mailbox(Protocol):
    """Where tickets with news go. Called by the engine's thread: it must not block.

    `put` raises RuntimeError where nobody reads any more; the request is then ended.
    """

    def put(self, ticket: Ticket, /) -> None:
        """Tell of a ticket."""
        ...


@dataclass(eq=False)
class Ticket:
    """A request as the one who waits for it sees it; the engine's thread writes it.

    follows: the mailbox gets the ticket at every token; else once, when it is done. told: it is in the mailbox, and is
    not put there again before the reader resets this, which it does before it reads: so news merge while a reader is
    slow. marks: one for each sequence. done is set after all marks and `error`, which is to be raised to whoever waits.
    """

    request: Request
    mailbox: Mailbox
    follows: bool = False
    told: bool = False
    done: bool = False
    error: Exception | None = None
    marks: list[Mark] = field(init=False)

    def __post_init__(self) -> None:
        self.marks = [mark(sequence) for sequence in self.request.sequences]


def next_ticket(mailbox: SimpleQueue[Ticket]) -> Ticket:
    """Wait for a ticket."""
    while True:
        # Ctrl-C ends a wait that has begun (not on Windows), but not one that is about to begin: look every second.
        with suppress(Empty):
            return mailbox.get(timeout=1.0)


class StepTimer(Protocol):
    """What wants to know how long a step took in all."""

    def end_step(self, seconds: float) -> None:
        """The step that ran last took so many seconds."""
        ...


class EngineThread:
    """Owns an engine and its executable, and steps while there is work; one thread, so one team of kernels' threads.

    Any thread may call it. The thread does not keep this object alive: when it is dropped, closed, or when the
    interpreter exits, the thread ends after its step and lets go of the engine. A step that fails ends the requests
    that share it, with its error for those who wait for them.
    """

    def __init__(self, engine: Engine, timer: StepTimer | None = None) -> None:
        self._core = core = _Core(engine, timer)
        self._pid = os.getpid()
        self._thread = Thread(target=core.serve, name="cpuinfer-engine", daemon=True)
        self._thread.start()
        weakref.finalize(self, core.inbox.put, _STOP).atexit = False
        # At exit kernels must not run on while Python takes itself down under them.
        weakref.finalize(self._thread, _end, core.inbox, core.ended, self._pid)

    @property
    def engine(self) -> Engine:
        """The engine. Only for `call`ed functions, and when closed."""
        return self._core.engine

    def check(self) -> None:
        """Raises RuntimeError in a forked child, and when closed."""
        self.check_fork()
        if self._core.closed:
            raise RuntimeError("this LLM is closed")

    def check_fork(self) -> None:
        """Raises RuntimeError in a forked child: the thread stays with its parent."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this LLM belongs to process {self._pid}, and process {os.getpid()} is a fork of it, without its"
                " threads: create the LLM in the child, or start children with multiprocessing's 'spawn'"
            )

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Run requests; all are there when the next step is scheduled. Raises RuntimeError as `check` does."""
        self.check()
        with self._core.gate:
            self.check()
            self._core.inbox.put((_Core.add, tickets))

    def abort(self, tickets: Sequence[Ticket]) -> None:
        """End requests before the next step, with finish_reason "abort"; nothing for those that are done.

        Does not wait. It may be called anywhere, in a finaliser too.
        """
        self._core.inbox.put((_Core.abort, tickets))

    def call(self, function: Callable[[], Result]) -> Result:
        """What `function` returns or raises, called between two steps, after what was asked for before.

        Raises RuntimeError in a forked child.
        """
        self.check_fork()
        reply: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        with self._core.gate:
            if not (closed := self._core.closed):
                self._core.inbox.put((_Core.answer, (function, reply)))
        if closed:
            self._core.ended.wait()
            return function()
        result, error = reply.get()
        if error is not None:
            raise error
        found: Result = result
        return found

    def metrics(self) -> Metrics:
        """The engine as it is now."""
        return self.call(self._core.metrics)

    def close(self) -> None:
        """End all requests with finish_reason "abort", and the thread. Does nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._core.gate:
            self._core.closed = True
            self._core.inbox.put(_STOP)
        if current_thread() is not self._thread:
            self._thread.join()


class _Core:
    """What the engine's thread holds: all that is not in the first paragraph is touched by that thread alone."""

    def __init__(self, engine: Engine, timer: StepTimer | None) -> None:
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.gate = RLock()  # what is put in under it before `closed` is answered
        self.closed = False
        self.ended = Event()

        self.engine = engine
        self.timer = timer
        self.recorder = Recorder()
        self.tickets: dict[Ticket, Progress] = {}
        self.places: dict[EngineSequence, tuple[Ticket, int]] = {}
        self.stopping = False

    def serve(self) -> None:
        """Run until stopped."""
        failure: Exception | None = None
        try:
            while not self.stopping:
                self.receive()
                if self.engine.has_work and not self.stopping:
                    self.step()
        except Exception as error:  # a fault of the engine itself: nobody may wait for ever
            failure = error
        finally:
            with self.gate:
                self.closed = True
            try:
                self.end(list(self.tickets), failure)
                while not self.inbox.empty():
                    self.refuse(*self.inbox.get(), failure)
                self.engine.close()
            finally:
                self.ended.set()

    def receive(self) -> None:
        """Do what was asked for; wait for it where there is nothing else to do."""
        if not self.engine.has_work:
            method, argument = self.inbox.get()
            method(self, argument)
        while not self.inbox.empty():
            method, argument = self.inbox.get()
            method(self, argument)

    def step(self) -> None:
        """Run a step and tell of it."""
        begin = perf_counter()
        try:
            stepped = self.engine.step()
        except Exception as error:
            # It would fail again. Those who share it hold pages; where nobody does, nobody is to blame alone.
            held = {group.request for group in self.engine.scheduler.running}
            sharing = [ticket for ticket in self.tickets if ticket.request in held]
            self.end(sharing or list(self.tickets), error)
            return
        now = perf_counter()
        if self.timer is not None:
            self.timer.end_step(now - begin)
        self.publish(stepped, now)

    def publish(self, stepped: Sequence[EngineSequence], now: float) -> None:
        """Tell whoever waits for these sequences what the step did to them."""
        new_tokens, strangers = 0, False
        for sequence in stepped:
            place = self.places.get(sequence)
            if place is None:
                strangers = (
                    True  # forked while it ran: not of the sequences that its request began with
                )
                continue
            ticket, i = place
            progress = self.tickets[ticket]
            grown = len(sequence.tokens) > progress.n_tokens[i]
            if grown:
                n = self.recorder.token(ticket.request, progress, i, now)
                new_tokens += n if sequence.search is None else 0  # which beams count, the end says
            if sequence.finish_reason is not None and ticket.request.done:
                self.finish(ticket)
            elif ticket.follows and grown:
                ticket.marks[i] = mark(sequence)
                self.tell(ticket)
        self.recorder.step(new_tokens, now)
        if strangers:
            for ticket in [t for t in self.tickets if t.request.done]:
                self.finish(ticket)

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Queue requests; one that the engine refuses ends with the error."""
        for ticket in tickets:
            self.tickets[ticket] = Progress(ticket.request)
            for i, sequence in enumerate(ticket.request.sequences):
                self.places[sequence] = ticket, i
            try:
                self.engine.add(ticket.request)
            except Exception as error:
                self.end([ticket], error)

    def abort(self, tickets: Sequence[Ticket]) -> None:
        """See EngineThread."""
        self.end([ticket for ticket in tickets if ticket in self.tickets], None)

    def answer(self, asked: tuple[Callable[[], Any], SimpleQueue[Any]]) -> None:
        """See EngineThread.call."""
        function, reply = asked
        try:
            reply.put((function(), None))
        except Exception as error:
            reply.put((None, error))

    def stop(self, _: None) -> None:
        """Let serve return."""
        self.stopping = True

    def refuse(
        self, method: Callable[[_Core, Any], None], argument: Any, error: Exception | None
    ) -> None:
        """Do what was asked for too late, as far as it is possible."""
        if method is _Core.add:
            self.end(argument, error)
        elif method is _Core.answer:
            self.answer(argument)

    def end(self, tickets: Sequence[Ticket], error: Exception | None) -> None:
        """Abort requests, and tell."""
        for ticket in tickets:
            self.engine.abort(ticket.request)
            ticket.error = error
            self.finish(ticket)

    def finish(self, ticket: Ticket) -> None:
        """Forget a request that is done, and tell."""
        progress = self.tickets.pop(ticket, None)
        for i, sequence in enumerate(ticket.request.sequences):
            self.places.pop(sequence, None)
            ticket.marks[i] = mark(sequence)
        if progress is not None:
            self.recorder.finished(ticket.request, progress)
        ticket.done = True
        self.tell(ticket)

    def tell(self, ticket: Ticket) -> None:
        """Put a ticket into its mailbox, unless it is there."""
        if ticket.told:
            return
        ticket.told = True
        try:
            ticket.mailbox.put(ticket)
        except RuntimeError:
            if not ticket.done:
                self.end([ticket], None)

    def metrics(self) -> Metrics:
        """See EngineThread."""
        return snapshot(self.recorder, self.engine.scheduler)


Message = tuple[Callable[[_Core, Any], None], Any]
_STOP: Message = (_Core.stop, None)


def _end(inbox: SimpleQueue[Message], ended: Event, pid: int) -> None:
    """Stop the thread of this process and wait for it."""
    if os.getpid() == pid:
        inbox.put(_STOP)
        ended.wait()
