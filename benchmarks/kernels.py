"""Times the matrix products: GOP/s and GB/s of weights by kernel, type, tokens, shape, level and threads.

Beside each, the share of this machine's measured ceiling (bandwidth or peak, whichever binds), and with --peer what others
take: torch's linear in bf16 and f32 (oneDNN), onnxruntime's MatMulNBits (4 bits, blocks of 32, accuracy_level 4). Every
library runs in a process of its own; in each round each takes one sample after a warm-up. Medians; asserts nothing.

    python benchmarks/kernels.py --type q4_0 q8_0 --tokens 1 512 --shapes 1b --threads 1 2 --peer torch onnxruntime
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from kernel_cases import SHAPES, TOKENS, Product, copies
from random_blocks import random_blocks

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "conformance")]

from native_op import LEVELS, Call, quantize  # noqa: E402

from cpuinfer.cli.bench_machine import command, git_commit, machine  # noqa: E402
from cpuinfer.cli.bench_peer import Process  # noqa: E402
from cpuinfer.cli.bench_stats import summary  # noqa: E402
from cpuinfer.cli.peers.serve import answers  # noqa: E402
from cpuinfer.devices.meter import peak_of  # noqa: E402
from cpuinfer.graph.dtypes import Activation, WeightType  # noqa: E402
from cpuinfer.graph.r16k4 import pack, packed_nbytes  # noqa: E402
from cpuinfer.graph.weights import Weight  # noqa: E402
from cpuinfer.machine.ceilings import Ceilings, ceilings  # noqa: E402
from cpuinfer.machine.cpu import default_threads  # noqa: E402
from cpuinfer.machine.isa import best, load  # noqa: E402
from cpuinfer.machine.roofline import Work, bound_times  # noqa: E402

NATIVE = [kind for kind in WeightType if kind.is_native]
KERNELS = {"matmul": 1, "matmul_swiglu": 2}
"""Kernels, and the weights of each."""
PEERS = {"torch": "torch_linear.py", "onnxruntime": "onnxruntime_matmul.py"}
OURS = "cpuinfer"


class Step:
    """One step of `copies` ops on the same input, each with weights of its own, ready to run."""

    def __init__(self, product: Product) -> None:
        kind = WeightType[product.type]
        rng = np.random.default_rng(0)
        shape = product.n, product.k
        packed = pack(kind, *shape, random_blocks(rng, kind, *shape).reshape(-1))
        x = rng.standard_normal((product.m, product.k), np.float32)
        inputs = [quantize(x, kind.activation, product.level)]
        weights = [Weight("w", kind, shape, packed)] * KERNELS[product.kernel]
        self.call = Call(product.kernel, product.m, *shape, inputs, weights, kind.activation)
        prepared = self.call.prepare(product.level, product.threads)
        self._library, self._program, self._batch, self.out, alive = prepared
        self._alive = [*alive, *self._copies(product, packed)]

    def _copies(self, product: Product, packed: np.ndarray[Any, Any]) -> list[Any]:
        """Replace the program's one op by its copies; returns what must stay alive."""
        ffi, program = self._library.ffi, self._program
        ops = ffi.new("ci_op[]", product.copies)
        weights = []
        for i in range(product.copies):
            ops[i] = program.ops[0]
            ops[i].barrier_before = 1
            for j in range(KERNELS[product.kernel]):
                weights.append(packed.copy())
                ops[i].w[j].data = ffi.cast("void *", weights[-1].ctypes.data)
        program.ops, program.n_ops = ops, product.copies
        sizes = ops, product.copies, product.threads, product.m, product.m
        program.shared_bytes = self._library.lib.ci_shared_bytes(*sizes)
        private = product.threads * program.thread_bytes
        workspace = np.zeros(private + program.shared_bytes + 64, np.uint8)
        begin = -workspace.ctypes.data % 64
        program.workspace = ffi.cast("void *", workspace.ctypes.data + begin)
        return [ops, weights, workspace]

    def run(self) -> None:
        """Raises RuntimeError where the library refuses the ops."""
        status = self._library.lib.ci_run(self._program, self._batch)
        if status:
            raise RuntimeError(f"ci_run returned {status}")


def serve_ours() -> None:
    """The child process of our kernels: a Product a line, seconds of one of its copies for an answer."""
    answer = answers()
    held: tuple[Product, Step] | None = None
    for line in sys.stdin:
        product = Product(**json.loads(line))
        if held is None or held[0] != product:
            held = None  # the memory of the last one is needed
            held = product, Step(product)
        held[1].run()
        begin = time.perf_counter()
        held[1].run()
        seconds = (time.perf_counter() - begin) / product.copies
        answer({"seconds": {f"cpuinfer {product.level}": seconds}})


