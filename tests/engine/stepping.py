"""Steps of an LLM's engine one by one, so that tests decide what happens between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Semaphore
from typing import Any

import pytest

from cpuinfer import LLM

PATIENCE_S = 60
"""Seconds after which what should have happened has not."""


def idle(llm: LLM) -> bool:
    """Whether no request is in flight and every page is free, once all that was asked for is done."""
    scheduler = llm._runner.engine.scheduler
    return llm._runner.call(
        lambda: not scheduler.has_work and scheduler.pool.n_free == scheduler.pool.n_pages
    )


class Steps:
    """Takes the place of an executable's `run`: each call needs a permit. `begun` counts calls, `run` those that ran."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._permits = Semaphore(0)
        self._begun = Semaphore(0)
        self.n_run = 0
        self.error: Exception | None = None

    def __call__(self, batch: Any) -> Any:
        self._begun.release()
        assert self._permits.acquire(timeout=PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.n_run += 1
        return self._run(batch)

    def permit(self, n: int = 1) -> None:
        """Let n more steps run."""
        self._permits.release(n)

    def wait_begun(self) -> None:
        """Wait until one more step has begun; it may wait for its permit."""
        assert self._begun.acquire(timeout=PATIENCE_S)


@contextmanager
def stepping(llm: LLM) -> Iterator[Steps]:
    """Steps need permits in here; afterwards they run freely."""
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(llm.executable.run)
        patch.setattr(llm.executable, "run", steps)
        try:
            yield steps
        finally:
            steps.error = None
            steps.permit(1 << 20)
