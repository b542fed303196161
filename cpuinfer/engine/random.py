"""Random numbers without state: bits are a function of (seed, choice, position) alone."""

from __future__ import annotations

_MASK = 0xFFFFFFFF


def philox4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Philox4x32-10: four 32-bit words from a 128-bit counter and a 64-bit key.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (
            (right >> 32) ^ x1 ^ k0,
            right & _MASK,
            (left >> 32) ^ x3 ^ k1,
            left & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return x0, x1, x2, x3


def random_bits(seed: int, choice: int, position: int) -> int:
    """64 uniform bits for the token at `position` of completion `choice`, both < 2**32."""
    low, high, _, _ = philox4x32((position, choice, 0, 0), (seed & _MASK, seed >> 32))
    return high << 32 | low
