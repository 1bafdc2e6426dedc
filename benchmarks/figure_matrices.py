"""Heat maps of the matrices R of accuracies, and their means over runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.collected import Collected
from benchmarks.figure_style import INK, frame
from benchmarks.outcomes import Outcome, Regime
from flatcl.errors import DataError

_COLUMNS = 5
_STEPS = 20  # of the scale of colours, 5 points each: few enough to be drawn as shapes


def accuracy_matrices(
    collected: Collected, protocol: str, regime: Regime, methods: Sequence[str]
) -> Figure | None:
    """Return heat maps of R, mean over finished runs: rows trained tasks, columns tested ones.

    Args:
        collected: all runs.
        protocol: its name.
        regime: whose.
        methods: a panel each; those without a finished run or without all rows are left out.

    Returns:
        The figure, one scale of colours for all; tasks not yet trained stay empty. None without
        a panel.
    """
    found: dict[str, list[list[float]]] = {}
    for method in methods:
        mean = mean_rows(list(collected.done(protocol, regime, method).values()))
        whole = [row for row in mean if row is not None]
        if mean and len(whole) == len(mean):
            found[method] = whole
    if not found:
        return None
    width = min(_COLUMNS, len(found))
    lines = math.ceil(len(found) / width)
    figure = Figure(figsize=(2.45 * width + 0.9, 2.45 * lines + 0.35), layout="constrained")
    panels = list(figure.subplots(lines, width, squeeze=False).flat)
    colours = mpl.colormaps["cividis"].resampled(_STEPS)
    for axes, (method, rows) in zip(panels, found.items(), strict=False):
        tasks = range(len(rows))
        shown = [[100 * rows[i][j] if j <= i else math.nan for j in tasks] for i in tasks]
        drawn = axes.pcolormesh(shown, cmap=colours, vmin=0, vmax=100, edgecolors="none")
        if len(rows) <= 6:
            _write_numbers(axes, shown)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        frame(axes, method)
        axes.grid(visible=False)
        ticks = [0, len(rows) - 1] if len(rows) > 6 else list(tasks)
        axes.set_xticks([t + 0.5 for t in ticks], [str(t + 1) for t in ticks])
        axes.set_yticks([t + 0.5 for t in ticks], [str(t + 1) for t in ticks])
        axes.set_xlabel("tested on task", fontsize=8.5)
        axes.set_ylabel("after task", fontsize=8.5)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, aspect=25)
    if bar.solids is not None:
        bar.solids.set_rasterized(False)  # an image inside the page would need more rights
    bar.set_label("test accuracy (%)", color=INK, fontsize=8.5)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_visible(False)
    return figure


def _write_numbers(axes: Axes, shown: Sequence[Sequence[float]]) -> None:
    for i, row in enumerate(shown):
        for j, value in enumerate(row):
            if not math.isnan(value):
                colour = "#111111" if value > 55 else "#f5f5f5"  # on cividis' bright and dark half
                at = (j + 0.5, i + 0.5)
                axes.annotate(f"{value:.0f}", at, color=colour, ha="center", va="center", size=7.5)


def mean_rows(runs: Sequence[Outcome]) -> list[list[float] | None]:
    """Return R as a mean over runs.

    Args:
        runs: finished ones.

    Returns:
        Rows as in an outcome; a row that any run has not is None. Empty without runs.

    Raises:
        DataError: the runs differ in their number of tasks.
    """
    if len({len(run.accuracy) for run in runs}) > 1:
        raise DataError(f"{runs[0].protocol}, {runs[0].method}: runs differ in their tasks")
    found: list[list[float] | None] = []
    for rows in zip(*(run.accuracy for run in runs), strict=True):
        there = [row for row in rows if row is not None]
        columns = zip(*there, strict=True) if len(there) == len(runs) else None
        found.append([sum(c) / len(c) for c in columns] if columns is not None else None)
    return found
