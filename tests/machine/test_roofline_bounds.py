"""The roofline's arithmetic: bounds, shares, what is lost outside ops."""

from __future__ import annotations

import json

import pytest

from cpuinfer.machine.ceilings import PEAKS, Ceilings
from cpuinfer.machine.roofline import Stats, Work, bound_times, phase_stats, roofline

CEILINGS = Ceilings(
    "cpu",
    "avx2",
    2,
    ((1000, 100.0), (1_000_000, 10.0)),
    dict.fromkeys(PEAKS, 50.0) | {"int8": 200.0},
    (("L1", 1000),),
)


def work(name: str = "matmul", seconds: float = 10.0, **changed: object) -> Work:
    fields: dict[str, object] = {
        "name": name,
        "calls": 4,
        "seconds": seconds,
        "bytes": 50.0,
        "operations": 100.0,
        "working_set": 1_000_000,
        "products": {"f32": 1.0},
    }
    return Work(**(fields | changed))  # type: ignore[arg-type]


def test_the_limit_of_decoding() -> None:
    found = roofline(100.0, 4.0, 800.0)
    assert (found.bytes_per_s, found.share) == (400.0, 0.5)


def test_bounds_are_bytes_at_the_bandwidth_and_operations_at_the_peak() -> None:
    assert bound_times(work(), CEILINGS) == (5.0, 2.0)
    assert bound_times(work(working_set=10), CEILINGS) == (0.5, 2.0)
    mixed = work(products={"f32": 0.5, "int8": 0.5})
    assert bound_times(mixed, CEILINGS)[1] == 1.25


def test_what_binds_an_op_is_named() -> None:
    def op(*works: Work):  # type: ignore[no-untyped-def]
        return phase_stats("decode", 1, 1, works, 20.0, 20.0, CEILINGS).ops[0]

    slow = op(work())
    assert (slow.bound, slow.ceiling, slow.share_of_ceiling) == ("DRAM bandwidth", 10.0, 0.5)
    near = op(work(working_set=10))
    assert (near.bound, near.ceiling, near.share_of_ceiling) == ("f32 peak", 50.0, 0.2)
    int8 = op(work(operations=10_000.0, products={"int8": 1.0}))
    assert (int8.bound, int8.ceiling) == ("int8 peak", 200.0)
    copy = op(work(operations=0.0, working_set=10))
    assert (copy.bound, copy.operations_per_s) == ("L1 bandwidth", 0.0)
    idle = op(work(seconds=0.0, bytes=0.0, operations=0.0))
    assert (idle.share_of_ceiling, idle.bytes_per_s, idle.ceiling) == (0.0, 0.0, 0.0)


def test_shares_of_the_time_add_up() -> None:
    works = [work("a", 3.0), work("b", 4.0), work("a", 1.0, bytes=10.0)]
    found = phase_stats("prefill", 2, 7, works, 9.0, 10.0, CEILINGS)
    assert [op.name for op in found.ops] == ["a", "b"]
    assert (found.ops[0].seconds, found.ops[0].calls, found.ops[0].bytes) == (4.0, 8, 60.0)
    lost = (found.fork_join_s + found.python_s) / found.seconds
    assert sum(op.share_of_time for op in found.ops) + lost == pytest.approx(1.0)
    assert (found.fork_join_s, found.python_s) == (1.0, 1.0)
    # 5 + 5 s of bytes, and 2 s of operations where bytes take 1
    assert found.share_of_ceiling == pytest.approx((5.0 + 2.0 + 5.0) / 10.0)


def test_json_is_plain() -> None:
    phase = phase_stats("decode", 1, 1, [work()], 11.0, 12.0, CEILINGS)
    found = json.loads(json.dumps(Stats((phase,), CEILINGS).as_json(), allow_nan=False))
    assert found["phases"][0]["ops"][0]["bound"] == "DRAM bandwidth"
    assert found["ceilings"]["peaks"] == dict(CEILINGS.peaks)
