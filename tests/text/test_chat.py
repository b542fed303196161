"""Chat templates: what they render, what they refuse, and that no template gets out of its sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from text.hostile_templates import ESCAPES, HOGS
from text.templates import CHATML, GEMMA, LLAMA2, MISTRAL

from cpuinfer.text import ChatTemplate, ChatTemplateError

HELLO = [{"role": "user", "content": "Hello"}]
TURNS = [*HELLO, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And?"}]


def test_chatml() -> None:
    assert ChatTemplate(CHATML).render(HELLO) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ChatTemplate(CHATML).render(HELLO, add_generation_prompt=False) == (
        "<|im_start|>user\nHello<|im_end|>\n"
    )


def test_special_tokens_are_known_by_name() -> None:
    rendered = ChatTemplate(MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}).render(TURNS)
    assert rendered == "<s> [INST] Hello [/INST] Hi.</s> [INST] And? [/INST]"


def test_from_gguf_takes_the_template_and_the_tokens_of_the_file() -> None:
    metadata: dict[str, Any] = {
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}",
        "tokenizer.chat_template.tool_use": "tools: {{ messages | length }}",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    assert ChatTemplate.from_gguf(metadata).render(HELLO) == "<s>Hello</s>"
    assert ChatTemplate.from_gguf(metadata, name="tool_use").render(HELLO) == "tools: 1"
    with pytest.raises(
        ChatTemplateError, match="no tokenizer.chat_template.rag; it has 'tool_use'"
    ):
        ChatTemplate.from_gguf(metadata, name="rag")


def test_variables_and_tools_reach_the_template() -> None:
    template = ChatTemplate("{{ tools[0].name }} {{ thinking }} {{ messages | length }}")
    assert template.render(HELLO, tools=[{"name": "f"}], thinking=True) == "f True 1"


def test_json_is_not_escaped_for_html() -> None:
    template = ChatTemplate("{{ messages | tojson(indent=2) }}")
    messages = [{"role": "user", "content": "<b> & 'é'"}]
    assert template.render(messages) == json.dumps(messages, ensure_ascii=False, indent=2)


def test_generation_and_loop_controls() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert ChatTemplate(source).render(TURNS) == "Hello"


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("'a' * 3 + 'b' ~ 1 ~ none", "aaab1None"),
        ("2 ** 10 // 3 % 7", str(2**10 // 3 % 7)),
        ("'%s=%05.1f' % ('x', 2.5)", "x=002.5"),
        ("'{:>4}|{b}'.format('x', b=2)", "   x|2"),
        ("[1, 2, 3][1:] | join('-')", "2-3"),
        ("{'a': 1, (1, 2): 2}[(1, 2)]", "2"),
        ("1 < 2 < 3 and 2 in [1, 2] and 'b' not in 'aa'", "True"),
        ("messages | selectattr('role', 'eq', 'user') | map(attribute='content') | join", "Hello"),
        ("[3, 1, 2] | sort | first", "1"),
        ("[{'n': 1}, {'n': 2}] | sum(attribute='n')", "3"),
        ("{'b': 1, 'a': 2} | dictsort | first | last", "2"),
        ("'a,b'.split(',') | last", "b"),
        ("'ab'.replace('a', 'c') | upper | replace('B', 'd') | trim('d')", "C"),
        ("'a\nb' | indent(2)", "a\n  b"),
        ("'it is' | title | center(9)", "  It Is  "),
        ("range(3) | list", "[0, 1, 2]"),
        ("messages[0].missing is defined", "False"),
        ("missing", ""),
        ("[none, true, 1.5, ()]", "[None, True, 1.5, ()]"),
        ("namespace(a=[1]).a", "[1]"),
        ("dict(a=1).items() | list", "[('a', 1)]"),
        ("'<' | e | safe", "&lt;"),
        ("'7' | int + 1.26 | round(1)", "8.3"),
    ],
)
def test_the_language_is_jinjas(expression: str, wanted: str) -> None:
    assert (
        ChatTemplate("{% if messages %}{{ " + expression + " }}{% endif %}").render(HELLO) == wanted
    )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("Hello", "must be a list of mappings"),
        (HELLO[0], "must be a list of mappings"),
        (None, "must be a list of mappings"),
        (["Hello"], r"messages\[0\] must be a mapping"),
        ([*HELLO, {"content": "x"}], r"messages\[1\] must have a role"),
        ([{"role": 3, "content": "x"}], "must have a role such as 'user', got 3"),
        ([{"role": "", "content": "x"}], "must have a role"),
        ([{"role": "user", "content": 5}], "must be a string or a list of parts, got int"),
        ([{"role": "user", "content": b"x"}], "got bytes"),
        ([{"role": "user", "content": "x", "more": object()}], r"messages\[0\]\['more'\].*object"),
        ([{"role": "user", "content": "x", 5: 1}], "has the key 5"),
    ],
)
def test_malformed_messages_are_refused_clearly(messages: Any, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(CHATML).render(messages)


def test_nested_messages_are_refused_clearly() -> None:
    nested: Any = "x"
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ChatTemplateError, match="more than 64 deep"):
        ChatTemplate(CHATML).render([{"role": "user", "content": "x", "more": nested}])


def test_what_the_template_refuses_is_told_in_its_words() -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        ChatTemplate(LLAMA2, {"bos_token": "<s>"}).render([*HELLO, *HELLO])
    with pytest.raises(ChatTemplateError, match="System role not supported"):
        ChatTemplate(GEMMA, {"bos_token": "<s>"}).render([{"role": "system", "content": "x"}])


def test_parts_for_a_template_of_plain_text_are_refused() -> None:
    with pytest.raises(ChatTemplateError, match="failed on these messages: TypeError"):
        ChatTemplate(CHATML).render([{"role": "user", "content": [{"type": "text", "text": "x"}]}])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in %}{{ messages }}", "line 1: Expected an expression"),
        ("a\n{{ messages", "line 2: unexpected end of template"),
        ("{{ messages | wordwrap }}", "No filter named 'wordwrap'"),
        ("{{ messages is odd_looking }}", "No test named"),
        ("Hello.", "never uses `messages`"),
        ("", "never uses `messages`"),
        (7, "must be a string, got int"),
    ],
)
def test_malformed_templates_are_refused_clearly(source: Any, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source).render(HELLO)


def test_a_file_without_a_template_says_what_to_do() -> None:
    with pytest.raises(ChatTemplateError, match="base model.*pass a template of your own"):
        ChatTemplate.from_gguf({})


def test_long_conversations_fit_the_limits() -> None:
    long = [
        {"role": "user", "content": "word " * 20_000},
        {"role": "assistant", "content": "x" * 10},
    ] * 50
    source = (
        "{% set ns = namespace(all='') %}{% for m in messages %}"
        "{% set ns.all = m.content | trim %}{{ m.role + ns.all.split('</think>')[-1] }}{% endfor %}"
    )
    rendered = ChatTemplate(source).render(long)
    assert len(rendered) == sum(len(m["role"]) + len(m["content"].strip()) for m in long)


def test_one_template_serves_many_threads() -> None:
    template = ChatTemplate(CHATML)
    given = [[{"role": "user", "content": str(i)}] for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        rendered = list(pool.map(template.render, given))
    assert rendered == [ChatTemplate(CHATML).render(messages) for messages in given]


def test_renderings_do_not_share_their_budget() -> None:
    template = ChatTemplate("{{ 'a' * 300000 }}{{ messages | length }}")
    assert {len(template.render(HELLO)) for _ in range(4)} == {300001}


@pytest.fixture(scope="module")
def hostile_results() -> dict[str, str | None]:
    """What became of each hostile template, in a process with little memory and time."""
    script = Path(__file__).parent / "hostile_templates.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", [*ESCAPES, *HOGS])
def test_hostile_templates_end_in_an_error(
    name: str, hostile_results: dict[str, str | None]
) -> None:
    assert name in hostile_results, "the template ended the process, or one before it did"
    error = hostile_results[name]
    assert error is not None, "the template was rendered"
    if name in ESCAPES:
        assert (
            "unsafe" in error or "undefined" in error or "not callable" in error or "no " in error
        )


def test_the_names_of_the_hostile_templates_are_distinct() -> None:
    assert not ESCAPES.keys() & HOGS.keys()
