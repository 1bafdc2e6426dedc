"""The lab's figures. Each is drawn from runs as they are: only means and intervals over seeds.

Axes of one figure share their range; where it does not start at 0, the labels say so by their
numbers, and accuracies of different protocols are never on one axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.collected import Collected
from benchmarks.families import in_order
from benchmarks.figure_matrices import mean_rows
from benchmarks.figure_style import GRID, INK, Styles, frame, size_of_mark, spread
from benchmarks.outcomes import Regime
from benchmarks.statistics import Line
from benchmarks.views import bytes_text

_NAME = 0.165  # inches that a method's name needs


def accuracy_over_time(
    collected: Collected, protocol: str, regime: Regime, styles: Styles
) -> Figure:
    """Return each method's mean accuracy over the tasks seen so far, mean over finished runs.

    Args:
        collected: all runs.
        protocol: its name.
        regime: whose.
        styles: of the methods.

    Returns:
        The figure; methods are named at the ends of their lines, joint is a dashed level.
    """
    methods = in_order(collected.methods(protocol, regime))
    height = max(4.3, _NAME * len(methods) + 0.9)
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    ends, tasks = {}, 1
    for method in methods:
        rows = mean_rows(list(collected.done(protocol, regime, method).values()))
        if not rows:
            continue
        tasks = len(rows)
        times = [i for i, row in enumerate(rows) if row is not None]
        means = [100 * sum(row[: i + 1]) / (i + 1) for i, row in enumerate(rows) if row is not None]
        ends[method] = means[-1]
        colour = styles.colour(method)
        if len(times) == 1:
            axes.axhline(means[0], color=colour, linestyle=(0, (5, 3)), linewidth=1.2)
            continue
        axes.plot(
            [1 + i for i in times],
            means,
            color=colour,
            marker=styles.mark(method),
            markersize=0.75 * size_of_mark(method),
            linewidth=2.6 if method == "ldc" else 1.3,
            zorder=4 if method == "ldc" else 3,
            clip_on=False,
        )
    frame(axes)
    axes.set_xlim(1, max(2, tasks))
    axes.margins(y=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("tasks trained")
    axes.set_ylabel("mean test accuracy over tasks so far (%)")
    _name_ends(axes, ends, styles, _NAME / (height - 0.8))
    return figure


def accuracy_against_overhead(
    lines: Sequence[Line], styles: Styles, noise: Sequence[float] = ()
) -> Figure | None:
    """Return ACC against the seconds of the fastest run relative to Naive's.

    Args:
        lines: of one table.
        styles: of the methods.
        noise: costs that were read of Naive's own steps; their range is shaded.

    Returns:
        A point a method with its 95 % interval; None without Naive.
    """
    points = {
        line.method: (line.times_naive, line.acc.mean, line.acc.half or 0.0)
        for line in lines
        if line.times_naive is not None and line.acc is not None
    }
    if not points:
        return None
    figure, axes = _scatter(points, styles)
    axes.set_xscale("log")
    _plain_ticks(axes, [x for x, _, _ in points.values()])
    axes.axvline(1.0, color=GRID, linewidth=0.9, linestyle=":")
    if noise:
        axes.axvspan(min(1.0, *noise), max(1.0, *noise), color=GRID, alpha=0.35, linewidth=0)
    axes.set_xlabel("seconds of the fastest run, relative to Naive (log scale)")
    axes.set_ylabel("ACC (%)")
    return figure


def forgetting_against_bytes(lines: Sequence[Line], styles: Styles) -> Figure | None:
    """Return forgetting against the bytes held after the last task.

    Args:
        lines: of one table.
        styles: of the methods.

    Returns:
        A point a method with its 95 % interval; nothing held stands left of the logarithmic
        axis's first decade. None if no method has both.
    """
    held = {
        line.method: (line.bytes_held[1], line.forgetting.mean, line.forgetting.half or 0.0)
        for line in lines
        if line.bytes_held is not None and line.forgetting is not None
    }
    if not held:
        return None
    some = [size for size, _, _ in held.values() if size > 0]
    zero = 10 ** (math.floor(math.log10(min(some, default=1e4))) - 0.5)
    points = {m: (float(size) or zero, mean, half) for m, (size, mean, half) in held.items()}
    figure, axes = _scatter(points, styles)
    axes.set_xscale("log")
    last = math.ceil(math.log10(max(some, default=1e5)) + 0.1)
    decades = [10.0**k for k in range(round(math.log10(zero) + 0.5), last + 1)]
    axes.set_xticks([zero, *decades], ["0", *map(bytes_text, decades)])
    axes.set_xticks([], minor=True)
    axes.set_xlim(zero / 2, decades[-1] * 1.3)
    axes.set_xlabel("bytes held after the last task (log scale)")
    axes.set_ylabel("forgetting (points; lower is better)")
    return figure


def _scatter(points: dict[str, tuple[float, float, float]], styles: Styles) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, max(4.0, _NAME * len(points) + 0.4)), layout="constrained")
    axes = figure.subplots()
    for method in in_order(points):
        x, y, half = points[method]
        axes.errorbar(
            [x],
            [y],
            yerr=[half],
            color=styles.colour(method),
            marker=styles.mark(method),
            markersize=size_of_mark(method),
            linestyle="none",
            elinewidth=1.0,
            label=method,
        )
    frame(axes)
    axes.margins(0.08)
    axes.legend(
        fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor=INK
    )
    return figure, axes


def _name_ends(axes: Axes, ends: dict[str, float], styles: Styles, share: float) -> None:
    """Write each method's name beside its end, no two nearer than a share of the axis."""
    low, high = axes.get_ylim()
    places = spread(list(ends.values()), share * (high - low))
    for (method, end), place in zip(ends.items(), places, strict=True):
        axes.annotate(
            method,
            xy=(1.0, end),
            xytext=(1.045, place),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8.5,
            fontweight="bold" if method == "ldc" else "normal",
            color=styles.colour(method),
            arrowprops={"arrowstyle": "-", "color": styles.colour(method), "linewidth": 0.6},
            annotation_clip=False,
        )


def _plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks like 0.5, 1, 2, 5 within a logarithmic axis's range, written as plain numbers."""
    low, high = min(values) / 1.2, max(values) * 1.2
    steps = [m * 10.0**k for k in range(-4, 6) for m in (1, 1.5, 2, 3, 5, 7)]
    axes.set_xlim(low, high)
    axes.set_xticks([step for step in steps if low <= step <= high])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
