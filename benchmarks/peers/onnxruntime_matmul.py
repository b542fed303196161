"""onnxruntime's MatMulNBits (4 bits, blocks of 32, accuracy_level 4), for kernels.py: a Product a line, seconds an answer.

The copies are nodes of one model, each with weights of its own. The operator: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

try:
    import onnxruntime
    from onnx import TensorProto, helper
except ImportError as error:
    remedy = "pip install onnxruntime onnx"
    print(json.dumps({"error": f"onnxruntime is not there ({error}): {remedy}"}), flush=True)
    sys.exit(1)

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernel_cases import Product  # noqa: E402

from cpuinfer.cli.peers.serve import answers  # noqa: E402

BLOCK = 32


def model(product: Product) -> bytes:
    """An ONNX model of `copies` products of the one input."""
    rng = np.random.default_rng(0)
    n, k = product.n, product.k
    blocks = -(-k // BLOCK)
    codes = rng.integers(0, 256, (n, blocks, BLOCK // 2), np.uint8)
    scales = (rng.uniform(0.5, 1.5, n * blocks) / 4.6 / k**0.5).astype(np.float32)
    weights, nodes, outputs = [], [], []
    for i in range(product.copies):
        weights.append(
            helper.make_tensor(f"b{i}", TensorProto.UINT8, codes.shape, codes.tobytes(), raw=True)
        )
        weights.append(
            helper.make_tensor(f"s{i}", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True)
        )
        sizes = {"K": k, "N": n, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        nodes.append(
            helper.make_node(
                "MatMulNBits", ["x", f"b{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **sizes
            )
        )
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [product.m, n]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [product.m, k])
    graph = helper.make_graph(nodes, "products", [x], outputs, weights)
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=sets, ir_version=10)
    text: bytes = made.SerializeToString()
    return text


class Session:
    """The model with its input and outputs bound, so that nothing is allocated or copied while it runs."""

    def __init__(self, product: Product) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = product.threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model(product), options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(1)
        x = rng.standard_normal((product.m, product.k), np.float32)
        y = np.empty((product.m, product.n), np.float32)
        self.alive = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in (x, y)]
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input("x", self.alive[0])
        for i in range(product.copies):
            self.binding.bind_ortvalue_output(f"y{i}", self.alive[1])

    def run(self) -> None:
        """Every copy once."""
        self.session.run_with_iobinding(self.binding)


if __name__ == "__main__":
    answer = answers()
    held: tuple[Product, Session] | None = None
    for line in sys.stdin:
        product = Product(**json.loads(line))
        if product.kernel != "matmul":
            answer({"seconds": {}})
            continue
        if held is None or held[0] != product:
            held = None
            held = product, Session(product)
        held[1].run()
        begin = perf_counter()
        held[1].run()
        answer({"seconds": {"onnxruntime int4": (perf_counter() - begin) / product.copies}})
