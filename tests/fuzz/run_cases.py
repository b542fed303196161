"""Run generated files against the readers, in a process of its own with bounded memory.

python tests/fuzz/run_cases.py plain|packed VALID_FILE FIRST_SEED COUNT

Prints a JSON object: how many files were accepted and refused, and for each other outcome (an
exception that is no FormatError, too much memory, too much time) its seed and traceback. One seed
runs one file again.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
from gguf_bytes import fields, spoil

from cpuinfer.formats import FormatError, dequantize, open_gguf, open_packed, pack, read_metadata
from cpuinfer.graph import r16k4

MEMORY_BYTES = 192 << 20
"""What reading a file of 20 KB may add to the address space of the process: room for slabs, none
for absurd counts.
"""
SECONDS = 20
"""A file that takes longer counts as a hang: some thousand times what it needs."""


class Hang(BaseException):
    """Raised by the watchdog; no `except Exception` of the reader's can take it."""


def read_plain(path: Path) -> None:
    """Everything that is done with a plain file: metadata, values, packing."""
    read_metadata(path)
    with open_gguf(path) as model:
        for tensor in model.tensors.values():
            dequantize(tensor)
    pack(path, path.with_suffix(".packed"))


def read_packed(path: Path) -> None:
    """Everything that is done with a packed file: every byte is read, every weight unpacked."""
    for weight in open_packed(path).weights.values():
        weight.data.sum(dtype=np.int64)
        r16k4.unpack(weight)


def main() -> None:
    kind, valid, first, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    read = {"plain": read_plain, "packed": read_packed}[kind]
    read(valid)  # imports and first-use tables come before the limit
    raw = valid.read_bytes()
    header = fields(raw)
    limit_memory()
    signal.signal(signal.SIGALRM, raise_hang)
    outcomes: dict[str, object] = {"accepted": 0, "refused": 0}
    failures: dict[int, str] = {}
    np.seterr(all="ignore")  # spoiled scales overflow
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.gguf"
        for seed in range(first, first + count):
            path.write_bytes(spoil(raw, header, random.Random(seed)))
            signal.alarm(SECONDS)
            try:
                read(path)
                outcomes["accepted"] += 1
            except FormatError as error:
                outcomes["refused"] += 1
                if str(path) not in str(error) or len(str(error)) > 1000:
                    failures[seed] = f"message: {str(error)[:1000]}"
            except BaseException:
                failures[seed] = traceback.format_exc()
            signal.alarm(0)
    print(json.dumps(outcomes | {"failures": failures}))


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def raise_hang(*_: object) -> None:
    raise Hang


if __name__ == "__main__":
    main()
