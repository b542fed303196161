"""torch.nn.functional.linear (oneDNN) in bf16 and f32, for kernels.py: a Product a line, seconds of one copy an answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

try:
    import torch
    from torch.nn.functional import linear, silu
except ImportError as error:
    print(json.dumps({"error": f"torch is not there ({error}): pip install torch"}), flush=True)
    sys.exit(1)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernel_cases import Product  # noqa: E402

from cpuinfer.cli.peers.serve import answers  # noqa: E402

TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


class Linear:
    """The product in one type, its weights made anew for each of the copies."""

    def __init__(self, product: Product, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.swiglu = product.kernel == "matmul_swiglu"
        shape = product.n * (2 if self.swiglu else 1), product.k
        weight = torch.randn(shape, generator=generator) / product.k**0.5
        self.weights = [weight.to(dtype).clone() for _ in range(product.copies)]
        self.x = torch.randn((product.m, product.k), generator=generator).to(dtype)

    def run(self) -> None:
        """Every copy once."""
        for weight in self.weights:
            y = linear(self.x, weight)
            if self.swiglu:
                gate, up = y.chunk(2, dim=-1)
                silu(gate) * up


def seconds(product: Product) -> dict[str, float]:
    """Of one copy, in both types, after a warm-up."""
    torch.set_num_threads(product.threads)
    found = {}
    with torch.inference_mode():
        for name, dtype in TYPES.items():
            made = held.get((product, name)) or Linear(product, dtype)
            for key in [key for key in held if key[0] != product]:
                del held[key]
            held[product, name] = made
            made.run()
            begin = perf_counter()
            made.run()
            found[f"torch {name}"] = (perf_counter() - begin) / product.copies
    return found


held: dict[tuple[Product, str], Linear] = {}

if __name__ == "__main__":
    answer = answers()
    for line in sys.stdin:
        answer({"seconds": seconds(Product(**json.loads(line)))})
