"""Chat templates: messages to the prompt text that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import CodeType

    from cpuinfer.text.sandbox import Sandbox

MAX_TEMPLATE_CHARS = 1 << 16
MAX_TEMPLATE_NODES = 8000
"""Largest template, in characters and in nodes of its syntax tree; the largest published ones have about 17,000 and
1,300. Bounds the time and memory to compile one (0.7 s and 50 MB, measured)."""

MAX_INPUT_DEPTH = 64
"""Deepest nesting of messages and tools."""

BASE_UNITS = 1 << 20
UNITS_PER_INPUT = 64
"""Work allowed to a rendering, in characters and elements made: BASE_UNITS plus this for each unit of its input."""

BASE_OUTPUT_CHARS = 1 << 20
OUTPUT_PER_INPUT = 16
"""Longest prompt that a rendering may give: BASE_OUTPUT_CHARS plus this for each unit of its input."""

DEADLINE_SECONDS = 2.0
"""Wall time allowed to a rendering; published templates take milliseconds."""

_TEMPLATE = "tokenizer.chat_template"
_SPECIAL_NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


class ChatTemplateError(ValueError):
    """A missing, malformed or misbehaving chat template, or messages which it cannot take."""


class ChatTemplate:
    """A model's own template, rendered in a sandbox with limits on time, output and memory. Safe to share by threads."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """source: a jinja2 template; special_tokens: texts by variable name, such as bos_token; seconds: the wall
        time that a rendering may take.

        Raises ChatTemplateError if the template is not a string or too long.
        """
        if not isinstance(source, str):
            raise ChatTemplateError(
                f"a chat template must be a string, got {type(source).__name__}"
            )
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ChatTemplateError(
                f"the chat template has {len(source)} characters, more than {MAX_TEMPLATE_CHARS}"
            )
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._seconds = seconds

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, name: str | None = None) -> ChatTemplate:
        """The template of a GGUF file: the default one, or the one of this name (`tokenizer.chat_template.NAME`).

        Raises ChatTemplateError if the file has none.
        """
        key = _TEMPLATE if name is None else f"{_TEMPLATE}.{name}"
        if key not in metadata:
            names = [
                k.removeprefix(_TEMPLATE + ".") for k in metadata if k.startswith(_TEMPLATE + ".")
            ]
            has = f"; it has {', '.join(map(repr, sorted(names)))}" if names else ""
            raise ChatTemplateError(
                f"the file has no {key}{has}. It may be a base model, which continues text and does not chat: "
                "give it a plain prompt, or pass a template of your own"
            )
        return cls(metadata[key], _special_tokens(metadata))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation.

        messages: mappings with "role" (a string) and, mostly, "content" (a string, a list of parts or None);
        add_generation_prompt: end with the beginning of the assistant's answer; tools: JSON schemas of functions;
        variables: anything else that the template knows, made of JSON's types.
        Raises ChatTemplateError if the messages are malformed, the template refuses them, or it breaks a limit.
        """
        _check_messages(messages)
        given = {"messages": messages, "tools": tools, "documents": None, **variables}
        size = [0]
        plain = {name: _plain(value, name, size) for name, value in given.items()}
        plain["add_generation_prompt"] = bool(add_generation_prompt)
        return self._run({**self._special_tokens, **plain}, size[0])

    def _run(self, variables: dict[str, Any], input_size: int) -> str:
        from jinja2 import Template, TemplateError

        from cpuinfer.text.budget import Budget, LimitExceeded

        sandbox, code = self._compiled
        budget = Budget(BASE_UNITS + UNITS_PER_INPUT * input_size, self._seconds)
        most = BASE_OUTPUT_CHARS + OUTPUT_PER_INPUT * input_size
        environment = sandbox.on_budget(budget)
        pieces: list[str] = []
        length = 0
        try:
            template = Template.from_code(environment, code, environment.make_globals(None))
            for piece in template.generate(variables):
                length += len(piece)
                if length > most:
                    raise LimitExceeded(f"its output is longer than {most} characters")
                pieces.append(piece)
        except LimitExceeded as error:
            raise ChatTemplateError(f"the chat template was stopped: {error}") from None
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template failed: {error.message or error}") from None
        except Exception as error:
            raise ChatTemplateError(
                f"the chat template failed on these messages: {type(error).__name__}: {error}"
            ) from None
        return "".join(pieces)

    @cached_property
    def _compiled(self) -> tuple[Sandbox, CodeType]:
        from jinja2 import TemplateSyntaxError
        from jinja2.nodes import Name, Node

        from cpuinfer.text.sandbox import Sandbox

        sandbox = Sandbox()
        try:
            tree = sandbox.parse(self.source)
            n_nodes = sum(1 for _ in tree.find_all(Node))
            if n_nodes > MAX_TEMPLATE_NODES:
                raise ValueError(f"it has {n_nodes} nodes, more than {MAX_TEMPLATE_NODES}")
            names = {name.name for name in tree.find_all(Name)}
            code = sandbox.compile(sandbox.guarded(tree))
        except TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the chat template, line {error.lineno}: {error.message}"
            ) from None
        except Exception as error:
            raise ChatTemplateError(
                f"the chat template cannot be compiled: {type(error).__name__}: {error}"
            ) from None
        if "messages" not in names:
            raise ChatTemplateError(
                "the chat template never uses `messages`, so it cannot render any"
            )
        return sandbox, code


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return {}
    found = {}
    for variable, name in _SPECIAL_NAMES.items():
        id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if hasattr(id, "__index__") and 0 <= int(id) < len(tokens):  # type: ignore[arg-type]
            found[variable] = str(tokens[int(id)])  # type: ignore[arg-type]
    return found


def _check_messages(messages: object) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ChatTemplateError(
            f"messages must be a list of mappings with role and content, got {type(messages).__name__}"
        )
    if not messages:
        raise ChatTemplateError(
            'messages is empty; give at least one, such as {"role": "user", "content": "Hello"}'
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ChatTemplateError(
                f"messages[{i}] must be a mapping with role and content, got {type(message).__name__}"
            )
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ChatTemplateError(f"messages[{i}] must have a role such as 'user', got {role!r}")
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list, tuple)):
            raise ChatTemplateError(
                f"messages[{i}]['content'] must be a string or a list of parts, got {type(content).__name__}"
            )


def _plain(value: Any, path: str, size: list[int], depth: int = 0) -> Any:
    """A copy made of JSON's types alone, so that no method of a caller's object is within a template's reach.

    Adds the characters and elements to size[0].
    """
    size[0] += 1
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            size[0] += len(value) if isinstance(value, str) else 0
            return value if type(value) is kind else kind(value)
    if depth >= MAX_INPUT_DEPTH:
        raise ChatTemplateError(f"{path} is nested more than {MAX_INPUT_DEPTH} deep")
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise ChatTemplateError(f"{path} has the key {wrong!r}; keys must be strings")
        return {str(k): _plain(v, f"{path}[{k!r}]", size, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{path}[{i}]", size, depth + 1) for i, v in enumerate(value)]
    raise ChatTemplateError(
        f"{path} must be made of strings, numbers, booleans, None, lists and mappings, got {type(value).__name__}"
    )
