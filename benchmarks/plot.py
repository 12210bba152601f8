"""Plots a run: a panel for each figure of each contest."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.contest import is_bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.report import Row

COLUMNS = 4
OURS, BOUND, OTHERS = "#d1495b", "#9aa5b1", "#30638e"


def plot(rows: list[Row], file: Path, caption: str) -> None:
    """Write the PNG."""
    height = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.9 * height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(height, COLUMNS, squeeze=False).flat
    for row, axes in zip(rows, panels, strict=False):
        _panel(axes, row)
    for axes in list(panels):
        axes.axis("off")
    figure.supxlabel(caption, fontsize=7)
    figure.savefig(file, dpi=100, metadata={"Software": None})


def _panel(axes: Axes, row: Row) -> None:
    """Draw the medians as bars, and lines from the lowest to the highest value."""
    names = list(row.values)[::-1]
    middles = [median(row.values[name]) for name in names]
    errors = [
        [middle - min(row.values[name]) for name, middle in zip(names, middles, strict=True)],
        [max(row.values[name]) - middle for name, middle in zip(names, middles, strict=True)],
    ]
    colors = [OURS if name == "shmgen" else BOUND if is_bound(name) else OTHERS for name in names]
    axes.barh(names, middles, xerr=errors, color=colors, error_kw={"lw": 1, "alpha": 0.6})
    for place, name in enumerate(names):
        axes.annotate(f" {row.median(name)}", (max(row.values[name]), place), va="center", fontsize=7)
    axes.set_xlim(0, 1.25 * max(map(max, row.values.values())))
    axes.set_title(f"{row.title}\n{row.case}, {'more' if row.arrow == '↑' else 'less'} is better", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
