"""Running the command line, inside this process and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

Run = Callable[..., Result]
Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests here, so that the tiny model is packed and the machine measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(cache))
    monkeypatch.delenv("CPUINFER_THREADS", raising=False)
    monkeypatch.delenv("CPUINFER_ISA", raising=False)


@pytest.fixture
def run(environment: None) -> Run:
    """run("generate", ...) -> result with exit_code, stdout, stderr."""

    def invoke(*words: object, **options: object) -> Result:
        from cpuinfer.cli.app import app

        return CliRunner().invoke(app, [str(word) for word in words], **options)  # type: ignore[arg-type]

    return invoke


@pytest.fixture
def start(environment: None) -> Start:
    """The same as a process; -P, so that the package comes from where it is installed."""

    def invoke(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cpuinfer.cli", *map(str, words)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ,
            timeout=120,
            check=False,
            **{"stdin": subprocess.DEVNULL, **options},  # type: ignore[call-overload]
        )

    return invoke
