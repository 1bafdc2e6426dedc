"""The figure of forecasts shows the rows as they are."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from flatcl.errors import DataError
from flatcl.forecast_plots import plot_forecast

ROWS = [
    {"predicted": 0.1, "measured": 0.2, "group": "a"},
    {"predicted": 0.3, "measured": 0.3, "group": "a", "trusted": False},
    {"predicted": 1.0, "measured": 2.0, "group": "b", "trusted": True},
    {"predicted": 1.0, "measured": -0.1, "group": "b"},
]


def test_each_group_and_each_flag_has_its_marks():
    axes = plot_forecast(ROWS)
    shown = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(shown["a"].get_xdata()) == [0.1]
    assert list(shown["a, warned"].get_ydata()) == [0.3]
    assert shown["a, warned"].get_markerfacecolor() == "none"
    assert list(shown["b"].get_ydata()) == [2.0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "1 not above 0" in axes.get_xlabel()


def test_it_draws_into_axes_that_are_given_and_needs_a_row():
    axes = Figure().subplots()
    assert plot_forecast([{"predicted": 1.0, "measured": 1.0}], ax=axes) is axes
    assert axes.get_legend() is None
    with pytest.raises(DataError, match="nothing to plot"):
        plot_forecast(ROWS[-1:])
