"""Figures of comparisons, drawn from rows as they are: nothing is computed but means over seeds."""

from __future__ import annotations

import io
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flatcl.errors import DataError
from flatcl.protocol import METHODS

# Okabe and Ito's colours, told apart by colour-blind readers; one each, in every figure.
_INK = (
    "#999999", "#D55E00", "#E69F00", "#CC79A7", "#8C6D1F", "#56B4E9", "#009E73", "#000000",
    "#0072B2",
)  # fmt: skip
_COLOURS = dict(zip(METHODS, _INK, strict=True))
_MARKS = dict(zip(METHODS, "osvPXD^*p", strict=True))
_COLUMNS = 4

Rows = Sequence[Mapping[str, object]]


def plot_comparison(rows: Rows, title: str = "") -> Figure:
    """Return a figure of each task's accuracy over time, a panel a method, and of the averages.

    Args:
        rows: as in ``results.jsonl``: ``method``, ``seed``, ``trained``, ``evaluated`` (both
            counted from 0) and ``accuracy`` in percent.
        title: a line above the panels.

    Returns:
        The figure, with the same vertical range in every panel.

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError("no rows to plot: at least one run must finish a task")
    methods = sorted({str(row["method"]) for row in rows}, key=_place)
    columns = min(_COLUMNS, len(methods) + 1)
    lines = math.ceil((len(methods) + 1) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    shown = list(panels)
    for axes, method in zip(shown, methods, strict=False):
        plot_tasks(axes, rows, method)
    plot_averages(shown[len(methods)], rows)
    for axes in shown[len(methods) + 1 :]:
        axes.set_axis_off()
    for number, axes in enumerate(shown[: len(methods) + 1]):
        if number + columns > len(methods):
            axes.set_xlabel("tasks trained")
            axes.xaxis.set_tick_params(labelbottom=True)
        if number % columns == 0:
            axes.set_ylabel("test accuracy (%)")
    figure.suptitle(title, fontsize=9, parse_math=False)  # a file's name may have a $
    return figure


def plot_tasks(axes: Axes, rows: Rows, method: str) -> None:
    """Draw the accuracy of every task, from when it was trained on, for one method.

    Args:
        axes: to draw in.
        rows: as for ``plot_comparison``.
        method: whose panel it is.
    """
    matrix = _means(rows, method)
    tasks = 1 + max(trained for trained, _ in matrix)
    colours = mpl.colormaps["viridis"]
    for task in range(tasks):
        line = [(t, matrix[t, task]) for t in range(task, tasks) if (t, task) in matrix]
        colour = colours(0.9 * task / max(1, tasks - 1))
        axes.plot(
            [1 + t for t, _ in line],
            [accuracy for _, accuracy in line],
            color=colour,
            marker="o",
            markersize=3.5,
            linewidth=1.4,
            label=f"task {task + 1}" if tasks <= 10 or task in {0, tasks - 1} else None,
        )
    _frame(axes, method)
    axes.legend(fontsize=6.5, loc="lower left", framealpha=0.7, ncols=2 if tasks > 5 else 1)


def plot_averages(axes: Axes, rows: Rows) -> None:
    """Draw each method's mean accuracy over the tasks trained so far.

    Args:
        axes: to draw in.
        rows: as for ``plot_comparison``.
    """
    for method in sorted({str(row["method"]) for row in rows}, key=_place):
        matrix = _means(rows, method)
        times = sorted({trained for trained, _ in matrix})
        means = [fmean(matrix[t, j] for j in range(t + 1)) for t in times]
        axes.plot(
            [1 + t for t in times],
            means,
            color=_COLOURS.get(method, "#000000"),
            marker=_MARKS.get(method, "o"),
            markersize=9 if len(times) == 1 else 4.5,  # joint is one point
            linewidth=1.8,
            label=method,
        )
    _frame(axes, "average over tasks so far")
    axes.legend(fontsize=7, loc="lower left", framealpha=0.7)


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """Return the figure as the content of a PNG file, the same bytes for the same figure.

    Args:
        figure: to draw.
        dpi: dots per inch.

    Returns:
        The file's content.
    """
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a file's name may be in any script
        figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def _means(rows: Rows, method: str) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        if row["method"] == method:
            place = int(str(row["trained"])), int(str(row["evaluated"]))
            found[place].append(float(str(row["accuracy"])))
    return {place: fmean(values) for place, values in found.items()}


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _place(method: str) -> tuple[int, str]:
    return (METHODS.index(method) if method in METHODS else len(METHODS), method)
