"""Errors, exit codes and pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Run, Start

USAGE = [
    ["nonsense"],
    ["generate"],
    ["generate", "MODEL", "-p", "a", "--nonsense"],
    ["generate", "MODEL", "-p", "a", "--threads", "0"],
    ["generate", "MODEL", "-p", "a", "--threads", "two"],
    ["generate", "MODEL", "-p", "a", "--temperature", "-1"],
    ["generate", "MODEL", "-p", "a", "--temperature", "nan"],
    ["generate", "MODEL", "-p", "a", "--top-p", "0"],
    ["generate", "MODEL", "-p", "a", "--max-tokens", "0"],
    ["generate", "MODEL", "-p", "a", "--stop", ""],
    ["generate", "MODEL", "-p", "a", "--logprobs", "1"],
    ["generate", "MODEL", "-p", "a", "--device", "abacus"],
    ["generate", "MODEL", "-p", "a", "--kv-type", "f8"],
    ["bench"],
    ["bench", "MODEL", "-p", "x"],
    ["bench", "MODEL", "-t", "0"],
    ["bench", "MODEL", "-o", "sql"],
    ["inspect", "MODEL", "--tokens", "0"],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_wrong_use_is_code_2_and_one_line(run: Run, tiny_model: Path, words: list[str]) -> None:
    result = run(*(str(tiny_model) if word == "MODEL" else word for word in words))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("cpuinfer: error: ")


@pytest.mark.parametrize(
    "variable",
    [("CPUINFER_ISA", "abacus"), ("CPUINFER_THREADS", "many"), ("CPUINFER_THREADS", "0")],
)
def test_malformed_environment_is_code_2(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    result = run("verify", tiny_model)
    assert result.exit_code == 2
    assert variable[0] in result.stderr
    assert variable[1] in result.stderr


@pytest.mark.parametrize(
    "verb", ["generate", "verify", "inspect", "tokenize", "bench", "pull", "chat"]
)
def test_no_such_model_is_code_1(run: Run, verb: str) -> None:
    result = run(verb, "no-such-model", "--json", input="text")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "no-such-model" in line
    assert "smollm2-135m" in line  # what would have been one
    assert json.loads(result.stdout) == {"error": line.removeprefix("cpuinfer: error: ")}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"text" * 100])
def test_a_damaged_file_is_one_line(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    for verb in ("generate", "inspect", "tokenize"):
        result = run(verb, path, input="text")
        assert result.exit_code == 1, result.output
        assert len(result.stderr.splitlines()) == 1


def test_a_vocabulary_generates_nothing(run: Run, tiny_vocabulary: Path) -> None:
    result = run("generate", tiny_vocabulary, "-p", "a")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_level_that_cannot_run_says_why(run: Run, tiny_model: Path) -> None:
    result = run("verify", tiny_model, "--isa", "abacus")
    assert result.exit_code == 1
    assert "abacus" in result.stderr


def test_no_traceback_from_a_process(start: Start) -> None:
    done = start("generate", "no-such-model", "-p", "a")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr


def test_help_and_version(run: Run) -> None:
    for words in (["--help"], ["bench", "-h"], ["--version"]):
        result = run(*words)
        assert result.exit_code == 0
        assert result.stdout


@pytest.mark.parametrize("verb", ["inspect", "tokenize"])
def test_a_reader_that_goes_away_is_quiet(environment: None, tiny_model: Path, verb: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-P", "-m", "cpuinfer.cli", verb, str(tiny_model)]
        done = subprocess.run(
            command,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            input="z" * 200_000,
            check=False,
        )
    finally:
        os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


def test_ctrl_c_is_130(environment: None, tiny_model: Path) -> None:
    command = [sys.executable, "-P", "-m", "cpuinfer.cli", "bench", str(tiny_model)]
    command += ["-p", "0", "-n", "1,200", "-r", "9999999", "-t", "1", "-o", "csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()  # the head: it runs now
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == b""
