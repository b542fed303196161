import pytest

from cpuinfer.engine.random import philox4x32, random_bits


# Known answers of Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert philox4x32((c0, c1, c2, c3), (k0, k1)) == tuple(int(w, 16) for w in answer.split())


def test_bits_differ_in_every_argument_and_fill_64_bits() -> None:
    drawn = {
        random_bits(seed, choice, position)
        for seed in (0, 1, 1 << 32, (1 << 64) - 1)
        for choice in range(3)
        for position in range(50)
    }
    assert len(drawn) == 4 * 3 * 50
    either, both = 0, (1 << 64) - 1
    for bits in drawn:
        either, both = either | bits, both & bits
    assert either == (1 << 64) - 1 and both == 0
