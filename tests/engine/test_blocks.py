import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpuinfer.engine.blocks import BlockPool


@given(
    st.integers(1, 20), st.lists(st.tuples(st.sampled_from("trs"), st.integers(0, 30)), max_size=60)
)
def test_pool_against_a_model(n_pages: int, actions: list[tuple[str, int]]) -> None:
    pool, holders = BlockPool(n_pages), [0] * n_pages
    for action, number in actions:
        page = number % n_pages
        if action == "t":
            free = holders.count(0)
            if number > free:
                with pytest.raises(ValueError, match=f"{number} KV pages wanted, {free} free"):
                    pool.take(number)
            else:
                taken = pool.take(number)
                assert len(set(taken)) == number and all(holders[p] == 0 for p in taken)
                for p in taken:
                    holders[p] = 1
        elif holders[page] == 0:
            with pytest.raises(ValueError, match="free"):
                pool.release(page) if action == "r" else pool.share(page)
        elif action == "r":
            pool.release(page)
            holders[page] -= 1
        else:
            pool.share(page)
            holders[page] += 1
        assert [pool.holders(p) for p in range(n_pages)] == holders
        assert pool.n_free == holders.count(0)
