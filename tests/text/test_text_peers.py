"""Token ids equal llama.cpp's, and prompts equal transformers', on real vocabularies and templates.

llama.cpp's repository holds vocabularies without weights (models/ggml-vocab-*.gguf) and published chat templates
(models/templates/*.jinja); CPUINFER_LLAMA_CPP names a checkout to test against them too.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text.templates import ALL, CHATML

from cpuinfer.text import ChatTemplate, ChatTemplateError, Detokenizer, Tokenizer

HARD = [
    "Hello, world! It's 3.14159 o'clock; don't you'LL I'VE we'Re",
    "  two\n\n\nthree   \t\ttabs \r\n crlf \u00a0nbsp\u3000wide\u2028line\x85next\u200bzero",
    "你好，世界！日本語のテキスト カタカナ 한국어 텍스트 ไทย العربية עברית हिन्दी বাংলা தமிழ்",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈👍🏽 e\u0301 \ufe0f \u200d naïve façade Ærøskøbing Ωμέγα Привет",
    "def f(x):\n    return {'a': [x ** 2, ~x]}  # comment\n\n\nclass A: pass\n",
    "0 12 345 6789 12345678901234567890 ½ ² Ⅷ ① ٣ 1,000.50 0x1F 1e-9",
    "<|im_start|>user\nHi<|im_end|>\n<s></s><|endoftext|><|eot_id|><0x0A>[INST]<unk>",
    "\x00\x01\x7f\x80 \ufffd\uffff\U0010ffff",
    "\u0958\u0340\u212b\u1f71 ﬁ ﬀ Å",
    "a" * 300 + " " * 100 + "!" * 100 + "\n" * 100,
]
HARD += [" " * n + "x" for n in range(1, 40)] + ["\n" * n for n in range(1, 20)]

_POOLS = [
    "abc XYZ's 'LL don't",
    "0123456789",
    "  \t\n\r\u00a0\u3000\x85\u2028",
    "你好世界日本語カタカナ한국어",
    "éàüßñøΩжЩ",
    "🙂👩‍👧🏳️\u200d\ufe0f",
    "!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`\"'",
    "अआक्षกขค عربى עברית",
    "½²Ⅷ①٣",
    "<s></s><|im_start|><|im_end|>▁Ġ",
]


def _random_texts(n: int) -> list[str]:
    rng = random.Random(7)
    return [
        "".join(rng.choice(rng.choice(_POOLS)) for _ in range(rng.randint(1, 40))) for _ in range(n)
    ]


def _metadata(path: Path) -> dict[str, Any]:
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(path).fields
    return {k: f.contents() for k, f in fields.items() if k.startswith(("tokenizer.", "general."))}


class Peer:
    """The same vocabulary in cpuinfer and in llama.cpp."""

    def __init__(self, path: Path) -> None:
        llama_cpp = pytest.importorskip("llama_cpp")
        self.metadata = _metadata(path)
        self.ours = Tokenizer.from_gguf(self.metadata)
        self.theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    def check(self, text: str) -> None:
        """Ids are equal with and without special tokens, and the ids give the same bytes back."""
        for special in (True, False):
            ours = self.ours.encode(text, add_special=special, parse_special=special)
            theirs = self.theirs.tokenize(text.encode(), add_bos=special, special=special)
            assert ours == theirs, (text, special)
        assert [self.ours.token_bytes(id) for id in ours] == [self._piece(id) for id in ours]

    def _piece(self, id: int) -> bytes:
        import llama_cpp

        piece = ctypes.create_string_buffer(16384)
        vocab = llama_cpp.llama_model_get_vocab(self.theirs.model)
        n = llama_cpp.llama_token_to_piece(vocab, id, piece, len(piece), 0, True)
        return piece.raw[:n]


def _llama_cpp() -> Path | None:
    given = os.environ.get("CPUINFER_LLAMA_CPP")
    return Path(given) / "models" if given else None


def _files(pattern: str) -> list[Any]:
    folder = _llama_cpp()
    if folder is None:
        why = "set CPUINFER_LLAMA_CPP to a checkout of llama.cpp"
        return [pytest.param(None, marks=pytest.mark.skip(reason=why))]
    return [pytest.param(path, id=path.stem) for path in sorted(folder.glob(pattern))]


@pytest.fixture(scope="module")
def real(real_model: Path) -> Peer:
    return Peer(real_model)


@pytest.mark.peer
@pytest.mark.model
@pytest.mark.parametrize("text", HARD)
def test_hard_text_on_the_real_model(real: Peer, text: str) -> None:
    real.check(text)


@pytest.mark.peer
@pytest.mark.model
@settings(deadline=None, max_examples=300)
@given(text=st.text())
def test_any_text_on_the_real_model(real: Peer, text: str) -> None:
    real.check(text)


@pytest.mark.peer
@pytest.mark.model
def test_random_texts_on_the_real_model(real: Peer) -> None:
    for text in _random_texts(1000):
        real.check(text)


@pytest.mark.model
@given(data=st.data())
@settings(deadline=None)
def test_detokenizing_the_real_model(real_model: Path, data: st.DataObject) -> None:
    tokenizer = _tokenizer(real_model)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=50))
    detokenizer = Detokenizer(tokenizer)
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == tokenizer.decode(ids)


_built: dict[Path, Tokenizer] = {}


def _tokenizer(path: Path) -> Tokenizer:
    if path not in _built:
        _built[path] = Tokenizer.from_gguf(_metadata(path))
    return _built[path]


@pytest.mark.peer
@pytest.mark.model
def test_the_real_models_prompt_equals_transformers(real_model: Path) -> None:
    metadata = _metadata(real_model)
    template = ChatTemplate.from_gguf(metadata)
    for messages in CONVERSATIONS.values():
        _compare(template.source, messages, None, {"bos_token": "<|im_start|>"})


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "turns": [
        {"role": "user", "content": "Hi <b>"},
        {"role": "assistant", "content": " <think>\nhm\n</think>\nYes. "},
        {"role": "user", "content": "Ünï 👩‍👩‍👧"},
    ],
    "system": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
    "tool call": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
                }
            ],
        },
        {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "sunny"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather <now> & 'here'",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "a city"}},
                "required": ["city"],
            },
        },
    }
]


def _compare(
    source: str, messages: list[dict[str, Any]], tools: list[Any] | None, tokens: dict[str, str]
) -> None:
    """Both render the same prompt, or both refuse."""
    peer = pytest.importorskip("transformers.utils.chat_template_utils")
    ours: str | ChatTemplateError
    try:
        ours = ChatTemplate(source, tokens).render(messages, tools=tools)
    except ChatTemplateError as error:
        ours = error
    try:
        rendered, _ = peer.render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=True, **tokens
        )
    except Exception as error:
        assert isinstance(ours, ChatTemplateError), error
        return
    assert ours == rendered[0]


@pytest.mark.peer
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", ALL)
def test_prompts_equal_transformers(name: str, conversation: str, tools: list[Any] | None) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    _compare(ALL[name], CONVERSATIONS[conversation], tools, tokens)


# One joins a filtered generator, which transformers cannot print as JSON; the other adds text marked as safe HTML to plain
# text, which transformers then escapes.
_UNLIKE = {"llama-cpp-deepseek-r1", "meetkai-functionary-medium-v3.1"}


@pytest.mark.peer
@pytest.mark.parametrize("path", _files("templates/*.jinja"))
def test_prompts_of_published_templates_equal_transformers(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for messages in CONVERSATIONS.values():
        for tools in [None] if path.stem in _UNLIKE else [None, TOOLS]:
            _compare(source, messages, tools, {"bos_token": "<s>", "eos_token": "</s>"})


UNSUPPORTED = {"ggml-vocab-bert-bge": "bert", "ggml-vocab-nomic-bert-moe": "t5"}


@pytest.fixture(scope="module", params=_files("ggml-vocab-*.gguf"))
def vocabulary(request: pytest.FixtureRequest) -> Iterator[Peer]:
    path: Path = request.param
    if path.stem in UNSUPPORTED:
        with pytest.raises(ValueError, match=f"is '{UNSUPPORTED[path.stem]}'; supported are"):
            Tokenizer.from_gguf(_metadata(path))
        pytest.skip("refused: its tokenizer is not BPE")
    yield Peer(path)


@pytest.mark.peer
@pytest.mark.slow
def test_vocabularies_of_llama_cpp(vocabulary: Peer) -> None:
    for text in HARD + _random_texts(500):
        vocabulary.check(text)


def test_the_templates_of_the_tests_are_templates() -> None:
    assert ChatTemplate(CHATML).render(CONVERSATIONS["system"]).count("<|im_start|>") == 3
