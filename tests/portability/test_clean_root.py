"""The wheel in a root of Debian packages without a compiler or an OpenMP runtime: pip installs it, and it answers."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from portability.roots import Processor, output

pytestmark = pytest.mark.portability

Inside = Callable[..., str]
"""Runs a command in the root and returns what it prints."""


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Inside:
    """A copy of this architecture's root with the wheel installed by its own pip, and the real model."""
    copy = tmp_path_factory.mktemp("clean") / "root"
    made = Processor(platform.machine(), "the host's own", "").root
    shutil.copytree(made, copy, symlinks=True, ignore=lambda _, names: {"cpuinfer"} & set(names))
    (copy / "tmp").mkdir()
    (copy / "dev").mkdir(exist_ok=True)
    (copy / "dev/null").touch()
    shutil.copy(real_model, copy / "model.gguf")
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    variables = ["HOME=/tmp", "PATH=/opt/venv/bin:/usr/bin:/usr/sbin"]
    enter = ["env", "-i", *variables, "unshare", *user, "chroot", str(copy)]

    def run(*command: str) -> str:
        return output([*enter, *command])

    run("python3", "-m", "venv", "/opt/venv")
    run("pip", "install", "-q", "--no-index", "--find-links", "/wheels", "cpuinfer")
    return run


def test_there_is_no_compiler(inside: Inside) -> None:
    names = "['cc', 'gcc', 'clang', 'c++', 'as', 'ld']"
    code = f"import ctypes.util, shutil; print(*filter(shutil.which, {names}), ctypes.util.find_library('gomp'))"
    assert inside("python3", "-c", code).split() == ["None"]


def test_it_answers(inside: Inside) -> None:
    command = ("cpuinfer", "generate", "/model.gguf", "-p", "The capital of France is")
    assert "Paris" in json.loads(inside(*command, "--max-tokens", "4", "--json"))["text"]
