"""A template engine for untrusted templates: jinja2's immutable sandbox, closed further and on a budget.

Only the names, attributes, methods and filters that chat templates use exist. Everything that could take long or
grow large is rewritten in the template's syntax tree, or intercepted, to pay from a Budget before it runs.
"""

from __future__ import annotations

import re
import types
from datetime import datetime
from string import Formatter
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from cpuinfer.text.budget import Budget, LimitExceeded
from cpuinfer.text.sandbox_filters import FILTERS, TESTS, check_printf, replaced_size
from cpuinfer.text.sandbox_guards import Guards

MAX_RANGE = 100_000
"""Longest range(), as in jinja2's own sandbox."""

MAX_INT_BITS = 4096
"""Largest integer a template may make; beyond, arithmetic is no longer a short operation."""

MAX_PATTERN = 256
"""Longest argument of strip and of searches from the right, whose worst case is text length times argument length."""

_STR_METHODS = frozenset(
    [
        "capitalize",
        "casefold",
        "center",
        "count",
        "endswith",
        "find",
        "format",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "islower",
        "isnumeric",
        "isspace",
        "istitle",
        "isupper",
        "join",
        "ljust",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rjust",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "zfill",
    ]
)
_SHORT_ARGUMENT = frozenset(
    ["strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"]
)
_PADDING = frozenset(("center", "ljust", "rjust", "zfill"))
_METHODS: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
}
_LOOP_ATTRIBUTES = frozenset(
    [
        "index",
        "index0",
        "revindex",
        "revindex0",
        "first",
        "last",
        "length",
        "depth",
        "depth0",
        "previtem",
        "nextitem",
        "cycle",
        "changed",
    ]
)


