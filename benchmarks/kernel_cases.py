"""The table of kernels.py: which products are timed, shared by our kernels and the libraries beside them."""

from __future__ import annotations

from dataclasses import dataclass

TOKENS = (1, 2, 4, 8, 16, 32, 128, 512)
SHAPES = {
    "1b": ((2048, 2048), (8192, 2048), (2048, 8192)),
    "smollm2": ((576, 576), (192, 576), (1536, 576), (576, 1536)),
}
"""[N, K] of the matrices of Llama-3.2-1B and SmolLM2-135M."""

STREAMING_TOKENS = 32
"""With up to so many tokens the weights of a model come from memory; with more, the arithmetic is what takes time."""
LEAST_OPERATIONS = 2e9


@dataclass(frozen=True)
class Product:
    """y [m, n] = x [m, k] @ w [n, k]^T by `copies` weights in turn, so that with few tokens none stays in the caches.

    kernel: "matmul", or "matmul_swiglu" of two weights. type: ours, by name; others use what is nearest to it.
    level: of our kernels.
    """

    kernel: str
    type: str
    n: int
    k: int
    m: int
    threads: int
    copies: int
    level: str

    @property
    def operations(self) -> float:
        """Of one of the copies; a multiplication and an addition are two."""
        return 2.0 * self.m * self.n * self.k * (2 if self.kernel == "matmul_swiglu" else 1)


def copies(m: int, weight_bytes: int, operations: float, mib: int) -> int:
    """How many weights take turns: `mib` MiB of them with few tokens, and at least LEAST_OPERATIONS with many."""
    if m <= STREAMING_TOKENS:
        return max(1, -(-(mib << 20) // weight_bytes))
    return max(1, round(LEAST_OPERATIONS / operations))
