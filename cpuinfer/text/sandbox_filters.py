"""The filters and tests of chat templates, each paying from the rendering's Budget before it runs."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from jinja2 import pass_context
from jinja2.filters import FILTERS as _JINJA_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.tests import TESTS as _JINJA_TESTS

from cpuinfer.text.budget import Budget, LimitExceeded

MAX_WIDTH = 10_000
"""Largest width, count or length given to a filter."""

_PRINTF = re.compile(r"%[#0\- +]*(\*|\d{4}|\d*\.(\*|\d{4}))")

Function = Callable[..., Any]
Pay = Callable[..., None]

# Filters that look at no more than one element or the length, so their input need not be walked.
_CONSTANT_TIME = frozenset(("length", "count", "default", "d", "first", "last"))
_PLAIN = [
    "abs",
    "attr",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "groupby",
    "items",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "sort",
    "string",
    "title",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
]
_SIZED = ["batch", "center", "slice", "truncate"]


def replaced_size(text: str, old: str, new: str) -> int:
    """Most characters that text.replace(old, new) can have."""
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def check_printf(budget: Budget, template: str, values: Any) -> None:
    """Pay for template % values. Raises LimitExceeded for wide fields and for mappings, whose keys could hide them."""
    if isinstance(values, dict) or _PRINTF.search(template):
        raise LimitExceeded("it formats with % and a wide field or a mapping")
    budget.charge(len(template) + 1000 * template.count("%") + budget.size(values))


def _bounded(name: str, function: Any, pay: Pay | None = None) -> Function:
    """The filter or test, paid for: a step, a walk over its input, `pay`, and the size of its result."""
    wants = getattr(getattr(function, "jinja_pass_arg", None), "name", "nothing")

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = context.environment.budget  # type: ignore[attr-defined]
        budget.step()
        if name not in _CONSTANT_TIME:
            for given in (value, *args, *kwargs.values()):
                budget.size(given)
        if pay is not None:
            pay(budget, value, *args, **kwargs)
        first = {
            "context": (context,),
            "eval_context": (context.eval_ctx,),
            "environment": (context.environment,),
        }.get(wants, ())
        result = function(*first, value, *args, **kwargs)
        if isinstance(result, Iterator):
            result = _collect(budget, result)
        budget.charge_new(result)
        return result

    return bounded


def _collect(budget: Budget, items: Iterator[Any]) -> list[Any]:
    collected = []
    for item in items:
        budget.step()
        collected.append(item)
    return collected


def _small_numbers(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    for given in (*args, *kwargs.values()):
        if isinstance(given, int) and abs(given) > MAX_WIDTH:
            raise LimitExceeded(f"it gives a filter the number {given}, beyond {MAX_WIDTH}")
    budget.charge(MAX_WIDTH)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as Hugging Face's templates expect."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _pay_tojson(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    indent = kwargs.get("indent", args[1] if len(args) > 1 else None) or 0
    if not isinstance(indent, int) or indent > 16:
        raise LimitExceeded("it indents JSON by more than 16 spaces")
    for part in (*args, *kwargs.values()):
        if budget.size(part) > 16:
            raise LimitExceeded("it separates JSON by long text")
    budget.charge(8 * budget.size(value))


@pass_context
def _join(context: Context, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    budget: Budget = context.environment.budget  # type: ignore[attr-defined]
    texts = [budget.text(item) for item in value]
    separator = budget.text(d)
    budget.charge(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return str(value).replace(str(old), str(new), -1 if count is None else count)


def _pay_replace(budget: Budget, value: Any, old: Any, new: Any, count: Any = None) -> None:
    budget.charge(replaced_size(str(value), str(old), str(new)))


def _pay_indent(budget: Budget, value: Any, width: Any = 4, *flags: Any, **named: Any) -> None:
    per_line = len(width) if isinstance(width, str) else width
    if not isinstance(per_line, int) or per_line > MAX_WIDTH:
        raise LimitExceeded(f"it indents by more than {MAX_WIDTH} characters")
    budget.charge(len(str(value)) + (len(str(value).splitlines()) + 1) * max(per_line, 0))


def _trim(value: Any, chars: str | None = None) -> str:
    if chars is not None and len(chars) > 256:
        raise LimitExceeded("it trims more than 256 different characters")
    return str(value).strip(chars)


def _format(value: Any, *args: Any) -> str:
    return str(value) % args


def _pay_format(budget: Budget, value: Any, *args: Any) -> None:
    check_printf(budget, str(value), args)


@pass_context
def _sum(context: Context, value: Any, attribute: str | int | None = None, start: float = 0) -> Any:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    total = start
    for item in value:
        if not isinstance(item, (int, float)) or not isinstance(start, (int, float)):
            raise TypeError(f"sum adds numbers, got {type(item).__name__}")
        total += item
    return total


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > 1000:
        return default
    result: int = _JINJA_FILTERS["int"](value, default, base)
    return result


def _safe(value: Any) -> str:
    return str(value)


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _pay_text(budget: Budget, value: Any) -> None:
    budget.charge(8 * budget.size(value))


def _pay_words(budget: Budget, value: Any) -> None:
    budget.charge(32 * budget.size(value))  # a string object for each word


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 32:
        raise LimitExceeded("it rounds to more than 32 digits")
    result: float = _JINJA_FILTERS["round"](value, precision, method)
    return result


FILTERS: dict[str, Function] = {
    **{name: _bounded(name, _JINJA_FILTERS[name]) for name in _PLAIN},
    **{name: _bounded(name, _JINJA_FILTERS[name], _small_numbers) for name in _SIZED},
    "e": _bounded("e", _escape, _pay_text),
    "escape": _bounded("escape", _escape, _pay_text),
    "format": _bounded("format", _format, _pay_format),
    "indent": _bounded("indent", _JINJA_FILTERS["indent"], _pay_indent),
    "int": _bounded("int", _int),
    "join": _bounded("join", _join),
    "replace": _bounded("replace", _replace, _pay_replace),
    "round": _bounded("round", _round),
    "safe": _bounded("safe", _safe, _pay_text),
    "sum": _bounded("sum", _sum),
    "title": _bounded("title", _JINJA_FILTERS["title"], _pay_words),
    "tojson": _bounded("tojson", _tojson, _pay_tojson),
    "trim": _bounded("trim", _trim),
}
"""Filters of the sandbox by name."""

TESTS: dict[str, Function] = {
    name: _bounded(name, test) for name, test in _JINJA_TESTS.items() if name != "escaped"
}
"""Tests of the sandbox by name."""