class SafeNamespace(Namespace):
    """jinja2's namespace() without a printed form that could grow with what it holds."""

    def __repr__(self) -> str:
        return "<namespace>"


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateRuntimeError(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > MAX_PATTERN or re.search(r"\d{3}", format):
        raise LimitExceeded("its date format is too long")
    return datetime.now().strftime(format)


def _range(*args: int) -> range:
    made = range(*args)
    if len(made) > MAX_RANGE:
        raise LimitExceeded(f"it uses a range of {len(made)} numbers, more than {MAX_RANGE}")
    return made


class GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; rendering only needs what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse up to endgeneration."""
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering: `budget` is what it may spend."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    budget: Budget

    def __init__(self) -> None:
        # optimized=False: the optimiser would evaluate constant expressions at compile time, outside any budget.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            extensions=[loopcontrols, GenerationTag],
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals = {
            "range": _range,
            "dict": dict,
            "namespace": SafeNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions = frozenset(self.globals.values())

    def on_budget(self, budget: Budget) -> Sandbox:
        """A copy of this environment for one rendering."""
        copy: Sandbox = self.overlay()
        copy.budget = budget
        return copy

    @staticmethod
    def guarded(tree: nodes.Template) -> nodes.Template:
        """Put the guards into a template's syntax tree, in place. Raises jinja2.TemplateSyntaxError."""
        guarded: nodes.Template = Guards().visit(tree)
        return guarded

    # The guards below are called from the rewritten tree.

    def guard_step(self, data: int) -> None:
        """A turn of a loop or a piece of `data` characters of literal text."""
        self.budget.step(data)

    def guard_read(self, value: Any) -> Any:
        """A value about to be compared or hashed."""
        self.budget.step()
        self.budget.size(value)
        return value

    def guard_new(self, value: Any) -> Any:
        """A value just made by a literal or a slice."""
        self.budget.step()
        self.budget.charge_new(value)
        return value

    def guard_concat(self, *parts: Any) -> str:
        """The ~ operator."""
        texts = [self.budget.text(part) for part in parts]
        self.budget.charge(sum(map(len, texts)))
        return "".join(texts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only what chat templates use: a list, not jinja2's rule of thumb."""
        if isinstance(obj, LoopContext):
            return attr in _LOOP_ATTRIBUTES
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        if isinstance(obj, Macro):
            return attr in ("name", "arguments", "caller", "catch_kwargs", "catch_varargs")
        if isinstance(obj, tuple) and attr in ("grouper", "list"):  # rows of groupby
            return type(obj) is not tuple
        return attr in _METHODS.get(type(obj), ())

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse at once; jinja2 would print nothing and go on."""
        raise SecurityError(f"attribute {attribute!r} of {type(obj).__name__!r} is unsafe")

    def getitem(self, obj: Any, argument: Any) -> Any:
        """obj[argument]; a tuple is checked before it is hashed."""
        if isinstance(argument, tuple):
            self.budget.size(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902
        """Call what a template may call, paying for it."""
        if isinstance(__obj, types.MethodType) and __obj.__self__ is __self:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(*args)
        budget = __self.budget
        budget.step(sum(map(budget.size, args)) // 64)
        for value in kwargs.values():
            budget.size(value)
        if not __self._callable(__obj):
            raise SecurityError(f"{type(__obj).__name__} is not callable in a chat template")
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        if isinstance(method, types.BuiltinMethodType):
            given = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}
            if method.__name__ == "join" and args:
                args = (_as_list(args[0]), *args[1:])
            _pay_method(budget, method, args, given)
        result = __context.call(__obj, *args, **kwargs)
        budget.charge_new(result)
        return result

    def _callable(self, obj: Any) -> bool:
        if isinstance(obj, (Macro, BlockReference, LoopContext, Undefined)):
            return True
        if isinstance(obj, types.MethodType):
            return isinstance(obj.__self__, LoopContext) and obj.__name__ in ("cycle", "changed")
        if isinstance(obj, types.FunctionType) and hasattr(obj, "__wrapped__"):
            return obj.__name__ == "format"
        if isinstance(obj, types.BuiltinMethodType):
            return obj.__name__ in _METHODS.get(type(obj.__self__), ())
        return isinstance(obj, (type, types.FunctionType)) and obj in self._functions

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator, paid for by the size of its result."""
        budget = self.budget
        budget.step()
        if isinstance(left, int) and isinstance(right, int):
            _check_int(operator, left, right)
        elif operator == "*":
            sequence, count = (left, right) if isinstance(right, int) else (right, left)
            if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                budget.charge(len(sequence) * max(count, 0))
        elif operator == "+":
            if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
                budget.charge(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            check_printf(budget, left, right)
        return super().call_binop(context, operator, left, right)


@jinja2.pass_context
def _finalize(context: Context, value: Any) -> str:
    return context.environment.budget.text(value)  # type: ignore[attr-defined, no-any-return]


def _check_int(operator: str, left: int, right: int) -> None:
    bits = 0
    if operator == "*":
        bits = left.bit_length() + right.bit_length()
    elif operator == "**":
        bits = left.bit_length() * max(right, 0)
    if bits > MAX_INT_BITS:
        raise LimitExceeded(f"it makes an integer of more than {MAX_INT_BITS} bits")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (str, list, tuple)) else list(value)


def _pay_method(
    budget: Budget, method: types.BuiltinMethodType, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Pay for a method of str, list, tuple or dict before it runs."""
    name, owner = method.__name__, method.__self__
    budget.size(owner)
    if not isinstance(owner, str):
        return
    values = (*args, *kwargs.values())
    if name in _SHORT_ARGUMENT:
        if any(isinstance(value, str) and len(value) > MAX_PATTERN for value in values):
            raise LimitExceeded(f"it calls {name} with more than {MAX_PATTERN} characters")
    elif name in _PADDING:
        budget.charge(max((value for value in values if isinstance(value, int)), default=0))
    elif name == "replace" and len(values) >= 2 and all(isinstance(v, str) for v in values[:2]):
        budget.charge(replaced_size(owner, values[0], values[1]))
    elif name == "join" and args:
        budget.charge(budget.size(args[0]) + len(owner) * len(args[0]))
    elif name == "format":
        _pay_format(budget, owner, values)
    budget.charge(len(owner))


def _pay_format(budget: Budget, template: str, values: tuple[Any, ...]) -> None:
    total = sum(map(budget.size, values))
    for _, field, spec, _ in Formatter().parse(template):
        if spec and re.search(r"\d{4}|[{*]", spec):
            raise LimitExceeded(f"it formats with the width {spec[:20]!r}")
        if field is not None:
            budget.charge(total + 1000)
