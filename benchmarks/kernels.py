"""Times the matrix products: GOP/s and GB/s of weights by type, tokens, shape, level and threads.

Each measurement is one step over enough copies of the weight to exceed the last-level cache (--mib), so that few
tokens read from memory, as in decoding. Prints medians; asserts nothing.

    python benchmarks/kernels.py --type q4_0 q8_0 --tokens 1 4 16 512 --shape 1536x576 --threads 1 2
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "conformance"))

from native_op import LEVELS, Call, quantize, random_weight  # noqa: E402

from cpuinfer.graph.dtypes import WeightType  # noqa: E402
from cpuinfer.graph.r16k4 import packed_nbytes  # noqa: E402

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


def seconds(call: Call, level: str, threads: int, copies: int, repetitions: int) -> float:
    """Median seconds of one op, in a step of `copies` ops that each have weights of their own."""
    library, program, batch, out, alive = call.prepare(level, threads)
    ffi = library.ffi
    ops = ffi.new("ci_op[]", copies)
    weights = [call.weights[0].data.copy() for _ in range(copies)]
    for i in range(copies):
        ops[i] = program.ops[0]
        ops[i].barrier_before = 1
        ops[i].w[0].data = ffi.cast("void *", weights[i].ctypes.data)
    single_shared = program.shared_bytes
    program.ops, program.n_ops = ops, copies
    rows = call.rows
    program.shared_bytes = library.lib.ci_shared_bytes(ops, copies, threads, rows, rows)
    workspace = np.zeros(
        threads * program.thread_bytes + max(single_shared, program.shared_bytes) + 64, np.uint8
    )
    program.workspace = ffi.cast("void *", workspace.ctypes.data + -workspace.ctypes.data % 64)
    samples = []
    for _ in range(repetitions + 1):
        begin = time.perf_counter()
        library.lib.ci_run(program, batch)
        samples.append((time.perf_counter() - begin) / copies)
    del out, alive
    return statistics.median(samples[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--type", nargs="+", default=[t.lower() for t in TYPES], choices=[t.lower() for t in TYPES]
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 512], metavar="M")
    parser.add_argument(
        "--shape", nargs="+", default=["1536x576", "576x1536", "4096x4096"], metavar="NxK"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--level", nargs="+", default=LEVELS[-1:], choices=LEVELS)
    parser.add_argument(
        "--mib", type=int, default=64, help="MiB of weights that a step with few tokens reads"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{'level':12} {'type':5} {'N':>6} {'K':>6} {'M':>5} {'threads':>7} {'us':>10} {'GOP/s':>8} {'GB/s':>7}"
    )
    rng = np.random.default_rng(0)
    for name in options.type:
        for shape in options.shape:
            n, k = map(int, shape.split("x"))
            type = WeightType[name.upper()]
            weight = random_weight(rng, type, n, k)
            nbytes = packed_nbytes(type, n, k)
            for level in options.level:
                for m in options.tokens:
                    copies = max(1, (options.mib << 20) // nbytes) if m <= 32 else 1
                    x = quantize(rng.normal(size=(m, k)).astype(np.float32), type.activation, level)
                    call = Call("matmul", m, n, k, [x], [weight], type.activation)
                    for threads in options.threads:
                        s = seconds(call, level, threads, copies, options.repetitions)
                        print(
                            f"{level:12} {name:5} {n:6} {k:6} {m:5} {threads:7} {s * 1e6:10.1f} "
                            f"{2e-9 * m * n * k / s:8.1f} {1e-9 * nbytes / s:7.2f}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
