"""Tokenizers on small vocabularies whose answers can be worked out by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text.vocabularies import BYTE, CONTROL, bpe, names, spm

from cpuinfer.text import Tokenizer, TokenizerError
from cpuinfer.text.pretokenizers import PRE_TOKENIZERS

BPE = Tokenizer.from_gguf(bpe())
SPM = Tokenizer.from_gguf(spm())


def test_bpe_merges_in_order_of_the_list() -> None:
    assert names(BPE, BPE.encode("hello world")) == ["hello", "Ġwor", "l", "d"]


def test_spm_merges_by_score_and_adds_a_space_before_the_text() -> None:
    assert names(SPM, SPM.encode("hello")) == ["<s>", "▁hello"]
    assert names(SPM, SPM.encode("hello", add_special=False)) == ["▁hello"]
    plain = Tokenizer.from_gguf(spm(add_space_prefix=False))
    assert names(plain, plain.encode("hello", add_special=False)) == ["hello"]


def test_spm_falls_back_to_bytes() -> None:
    ids = SPM.encode("é", add_special=False)
    assert names(SPM, ids) == ["▁", "<0xC3>", "<0xA9>"]
    assert SPM.decode(ids) == "é"


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_control_tokens_are_parsed_only_on_request(tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos_id
    assert eos in tokenizer.encode("hello</s>")
    assert eos not in tokenizer.encode("hello</s>", parse_special=False)


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
@pytest.mark.parametrize("parse_special", [True, False])
def test_user_defined_tokens_are_always_parsed(tokenizer: Tokenizer, parse_special: bool) -> None:
    ids = tokenizer.encode("hello<tool>hello", parse_special=parse_special)
    assert names(tokenizer, ids).count("<tool>") == 1


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_the_empty_text_has_only_what_is_added(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("", add_special=False) == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    ("pre", "begins"), [("gpt-2", False), ("llama-bpe", True), ("tekken", True), ("qwen2", False)]
)
def test_families_have_their_own_default_for_bos(pre: str, begins: bool) -> None:
    tokenizer = Tokenizer.from_gguf(bpe(pre))
    assert (tokenizer.encode("hello")[0] == tokenizer.bos_id) is begins
    asked = Tokenizer.from_gguf(bpe(pre, add_bos_token=not begins, add_eos_token=True))
    ids = asked.encode("hello")
    assert (ids[0] == asked.bos_id) is not begins
    assert ids[-1] == asked.eos_id


def test_ignore_merges_takes_a_whole_word_first() -> None:
    # Without the merge of "hell" and "o" only llama-bpe's rule finds "hello".
    merges = ["h e", "l l", "he ll"]
    assert (
        len(
            Tokenizer.from_gguf(bpe("llama-bpe", merges=merges, add_bos_token=False)).encode(
                "hello"
            )
        )
        == 1
    )
    assert len(Tokenizer.from_gguf(bpe("gpt-2", merges=merges)).encode("hello")) == 2


# One name of each scheme.
@pytest.mark.parametrize("pre", sorted({v: k for k, v in PRE_TOKENIZERS.items()}.values()))
@settings(deadline=None)
@given(text=st.text())
def test_every_pre_tokenizer_keeps_every_byte(pre: str, text: str) -> None:
    tokenizer = _of(pre)
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == text


_cache: dict[str, Tokenizer] = {}


def _of(pre: str) -> Tokenizer:
    if pre not in _cache:
        _cache[pre] = Tokenizer.from_gguf(bpe(pre))
    return _cache[pre]


@settings(deadline=None)
@given(text=st.text())
def test_spm_keeps_every_byte(text: str) -> None:
    # ▁ is how SentencePiece writes a space, so a ▁ of the text comes back as one.
    ids = SPM.encode(text, parse_special=False)
    assert SPM.decode(ids) == text.replace("▁", " ")


@settings(deadline=None)
@given(text=st.text(alphabet="<s/>tol hew▁"))
def test_plain_text_never_becomes_a_control_token(text: str) -> None:
    for tokenizer in (BPE, SPM):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert not any(tokenizer.is_special(id) for id in ids)


def test_decode_skips_special_tokens_on_request() -> None:
    ids = SPM.encode("hello</s>")
    assert SPM.decode(ids) == "hello"
    assert SPM.decode(ids, skip_special=False) == "<s> hello</s>"


def test_unused_tokens_have_no_text() -> None:
    assert BPE.token_bytes(BPE.vocab_size - 1) == b""


def test_end_of_generation_names() -> None:
    plain = bpe()
    assert Tokenizer.from_gguf(plain).eog_ids == {plain["tokenizer.ggml.eos_token_id"]}
    tokens = plain["tokenizer.ggml.tokens"]
    tokens[-1] = "<|im_end|>"
    tokens[-2] = "<turn_over>"
    tokenizer = Tokenizer.from_gguf(bpe(tokens=tokens, eot_token_id=len(tokens) - 2))
    assert tokenizer.eog_ids == {len(tokens) - 3, len(tokens) - 2, len(tokens) - 1}
    assert tokenizer.is_special(len(tokens) - 1)


def test_in_openai_harmony_end_does_not_end_the_generation() -> None:
    tokens = [*bpe()["tokenizer.ggml.tokens"], "<|end|>", "<|return|>", "<|call|>"]
    tokenizer = Tokenizer.from_gguf(bpe(tokens=tokens, token_type=None))
    ends = {tokenizer.token(id) for id in tokenizer.eog_ids}
    assert ends == {"</s>", "<|return|>", "<|call|>"}


def test_arrays_may_be_numpy() -> None:
    metadata = spm()
    for key, dtype in (("token_type", np.int32), ("scores", np.float32)):
        metadata[f"tokenizer.ggml.{key}"] = np.array(metadata[f"tokenizer.ggml.{key}"], dtype)
    metadata["tokenizer.ggml.bos_token_id"] = np.uint32(1)
    metadata["tokenizer.ggml.add_bos_token"] = np.bool_(False)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert names(tokenizer, tokenizer.encode("hello")) == ["▁hello"]


def _first_token_twice() -> list[str]:
    tokens: list[str] = bpe()["tokenizer.ggml.tokens"]
    return [tokens[1], *tokens[1:]]


N_BPE, N_SPM = BPE.vocab_size, SPM.vocab_size
HOSTILE = [
    (bpe(model="bert"), "supported are gpt2, llama, gemma4"),
    (bpe(model=None), "is missing"),
    (bpe(model=7), "must be a string"),
    (bpe("nobody"), "known are .*llama-bpe"),
    (bpe(tokens=None), "missing or empty"),
    (bpe(tokens=[]), "missing or empty"),
    (bpe(tokens="abc"), "must be an array"),
    (bpe(tokens=3), "must be an array"),
    (bpe(tokens=np.arange(4)), "must hold str, found int"),
    (bpe(tokens=[None] * N_BPE), "must hold str"),
    (bpe(tokens=_first_token_twice()), "more than once"),
    (bpe(tokens=["\ud800", *bpe()["tokenizer.ggml.tokens"][1:]]), "not Unicode"),
    (bpe(tokens=["x" * 5000, *bpe()["tokenizer.ggml.tokens"][1:]]), "longer than 4096"),
    (bpe(token_type=[1]), f"1 entries for {N_BPE} tokens"),
    (bpe(token_type=[1.5] * N_BPE), "must hold int, found float"),
    (bpe(token_type=[True] * N_BPE), "must hold int, found bool"),
    (bpe(token_type=[77] * N_BPE), "known types are 0 to 6"),
    (bpe(token_type=[-1] * N_BPE), "known types are 0 to 6"),
    (bpe(merges=None), "missing or empty"),
    (bpe(merges=["nopair"]), "not a pair"),
    (bpe(merges=[""]), "not a pair"),
    (bpe(merges=["a "]), "not a pair"),
    (bpe(merges=["zz yy"]), "do not fit"),
    (bpe(merges=["z q"]), "do not fit"),
    (bpe(merges=[1, 2]), "must hold str"),
    (bpe(bos_token_id=N_BPE), "outside the vocabulary"),
    (bpe(bos_token_id=-1), "outside the vocabulary"),
    (bpe(eos_token_id=2**32 - 1), "outside the vocabulary"),
    (bpe(eos_token_id="2"), "must be an integer"),
    (bpe(eot_token_id=True), "must be an integer"),
    (bpe(eom_token_id=1.5), "must be an integer"),
    (bpe(bos_token_id=None, add_bos_token=True), "bos_token_id is missing"),
    (bpe(eos_token_id=None, add_eos_token=True), "eos_token_id is missing"),
    (bpe(add_bos_token="yes"), "true or false"),
    (bpe(add_bos_token=1), "true or false"),
    (spm(scores=None), f"0 entries for {N_SPM} tokens"),
    (spm(scores=[0.0]), f"1 entries for {N_SPM} tokens"),
    (spm(scores=[float("nan")] * N_SPM), "not finite"),
    (spm(scores=[float("-inf")] * N_SPM), "not finite"),
    (spm(scores=["x"] * N_SPM), "must hold float or int"),
    (spm(unknown_token_id=N_SPM), "outside the vocabulary"),
]


@pytest.mark.parametrize(("metadata", "message"), HOSTILE)
def test_hostile_metadata_is_refused_clearly(metadata: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(metadata)


def test_long_tokens_do_not_make_a_sentencepiece_vocabulary_slow() -> None:
    tokens = [*spm()["tokenizer.ggml.tokens"], *(f"{i:04}" + "▁" * 4000 for i in range(100))]
    more = {"scores": [0.0] * len(tokens), "token_type": [1] * len(tokens)}
    with pytest.raises(TokenizerError, match="too long for a SentencePiece"):
        Tokenizer.from_gguf(spm(tokens=tokens, **more))


def test_malformed_byte_tokens_are_refused_when_used() -> None:
    tokens = spm()["tokenizer.ggml.tokens"]
    tokens[3] = "<0xZZ>"
    tokenizer = Tokenizer.from_gguf(spm(tokens=tokens))
    with pytest.raises(TokenizerError, match="not of the form"):
        tokenizer.token_bytes(3)
    assert tokenizer.token_bytes(4) == b"\x01"


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(list(bpe()) + list(spm())),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=8),
            st.lists(st.text(max_size=3), max_size=5),
            st.lists(st.integers(-2, 9), max_size=5),
            st.lists(st.floats(), max_size=5),
        ),
        max_size=4,
    ),
    st.sampled_from([bpe(), spm()]),
)
def test_any_metadata_gives_a_tokenizer_or_a_tokenizer_error(
    changes: dict[str, object], base: dict[str, object]
) -> None:
    try:
        tokenizer = Tokenizer.from_gguf({**base, **changes})
    except TokenizerError:
        return
    tokenizer.decode(tokenizer.encode("hello world"))


@pytest.mark.parametrize("id", [-1, N_BPE])
def test_ids_out_of_range_are_refused(id: int) -> None:
    for use in (lambda: BPE.decode([id]), lambda: BPE.token_bytes(id), lambda: BPE.is_special(id)):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            use()


def test_lone_surrogates_and_other_types_are_refused() -> None:
    with pytest.raises(TokenizerError, match="lone surrogate at index 2"):
        BPE.encode("ab\ud83d")
    with pytest.raises(TokenizerError, match="must be a string"):
        BPE.encode(b"ab")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tokenizer", [BPE, SPM, _of("llama-bpe"), _of("deepseek-v3"), _of("default")]
)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "1", "!", "'", " \n", "é", "a ", "🙂"])
def test_a_long_run_of_one_character_is_encoded(tokenizer: Tokenizer, unit: str) -> None:
    text = unit * (100_000 // len(unit))
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_importing_text_loads_neither_library() -> None:
    code = "import sys, cpuinfer.text; print([m for m in ('jinja2', 'tokenizers') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


def test_known_types_match_the_vocabularies_of_the_tests() -> None:
    from cpuinfer.text.vocabulary import TokenType

    assert (TokenType.CONTROL, TokenType.BYTE) == (CONTROL, BYTE)
    assert re.fullmatch(r"<0x[0-9A-F]{2}>", SPM.token(3))
