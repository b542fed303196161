"""Chat templates that try to escape, to hang, or to fill the memory; run as a script, it renders them all.

The script limits its own memory and processor time, so a template that gets through ends it instead of the machine.
"""

from __future__ import annotations

import json
import resource

MESSAGES = [{"role": "user", "content": "hi"}]

_DOUBLING = "{% set ns = namespace(x='aaaa') %}{% for i in range(1000) %}"
_TREE = "{% set ns = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
_DEEP = "{% set ns = namespace(x=(1,)) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}"

ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "function_code": "{{ strftime_now.__code__.co_consts }}",
    "namespace_init": "{{ namespace.__init__.__globals__ }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self_subscript": "{{ self['__init__']['__globals__'] }}",
    "attr_filter": "{{ (messages | attr('__class__')).__mro__ }}",
    "map_attribute": "{{ (messages | map(attribute='__class__') | first).__mro__ }}",
    "groupby": "{{ (messages | groupby('__class__') | first).grouper.__mro__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': messages}) }}",
    "loop": "{% for m in messages %}{{ loop._iterator.__class__.__mro__ }}{% endfor %}",
    "macro_function": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "macro_environment": "{% macro m() %}{% endmacro %}{{ m._environment.filters }}",
    "generator": "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "undefined": "{{ nothing.__class__.__init__ }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "dict_type": "{{ dict.mro() }}",
    "dict_subclasses": "{{ dict.__base__.__subclasses__() }}",
    "call_string": "{{ 'abc'() }}",
    "append": "{{ messages.append(1) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "encode": "{{ 'a'.encode().decode() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from_import": "{% from 'os' import system %}",
    "extends": "{% extends 'base' %}",
    "autoescape": "{% autoescape true %}{{ messages }}{% endautoescape %}",
    "guards": "{{ environment.budget }}{{ guard_step.__self__ }}",
}

HOGS = {
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "nested_ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested_filters": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursive_loop": "{% for x in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "summing": "{% for i in range(99999) %}{% set x = range(99999) | sum %}{% endfor %}",
    "searching": "{% for i in range(99999) %}{% set x = 5.5 in range(99999) %}{% endfor %}",
    "sorting": "{% for i in range(99999) %}{% set x = range(99999) | sort | length %}{% endfor %}",
    "walking": "{% set a = range(60000) | list %}{% for i in a %}{% if a == 1 %}{% endif %}{% endfor %}",
    "macro": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "macro_tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "multiply": "{{ 'a' * 10 ** 10 }}",
    "multiply_reversed": "{{ 10 ** 10 * 'a' }}",
    "multiply_list": "{{ [0] * 10 ** 10 }}",
    "multiply_messages": "{{ (messages * 10 ** 10) | length }}",
    "power": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "power_operator": "{{ 7 ** (10 ** 10) }}",
    "constant_folding": "{{ 'a' | center(10 ** 9) | length }}",
    "doubling_concat": _DOUBLING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling_add": _DOUBLING + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling_block": _DOUBLING + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "doubling_join": _DOUBLING + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "doubling_format": _DOUBLING + "{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "doubling_percent": _DOUBLING + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "tree_equal": _TREE + "{{ ns.x == ns.y }}",
    "tree_in": _TREE + "{{ ns.x in [ns.y] }}",
    "tree_test": _TREE + "{{ ns.x is eq(ns.y) }}",
    "tree_print": _TREE + "{{ ns.x }}",
    "tree_string": _TREE + "{{ ns.x | string | length }}",
    "tree_concat": _TREE + "{{ ns.x ~ '' }}",
    "tree_json": _TREE + "{{ ns.x | tojson }}",
    "tree_key": _TREE + "{{ {ns.x: 1} }}",
    "tree_subscript": _TREE + "{{ {}[ns.x] }}",
    "tree_get": _TREE + "{{ {}.get(ns.x) }}",
    "tree_unique": _TREE + "{{ [ns.x, ns.y] | unique | length }}",
    "tree_index": _TREE + "{{ [ns.y].index(ns.x) }}",
    "tree_varargs": "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}"
    "{% endmacro %}{{ m(40) }}",
    "deep_key": _DEEP + "{{ {ns.x: 1} }}",
    "deep_print": _DEEP + "{{ ns.x }}",
    "deep_equal": _DEEP + "{{ ns.x == ns.x }}",
    "center": "{{ 'a' | center(10 ** 9) }}",
    "center_method": "{{ 'a'.center(10 ** 9) }}",
    "ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "zfill": "{{ 'a'.zfill(10 ** 9) }}",
    "format_width": "{{ '{:1000000000}'.format(1) }}",
    "format_nested_width": "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
    "format_precision": "{{ '{:.1000000000f}'.format(1.5) }}",
    "format_repeats": "{{ ('{0}' * 50000).format('a' * 100000) }}",
    "percent_width": "{{ '%1000000000d' % 1 }}",
    "percent_star": "{{ '%*d' % (10 ** 9, 1) }}",
    "percent_precision": "{{ '%.1000000000f' % 1.5 }}",
    "percent_mapping": "{{ '%((a)b)1000000000d' % {'(a)b': 1} }}",
    "percent_flags": "{{ '%-  1000000000ld' % 1 }}",
    "percent_filter": "{{ '%1000000000d' | format(1) }}",
    "filter_section": "{% filter center(10 ** 9) %}a{% endfilter %}",
    "json_indent": "{{ messages | tojson(indent=10 ** 9) }}",
    "json_positional_indent": "{{ messages | tojson(false, 10 ** 9) }}",
    "json_separators": "{{ messages | tojson(separators=('a' * 100000, 'b' * 100000)) }}",
    "indent": "{{ ('a\n' * 1000) | indent(10 ** 9) }}",
    "indent_text": "{{ ('a\n' * 100000) | indent('b' * 100000) }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replace_empty": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "join": "{{ range(99999) | join('b' * 100000) }}",
    "join_method": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "join_text": "{{ ('b' * 100000).join('a' * 100000) }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "slice_filter": "{{ [1] | slice(10 ** 9) | list }}",
    "slices": "{% set s = 'a' * 900000 %}" + "{% set b = s[1:] %}" * 999,
    "rfind": "{{ ('a' * 600000).rfind('b' + 'a' * 300000) }}",
    "strip": "{{ ('a' * 600000).strip('bcdefghijklmnopqrst' * 10000 + 'a') }}",
    "range_list": "{{ range(10 ** 9) | list }}",
    "date": "{{ strftime_now('%1000000000d') }}",
    "round": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "literal_text": "{% for i in range(99999) %}" + "x" * 10000 + "{% endfor %}",
    "literal_in_set": "{% set a %}{% for i in range(99999) %}"
    + "x" * 10000
    + "{% endfor %}{% endset %}",
    "literal_in_macro": "{% macro m() %}"
    + "x" * 10000
    + "{% endmacro %}{% set a %}{% for i in range(99999) %}"
    "{{ m() }}{% endfor %}{% endset %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "brackets": "{{ " + "[" * 5000 + "1" + "]" * 5000 + " }}",
    "long_sum": "{{ " + "+".join(["1"] * 5000) + " }}",
    "long_chain": "{{ messages" + ".a" * 5000 + " }}",
    "long_pipe": "{{ messages" + "|string" * 5000 + " }}",
    "nested_for": "".join(f"{{% for a{i} in messages %}}" for i in range(60)) + "{% endfor %}" * 60,
    "nested_if": "{% if messages %}" * 1500 + "x" + "{% endif %}" * 1500,
    "big_number": "{{ " + "9" * 50000 + " }}",
    "many_nodes": "{{ a == b }}" * 3000,
    "too_long": "x" * 70000,
}


def main() -> None:
    """Render every template; print one line of JSON for each: its name and the error that it gave, or null."""
    from cpuinfer.text import ChatTemplate, ChatTemplateError

    ChatTemplate("{{ messages }}").render(MESSAGES)  # everything is loaded before the limits
    gigabyte = 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (gigabyte, gigabyte))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    for name, source in {**ESCAPES, **HOGS}.items():
        result = None
        try:
            ChatTemplate(source + "{{ messages }}", seconds=0.3).render(MESSAGES)
        except ChatTemplateError as error:
            result = str(error)
        print(json.dumps([name, result]), flush=True)


if __name__ == "__main__":
    main()