def products(options: argparse.Namespace) -> Iterator[tuple[Product, int]]:
    """Every case of the command line, and the bytes of the weights of one copy."""
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shape]
    for name in options.shapes if not shapes else ():
        shapes += SHAPES[name]
    for kernel in options.kernel:
        for kind in (WeightType[name.upper()] for name in options.type):
            for n, k in shapes:
                if k % kind.block[0]:
                    continue
                nbytes = packed_nbytes(kind, n, k) * KERNELS[kernel]
                for m in options.tokens:
                    case = Product(kernel, kind.name, n, k, m, 1, 1, options.level[0])
                    case = replace(case, copies=copies(m, nbytes, case.operations, options.mib))
                    for threads in options.threads:
                        for level in options.level:
                            yield replace(case, threads=threads, level=level), nbytes


def measure(
    product: Product, engines: dict[str, Process], rounds: int, beside: bool
) -> dict[str, list[float]]:
    """Seconds of one product by library and setting, a sample a round. beside: whether the peers run too."""
    found: dict[str, list[float]] = {}
    for turn in range(rounds):
        names = [name for name in engines if beside or name == OURS]
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            answer = engines[name].ask(asdict(product))
            for setting, seconds in answer["seconds"].items():
                found.setdefault(setting, []).append(seconds)
    return found


def share(product: Product, nbytes: int, seconds: float, limits: Ceilings) -> float:
    """The part of the time that the ceiling that binds would take."""
    kind = WeightType[product.type]
    reads = nbytes + product.m * kind.activation.row_bytes(product.k)
    moved = reads + product.m * Activation.F32.row_bytes(product.n)
    working_set = product.copies * nbytes
    work = Work(
        product.kernel,
        1,
        seconds,
        moved,
        product.operations,
        working_set,
        {peak_of(kind): 1.0},
    )
    return max(bound_times(work, limits)) / seconds


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each case and library, as it is measured."""
    with ExitStack() as stack:
        engines = {OURS: [sys.executable, str(HERE / "kernels.py"), "--serve"]}
        for name in options.peer:
            engines[name] = [sys.executable, str(HERE / "peers" / PEERS[name])]
        most = max(options.threads)
        open_ = {n: stack.enter_context(Process(n, words, most)) for n, words in engines.items()}
        seen = set()
        for product, nbytes in products(options):
            # What others take does not depend on our type and level: once for each of the rest.
            key = replace(product, type="", level="", copies=0)
            found = measure(product, open_, options.rounds, key not in seen)
            seen.add(key)
            limits = None
            if options.ceilings:
                library = load(product.level)
                limits = ceilings(library, load(best().level.name), product.level, product.threads)
            for engine, samples in found.items():
                middle = summary(samples).median
                ours = engine.startswith(OURS)
                yield {
                    **asdict(product),
                    "engine": engine,
                    "seconds": asdict(summary(samples)),
                    "samples_s": samples,
                    "operations_per_s": product.operations / middle,
                    "weight_bytes_per_s": nbytes / middle if ours else None,
                    "share": share(product, nbytes, middle, limits) if ours and limits else None,
                }


HEAD = (
    f"{'kernel':13} {'type':6} {'N':>6} {'K':>6} {'M':>4} {'threads':>7} {'library':22} {'us':>10} {'GOP/s':>8} "
    f"{'GB/s':>7} {'share':>6}"
)


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    reached = row["weight_bytes_per_s"]
    return (
        f"{row['kernel']:13} {row['type']:6} {row['n']:6} {row['k']:6} {row['m']:4} {row['threads']:7} "
        f"{row['engine']:22} {row['seconds']['median'] * 1e6:10.1f} {row['operations_per_s'] * 1e-9:8.1f} "
        f"{'' if reached is None else format(reached * 1e-9, '.2f'):>7} "
        f"{'' if row['share'] is None else format(row['share'], '.0%'):>6}"
    )


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [kind.name.lower() for kind in NATIVE]
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=["matmul"])
    parser.add_argument("--type", nargs="+", default=names, choices=names)
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), metavar="M")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b"])
    parser.add_argument("--shape", nargs="+", default=[], metavar="NxK", help="instead of --shapes")
    count = default_threads().count
    parser.add_argument("--threads", nargs="+", type=int, default=[count])
    parser.add_argument("--level", nargs="+", default=LEVELS[-1:], choices=LEVELS)
    parser.add_argument("--mib", type=int, default=256, help="MiB of weights with few tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=[])
    parser.add_argument("--no-ceilings", dest="ceilings", action="store_false")
    parser.add_argument("--json", type=Path, help="write the rows with all samples")
    return parser.parse_args(words)


def main() -> None:
    """Measure, print as it goes, write the report."""
    if sys.argv[1:] == ["--serve"]:
        serve_ours()
        return
    options = parse(sys.argv[1:])
    print(HEAD)
    found = []
    try:
        for row in rows(options):
            found.append(row)
            print(line(row), flush=True)
    except ValueError as error:
        sys.exit(f"kernels.py: {error}")
    if options.json:
        about = {"command": command(), "git_commit": git_commit(), "machine": machine()}
        options.json.write_text(json.dumps({**about, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
