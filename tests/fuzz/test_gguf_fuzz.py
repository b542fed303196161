"""Thousands of spoiled files: each is read or refused with a FormatError, in bounded memory and
time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_bytes import fields, write_tiny_model

from cpuinfer.formats import FormatError, open_gguf, open_packed, pack

RUNNER = Path(__file__).with_name("run_cases.py")
FIRST_SEED, PER_BATCH = 20_000, 500


def valid_file(kind: str, folder: Path) -> Path:
    write_tiny_model(folder / "plain.gguf")
    if kind == "packed":
        pack(folder / "plain.gguf", folder / "packed.gguf")
    return folder / f"{kind}.gguf"


@pytest.mark.parametrize("batch", range(5))
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_spoiled_files(kind: str, batch: int, tmp_path: Path) -> None:
    first = FIRST_SEED + batch * PER_BATCH
    arguments = [kind, str(valid_file(kind, tmp_path)), str(first), str(PER_BATCH)]
    print("seeds", first, "to", first + PER_BATCH - 1)
    done = subprocess.run(
        [sys.executable, str(RUNNER), *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"the process died ({done.returncode}): {done.stderr}"
    outcome = json.loads(done.stdout)
    assert not outcome["failures"], "\n".join(f"{s}: {t}" for s, t in outcome["failures"].items())
    # Most faults must be seen; some (a flipped bit of a weight) can't be.
    assert outcome["refused"] >= PER_BATCH // 2
    assert outcome["accepted"] >= PER_BATCH // 50
    assert outcome["accepted"] + outcome["refused"] == PER_BATCH


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_every_length_of_the_header(kind: str, tmp_path: Path) -> None:
    """A file cut at any byte of its header is refused: no count or string may run past the end."""
    read = open_gguf if kind == "plain" else open_packed
    valid = valid_file(kind, tmp_path)
    raw = valid.read_bytes()
    last = fields(raw)[-1]
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(raw)
    for length in reversed(range(last.at + last.size)):
        os.truncate(cut, length)
        with pytest.raises(FormatError):
            read(cut)
    read(valid)
