"""The rewriting of a template's syntax tree by which its loops, literals and operators pay from a Budget."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.visitor import NodeTransformer


class Guards(NodeTransformer):
    """Rewrites a template's syntax tree so that loops, literals, ~, slices and comparisons pay from the budget."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(
            node,
            (nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends)
            + (nodes.EvalContextModifier, nodes.ScopedEvalContextModifier),
        ):
            raise TemplateSyntaxError(
                f"{type(node).__name__.lower()} has no place in a chat template", node.lineno
            )
        super().generic_visit(node, *args, **kwargs)
        for field in ("body", "else_"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                setattr(node, field, self._with_steps(block))
        if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            node.body.insert(0, self._step(0, node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("guard_concat", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("guard_new", [node], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("guard_new", [node], node.lineno) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = self._call("guard_read", [pair.key], node.lineno)
        return self._call("guard_new", [node], node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return self._call("guard_new", [node], node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = self._call("guard_read", [node.expr], node.lineno)
        for operand in node.ops:
            if not isinstance(operand.expr, nodes.Const):
                operand.expr = self._call("guard_read", [operand.expr], node.lineno)
        return node

    def _with_steps(self, block: list[nodes.Node]) -> list[nodes.Node]:
        """The block with a step before each literal text, priced by its length."""
        stepped: list[nodes.Node] = []
        for node in block:
            if isinstance(node, nodes.Output):
                data = sum(len(n.data) for n in node.nodes if isinstance(n, nodes.TemplateData))
                stepped.append(self._step(data, node.lineno))
            stepped.append(node)
        return stepped

    def _step(self, data: int, lineno: int) -> nodes.Node:
        return nodes.ExprStmt(
            self._call("guard_step", [nodes.Const(data, lineno=lineno)], lineno), lineno=lineno
        )

    @staticmethod
    def _call(guard: str, args: list[nodes.Expr], lineno: int) -> nodes.Call:
        function = nodes.EnvironmentAttribute(guard, lineno=lineno)
        return nodes.Call(function, args, [], None, None, lineno=lineno)
