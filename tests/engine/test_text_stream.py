from hypothesis import given
from hypothesis import strategies as st

from cpuinfer.engine.outputs import TextStream


class Pieces:
    """Token i is pieces[i]."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def push(self, token: int) -> str:
        return self.pieces[token]

    def flush(self) -> str:
        return ""


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Character by character: the first at which a stop string is complete, the longest of them."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


short = st.text("ab", max_size=4)


@given(st.lists(short, max_size=12), st.lists(short.filter(bool), max_size=3), st.booleans())
def test_stop_strings(pieces: list[str], stops: list[str], include: bool) -> None:
    want, want_stop = expected("".join(pieces), stops, include)
    stream = TextStream(Pieces(pieces), stops, include)
    stop = None
    seen = ""
    for i in range(len(pieces)):
        stop = stream.push(i)
        assert stream.text.startswith(seen), "released text was taken back"
        seen = stream.text
        # What is out can stay out whatever follows, and nothing is held that cannot begin a stop string.
        assert want.startswith(seen)
        rest = "".join(pieces[: i + 1])[len(seen) :]
        assert stop or not rest or any(s.startswith(rest) for s in stops)
        if stop:
            break
    if stop is None:
        stop = stream.finish()
    assert (stream.text, stop) == (want, want_stop)


def test_text_before_min_tokens_is_not_searched() -> None:
    stream = TextStream(Pieces(["a", "b", "ab"]), ["ab"], False)
    assert stream.push(0, search=False) is None
    assert stream.push(1, search=True) is None
    assert stream.push(2, search=True) == "ab"
    assert stream.text == "ab"


def test_flushed_text_is_searched() -> None:
    class Late(Pieces):
        def flush(self) -> str:
            return "\ufffd"

    stream = TextStream(Late(["x"]), ["\ufffd"], False)
    assert stream.push(0) is None
    assert stream.finish() == "\ufffd"
    assert stream.text == "x"
