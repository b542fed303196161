"""The roofline's figures as people read them: per kind of op, for the terminal and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpuinfer.machine.roofline import PhaseStats, Stats

HEAD = (
    "op",
    "ms/step",
    "of the time",
    "MB/step",
    "MOP/step",
    "GB/s",
    "GOP/s",
    "bound by",
    "ceiling",
    "of it",
)
_LEFT = (0, 7)


def rows(phase: PhaseStats) -> list[tuple[str, ...]]:
    """One row of cells for each kind of op, then what is lost outside ops, then the whole."""
    found: list[tuple[str, ...]] = []
    for op in phase.ops:
        unit = "GB/s" if op.bound.endswith("bandwidth") else "GOP/s"
        found.append(
            (
                op.name,
                f"{1e3 * op.seconds / phase.steps:.3f}",
                _percent(op.share_of_time),
                f"{1e-6 * op.bytes / phase.steps:.2f}",
                f"{1e-6 * op.operations / phase.steps:.2f}",
                f"{1e-9 * op.bytes_per_s:.2f}",
                f"{1e-9 * op.operations_per_s:.1f}",
                op.bound,
                f"{1e-9 * op.ceiling:.1f} {unit}",
                _percent(op.share_of_ceiling),
            )
        )
    for name, seconds in (("fork and join", phase.fork_join_s), ("Python", phase.python_s)):
        share = seconds / phase.seconds if phase.seconds else 0.0
        found.append((name, f"{1e3 * seconds / phase.steps:.3f}", _percent(share), *[""] * 7))
    n_bytes = sum(op.bytes for op in phase.ops)
    operations = sum(op.operations for op in phase.ops)
    found.append(
        (
            "step",
            f"{1e3 * phase.seconds / phase.steps:.3f}",
            _percent(1.0),
            f"{1e-6 * n_bytes / phase.steps:.2f}",
            f"{1e-6 * operations / phase.steps:.2f}",
            f"{1e-9 * n_bytes / phase.seconds:.2f}" if phase.seconds else "",
            f"{1e-9 * operations / phase.seconds:.1f}" if phase.seconds else "",
            "",
            "",
            _percent(phase.share_of_ceiling),
        )
    )
    return found


def title(phase: PhaseStats) -> str:
    """decode: 63 steps, 63 tokens."""
    steps = "1 step" if phase.steps == 1 else f"{phase.steps} steps"
    return f"{phase.phase}: {steps}, {phase.tokens} tokens"


def print_stats(stats: Stats) -> None:
    """Tables on stderr, one for each phase."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 140
    for phase in stats.phases:
        table = Table(title=title(phase), title_justify="left")
        for i, name in enumerate(HEAD):
            table.add_column(name, justify="left" if i in _LEFT else "right", no_wrap=True)
        for i, cells in enumerate(rows(phase)):
            table.add_row(*cells, end_section=i in (len(phase.ops) - 1, len(phase.ops) + 1))
        console.print(table)


def markdown(stats: Stats, label: str) -> str:
    """The same as Markdown, under the label of a test."""
    lines = []
    for phase in stats.phases:
        lines += ["", f"{label}, {title(phase)}", ""]
        lines.append("| " + " | ".join(HEAD) + " |")
        lines.append(
            "|" + "|".join("---" if i in _LEFT else "---:" for i in range(len(HEAD))) + "|"
        )
        lines += ["| " + " | ".join(cells) + " |" for cells in rows(phase)]
    return "\n".join([*lines, ""])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
