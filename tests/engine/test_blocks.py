import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.blocks import NO_PREFIX, BlockPool


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


def _tokens(page: int) -> list[int]:
    return [page] * PAGE_TOKENS


def test_prefixes_are_found_by_their_tokens_and_what_is_before_them() -> None:
    pool = BlockPool(6)
    first, second, third = pool.take(3)
    one = pool.learn(NO_PREFIX, _tokens(1), first)
    two = pool.learn(one.prefix, _tokens(2), second)
    assert pool.find(_tokens(1) + _tokens(2) + _tokens(3), 3) == [one, two]
    assert pool.find(_tokens(1) + _tokens(2), 1) == [one]
    assert pool.find(_tokens(2), 1) == [], "the same tokens after nothing are another page"
    assert pool.find(_tokens(1)[:-1] + [7] + _tokens(2), 2) == []
    assert pool.learn(one.prefix, _tokens(2), third) == two, "the first one stays"
    assert pool.n_known == 2


def test_known_pages_stay_while_free_and_go_longest_free_first() -> None:
    pool = BlockPool(4)
    pages = pool.take(4)
    prefix = NO_PREFIX
    for page in pages[:3]:
        prefix = pool.learn(prefix, _tokens(page), page).prefix
    text = [token for page in pages[:3] for token in _tokens(page)]
    for page in reversed(pages):
        pool.release(page)
    assert pool.n_free == 4
    assert [known.page for known in pool.find(text, 3)] == pages[:3]
    assert pool.take(1) == [pages[3]], "the page that holds nothing first"
    assert pool.take(1) == [pages[2]], "then the end of the prefix"
    pool.share(pages[0])
    assert [known.page for known in pool.find(text, 3)] == pages[:2]
    assert pool.take(1) == [pages[1]]
    assert [known.page for known in pool.find(text, 3)] == pages[:1], "held, it stays"
    with pytest.raises(ValueError, match="1 KV pages wanted, 0 free"):
        pool.take(1)


@given(st.data())
def test_no_page_is_found_before_what_it_continues_is(data: st.DataObject) -> None:
    """Texts come, hold what they find, learn the rest, and go: nothing known is out of reach."""
    pool = BlockPool(data.draw(st.integers(3, 8)))
    running: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        if running and data.draw(st.booleans()):
            pages = running.pop(data.draw(st.integers(0, len(running) - 1)))
            for page in reversed(pages):
                pool.release(page)
            continue
        letters = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=3))
        text = [token for letter in letters for token in _tokens(letter)]
        found = pool.find(text, len(letters))
        wanted = len(letters) - sum(pool.holders(known.page) > 0 for known in found)
        if wanted > pool.n_free:
            continue
        for known in found:
            pool.share(known.page)
        pages = [known.page for known in found] + pool.take(len(letters) - len(found))
        prefix = found[-1].prefix if found else NO_PREFIX
        for i in range(len(found), len(letters)):
            prefix = pool.learn(prefix, _tokens(letters[i]), pages[i]).prefix
        running.append(pages)
        assert [known.page for known in pool.find(text, len(letters))] == pages
    reached = set()
    texts = [[]]
    while texts:
        text = texts.pop()
        for letter in (0, 1):
            longer = text + _tokens(letter)
            if len(found := pool.find(longer, len(longer) // PAGE_TOKENS)) * PAGE_TOKENS == len(
                longer
            ):
                reached.add(found[-1].page)
                texts.append(longer)
    assert len(reached) == pool.n_known
    before = {NO_PREFIX}
    for prefix, tokens, known in pool.known():
        assert prefix in before, "what a page continues comes first"
        before.add(known.prefix)
        reached.remove(known.page)
        assert len(tokens) == PAGE_TOKENS
    assert not reached
