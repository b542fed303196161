"""Roots of other machines (.ci/root makes them), and what runs a program inside one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = "CPUINFER_TEST_ROOTS"
"""Names the folder that holds a root per architecture."""


@dataclass(frozen=True)
class Processor:
    """What QEMU calls it, and the level that must be chosen there.

    `kv_type`: of the fingerprint that is compared. QEMU (7.2 to 11.1) flushes denormal halves in VCVTPS2PH and
    VCVTPH2PS where MXCSR says so; processors ignore it there (Intel's manual, volume 2). Keys and values have such
    halves, so a processor with F16C is compared with pages of f32.
    """

    architecture: str
    model: str
    level: str
    kv_type: str = "f16"

    @property
    def root(self) -> Path:
        """Its root; skips where there is none."""
        given = os.environ.get(ENVIRONMENT)
        if not given:
            pytest.skip(f"needs {ENVIRONMENT}: see .ci/root")
        root = Path(given).absolute() / self.architecture
        if not (root / "opt/cpuinfer").is_dir():
            raise ValueError(f"{ENVIRONMENT}: {root} is no root; make it with .ci/root")
        return root

    def run(self, *arguments: str) -> str:
        """What Python with these arguments prints there."""
        return self.emulate(str(self.root / "usr/bin/python3"), *arguments)

    def emulate(self, program: str, *arguments: str) -> str:
        """What a program prints there; an instruction that the processor lacks ends it, in each of two runs.

        QEMU 7.2 once ended a run with SIGILL that sixteen repetitions of it did not meet. What a processor lacks it
        lacks twice. The second run's system calls and the address of the instruction are in the notes.

        Raises CalledProcessError, with stderr in its notes, where it fails.
        """
        name = f"qemu-{self.architecture}"
        qemu = shutil.which(f"{name}-static") or shutil.which(name)
        if qemu is None:
            pytest.skip(f"{name} is not installed")
        command = [qemu, "-cpu", self.model, "-L", str(self.root), program, *arguments]
        path = str(self.root / "opt/cpuinfer")
        try:
            return output(command, PYTHONPATH=path)
        except subprocess.CalledProcessError as error:
            if error.returncode != -signal.SIGILL:
                raise
        return output(command, PYTHONPATH=path, QEMU_STRACE="1")

    def cpuinfer(self, *arguments: str) -> dict[str, Any]:
        """The JSON that a verb prints there."""
        found: dict[str, Any] = json.loads(self.run("-m", "cpuinfer.cli", *arguments, "--json"))
        return found


# The oldest that has what a level asks for, so that an instruction too many is found.
PROCESSORS = (
    Processor("x86_64", "Nehalem", "scalar"),
    Processor("x86_64", "Haswell", "avx2", kv_type="f32"),
    Processor("aarch64", "cortex-a53", "neon"),
    Processor("aarch64", "neoverse-n1", "neon_dotprod"),
    Processor("aarch64", "max,sve=off", "neon_i8mm"),
)


def output(command: list[str], **variables: str) -> str:
    """What a command prints; its stderr is a note of the error that a failure raises."""
    environment = {k: v for k, v in os.environ.items() if k != "CPUINFER_ISA"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment | variables, cwd="/"
    )
    try:
        done.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(done.stderr[-4000:])
        raise
    return done.stdout
