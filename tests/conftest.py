"""Models that tests share. Being here puts tests/ on the import path, so `import tiny_gguf` works."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny


def pytest_configure() -> None:
    # A shell has what it starts in the background ignore Ctrl-C, and so would what that starts. Tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of random Q8_0 weights."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without weights."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "vocabulary.gguf", vocabulary_only=True)


@pytest.fixture(scope="session")
def numba_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """NumbaDevice, whose kernels are compiled once a session, into a folder of this session's; skips without Numba."""
    numba = pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("numba"))
        patch.setenv("NUMBA_CACHE_DIR", folder)  # for processes that tests start
        patch.setattr(numba.config, "CACHE_DIR", folder)
        from cpuinfer.devices.numba.device import NumbaDevice

        yield NumbaDevice


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The file of CPUINFER_TEST_MODEL, or the pulled smollm2-135m; skips where neither is there."""
    from cpuinfer.hub import ALIASES

    given = os.environ.get("CPUINFER_TEST_MODEL")
    path = Path(given) if given else ALIASES["smollm2-135m"].path
    if given and not path.is_file():
        raise ValueError(f"CPUINFER_TEST_MODEL names no file: {given}")
    if not path.is_file():
        pytest.skip("needs the real model: run `cpuinfer pull smollm2-135m`")
    return path
