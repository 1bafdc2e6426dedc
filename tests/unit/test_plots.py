"""The figure of a comparison: what is drawn is what the rows say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flatcl.errors import DataError
from flatcl.plots import plot_averages, plot_comparison, plot_tasks, png

ROWS: list[dict[str, object]] = [
    {"method": method, "seed": seed, "trained": i, "evaluated": j, "accuracy": base + seed}
    for method, matrix in {
        "ldc": [[90.0, 10.0], [80.0, 70.0]],
        "naive": [[92.0, 12.0], [40.0, 95.0]],
    }.items()
    for seed in (0, 2)
    for i, row in enumerate(matrix)
    for j, base in enumerate(row)
]


def _points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def test_tasks_are_drawn_from_their_training_on_as_means_over_seeds() -> None:
    axes = Figure().subplots()
    plot_tasks(axes, ROWS, "naive")
    drawn = [_points(line) for line in axes.get_lines()]
    assert drawn == [[(1, 93.0), (2, 41.0)], [(2, 96.0)]]


def test_averages_are_over_the_tasks_so_far() -> None:
    axes = Figure().subplots()
    plot_averages(axes, ROWS)
    drawn = {line.get_label(): _points(line) for line in axes.get_lines()}
    assert drawn == {"naive": [(1, 93.0), (2, 68.5)], "ldc": [(1, 91.0), (2, 76.0)]}


def test_joint_is_a_single_point() -> None:
    kept = [row for row in ROWS if row["trained"] == 1 and row["method"] == "naive"]
    rows = [row | {"method": "joint"} for row in kept]
    axes = Figure().subplots()
    plot_averages(axes, rows)
    (line,) = axes.get_lines()
    assert _points(line) == [(2, 68.5)]


def test_panels_share_their_range_and_are_labelled() -> None:
    figure = plot_comparison(ROWS, "a title")
    panels = figure.get_axes()
    assert [axes.get_title() for axes in panels] == ["naive", "ldc", "average over tasks so far"]
    assert {axes.get_ylim() for axes in panels} == {(0.0, 101.0)}
    assert "(%)" in panels[0].get_ylabel()
    assert all(axes.get_xlabel() for axes in panels)


def test_the_same_rows_give_the_same_bytes() -> None:
    first, again = (png(plot_comparison(ROWS, "t")) for _ in range(2))
    assert first == again
    assert first.startswith(b"\x89PNG")


def test_nothing_to_plot_is_refused() -> None:
    with pytest.raises(DataError, match="no rows to plot"):
        plot_comparison([])
