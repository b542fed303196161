"""The roofline as a picture: bandwidth roofs by level of memory, flat compute roofs, and the ops under them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpuinfer.machine.roofline import OpStats, Stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_SHARE = 0.001
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def check_plotting(path: Path) -> None:
    """Raise ValueError where a plot could not be drawn, or not be written there: before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "a plot needs matplotlib, which is not installed; pip install 'cpuinfer[plot]'"
        ) from error
    if path.suffix.lower() != ".png":
        raise ValueError(f"a plot is a PNG: {path} must end in .png")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the folder of {path} does not exist; make it first")


def draw(path: Path, runs: Sequence[tuple[str, Stats]]) -> None:
    """Write a PNG: log-log, operations per byte against operations per second, one point per kind of op and phase.

    runs: (label, stats), all of the same ceilings. A point's area goes with its share of the time; ops that compute
    nothing, or take less than a thousandth of the time, are left out. Raises ValueError as check_plotting does.
    """
    check_plotting(path)
    from matplotlib.figure import Figure

    points = [
        (label, phase.phase, op)
        for label, stats in runs
        for phase in stats.phases
        for op in phase.ops
        if op.operations and op.bytes and op.share_of_time >= _LEAST_SHARE
    ]
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.add_subplot()
    intensities = [op.operations / op.bytes for _, _, op in points] or [1.0]
    left, right = min(0.05, *intensities) / 2, max(2000.0, *intensities) * 2
    _roofs(axes, runs[0][1], left, right)
    _points(axes, points)
    ceilings = runs[0][1].ceilings
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(left, right),
        xlabel="operations per byte",
        ylabel="GOP/s",
        title=f"{ceilings.cpu}, {ceilings.isa}, {ceilings.threads} threads",
    )
    lowest = min([op.operations_per_s for _, _, op in points] or [1e9])
    axes.set_ylim(lowest / 2e9, max(ceilings.peaks.values()) * 3e-9)
    axes.grid(True, which="major", alpha=0.3)
    if points:
        legend = axes.legend(
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            fontsize=8,
            title="op: of the time, of its ceiling",
        )
        handle: Any  # a collection of markers, which is more than matplotlib's types say
        for handle in legend.legend_handles:
            handle.set_sizes([40])
    figure.savefig(path, dpi=130)


def _roofs(axes: Axes, stats: Stats, left: float, right: float) -> None:
    """Each level's bandwidth up to the highest peak, and each peak from where the nearest memory reaches it."""
    ceilings = stats.ceilings
    highest = max(ceilings.peaks.values())
    bandwidths = ceilings.by_level()
    for name, rate in bandwidths.items():
        end = min(right, highest / rate)
        axes.plot([left, end], [1e-9 * left * rate, 1e-9 * end * rate], color="0.45", lw=1)
        # Along the line: its direction in data at this point, as the axes are logarithmic.
        x, y = left * 1.15, 1e-9 * left * 1.15 * rate
        axes.text(
            x,
            y,
            f"{name} {1e-9 * rate:.0f} GB/s",
            fontsize=8,
            color="0.3",
            va="bottom",
            rotation=math.degrees(math.atan2(y, x)),
            rotation_mode="anchor",
            transform_rotates_text=True,
        )
    fastest = max(bandwidths.values())
    seen: list[float] = []
    for name, peak in sorted(ceilings.peaks.items(), key=lambda item: -item[1]):
        begin = min(right, peak / fastest)
        axes.plot([begin, right], [1e-9 * peak] * 2, color="0.2", lw=1)
        # Peaks that nearly coincide get their names side by side.
        near = sum(peak > 0.75 * other for other in seen)
        axes.annotate(
            f"{name} {1e-9 * peak:.0f} GOP/s",
            (right / 1.2 / 8**near, 1e-9 * peak),
            fontsize=8,
            color="0.2",
            ha="right",
            va="bottom",
        )
        seen.append(peak)


def _points(axes: Axes, points: Sequence[tuple[str, str, OpStats]]) -> None:
    names = list(dict.fromkeys(op.name for _, _, op in points))
    runs = len({label for label, _, _ in points})
    for number, (label, phase, op) in enumerate(points, 1):
        where = f"{phase}, {label}" if runs > 1 else phase
        x, y = op.operations / op.bytes, 1e-9 * op.operations_per_s
        style: dict[str, Any] = {
            "s": 40 + 600 * op.share_of_time,
            "marker": "o" if phase == "decode" else "s",
            "color": _COLOURS[names.index(op.name) % len(_COLOURS)],
        }
        text = f"{number} {op.name} ({where}): {100 * op.share_of_time:.0f} %, {100 * op.share_of_ceiling:.0f} %"
        axes.scatter([x], [y], alpha=0.75, edgecolors="black", linewidths=0.6, label=text, **style)
        # Points may coincide, so their numbers stand around them in turn.
        away = 5 + 10 * math.sqrt(op.share_of_time)
        side = ((1, 1), (-1, -1), (1, -1), (-1, 1))[number % 4]
        axes.annotate(
            str(number),
            (x, y),
            xytext=(side[0] * away, side[1] * away),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
        )
