"""Imports point one way, and what a start costs is imported when it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What a part may import of the project; its own modules always. A part that is missing here is an error.
ALLOWED = {
    "cpuinfer": {"llm", "async_llm", "config"},
    "cpuinfer.async_llm": {"llm", "config", "engine"},
    "cpuinfer.cli": {
        "llm",
        "config",
        "hub",
        "engine",
        "devices",
        "formats",
        "graph",
        "models",
        "text",
        "machine",
    },
    "cpuinfer.llm": {
        "config",
        "hub",
        "prefixes",
        "engine",
        "devices",
        "formats",
        "graph",
        "models",
        "text",
        "machine",
    },
    "cpuinfer.prefixes": {"config", "engine", "devices", "formats", "graph", "machine"},
    "cpuinfer.hub": {"machine"},
    "cpuinfer.config": {"graph"},
    "cpuinfer.engine": {"config", "devices", "graph"},
    "cpuinfer.devices": {"graph", "machine"},
    "cpuinfer.models": {"graph"},
    "cpuinfer.formats": {"graph", "machine"},
    "cpuinfer.graph": set(),
    "cpuinfer.text": set(),
    "cpuinfer.machine": set(),
}
# Loaded when first needed: each of these costs more than the rest of a start together.
LAZY = {"jinja2", "tokenizers", "gguf", "huggingface_hub", "numba", "cffi"}
START_MODULES = {
    "cpuinfer": LAZY | {"numpy", "rich", "typer", "asyncio"},
    "cpuinfer.cli.app": LAZY | {"numpy"},
    "cpuinfer.hub": LAZY | {"numpy", "rich", "typer"},
    "cpuinfer.llm": LAZY | {"rich", "typer", "asyncio"},
}


def module_of(path: Path) -> str:
    """cpuinfer/graph/ops.py -> cpuinfer.graph.ops; models/llama.py -> cpuinfer.models.llama."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "cpuinfer" else ("cpuinfer", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    """Every Python file of the package; cpuinfer/models may be a link to models/, which is read once."""
    found = [
        p for p in (ROOT / "cpuinfer").rglob("*.py") if p.relative_to(ROOT).parts[1] != "models"
    ]
    return sorted(found + list((ROOT / "models").rglob("*.py")))


def part_of(module: str) -> str:
    """The first two names: the unit that the table speaks of."""
    return ".".join(module.split(".")[:2])


def imports(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, absolute module name) of every import, also inside functions."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: None if is_package else -1]
                base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
            if base == "cpuinfer":  # `from cpuinfer import graph` names a part
                found += [(node.lineno, f"cpuinfer.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, base))
    return found


def broken(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a file imports against the table."""
    allowed = ALLOWED.get(part_of(module))
    if allowed is None:
        return [f"{module}: no row in ALLOWED"]
    faults = []
    for line, name in imports(ast.parse(source), module, is_package):
        if not name.startswith("cpuinfer.") or part_of(name) == part_of(module):
            continue
        if part_of(name).removeprefix("cpuinfer.") not in allowed:
            faults.append(f"{module}:{line} imports {name}")
    return faults


def test_imports_point_one_way() -> None:
    faults = [
        fault
        for path in sources()
        for fault in broken(path.read_text(), module_of(path), path.name == "__init__.py")
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cpuinfer.graph.ops", "from cpuinfer.devices.base import Batch"),
        ("cpuinfer.graph.ops", "def f():\n    import cpuinfer.engine"),
        ("cpuinfer.graph.ops", "from ..devices import base"),
        ("cpuinfer.graph.ops", "from cpuinfer import engine"),
        ("cpuinfer.text.chat", "from cpuinfer.graph.program import Op"),
        ("cpuinfer.newcomer", "import os"),
    ],
)
def test_the_test_sees_a_wrong_import(module: str, source: str) -> None:
    assert broken(source, module)


@pytest.mark.parametrize("module", START_MODULES)
def test_a_start_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & START_MODULES[module]
