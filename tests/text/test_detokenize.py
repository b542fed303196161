"""Incremental detokenising equals decoding at once, and never splits a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text.vocabularies import bpe, spm

from cpuinfer.text import Detokenizer, Tokenizer, TokenizerError

TOKENIZERS = {"bpe": Tokenizer.from_gguf(bpe()), "spm": Tokenizer.from_gguf(spm())}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_pushes_and_flush_equal_decode(kind: str, data: st.DataObject, skip_special: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=60))
    detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
    text = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
    assert text == tokenizer.decode(ids, skip_special=skip_special)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text())
def test_no_push_ends_inside_a_character(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    detokenizer = Detokenizer(tokenizer)
    wanted = tokenizer.decode(tokenizer.encode(text, add_special=False, parse_special=False))
    made = ""
    for id in tokenizer.encode(text, add_special=False, parse_special=False):
        made += detokenizer.push(id)
        assert wanted.startswith(made)  # a split character would show as U+FFFD
    assert detokenizer.flush() == ""
    assert made == wanted


def test_the_bytes_of_a_character_wait_for_each_other() -> None:
    tokenizer = TOKENIZERS["spm"]
    detokenizer = Detokenizer(tokenizer)
    smile = [3 + byte for byte in "🙂".encode()]
    assert [detokenizer.push(id) for id in smile] == ["", "", "", "🙂"]
    assert [detokenizer.push(id) for id in smile[:2]] == ["", ""]
    assert detokenizer.flush() == "\ufffd"


def test_the_leading_space_is_dropped_once_and_kept_when_continuing() -> None:
    tokenizer = TOKENIZERS["spm"]
    hello = tokenizer.encode("hello", add_special=False)
    for continues, wanted in ((False, "hello hello"), (True, " hello hello")):
        detokenizer = Detokenizer(tokenizer, continues=continues)
        pushed = "".join(map(detokenizer.push, [1, *hello, *hello]))
        assert pushed + detokenizer.flush() == wanted


def test_ids_out_of_range_are_refused() -> None:
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        Detokenizer(TOKENIZERS["bpe"]).push(1 << 20)
