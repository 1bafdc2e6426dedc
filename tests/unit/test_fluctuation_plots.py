"""Figures show what they are given, with units on every axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatcl import fluctuation_plots as plots
from flatcl.errors import OptionError

NAN = float("nan")
LINE = torch.linspace(1.0, 2.0, 8, dtype=torch.float64)
PAIRS = {"one": (LINE, LINE**2), "two": (torch.tensor([NAN, 1.0]), torch.tensor([1.0, 1.0]))}


def drawn() -> list[Axes]:
    offsets = torch.linspace(-1, 1, 5).repeat(2, 1)
    return [
        plots.plot_spectrum(1.0 / torch.arange(1, 50) ** 2.0),
        plots.plot_trajectory(torch.randn(30, 3), planes=(1, 2)),
        plots.plot_profiles(offsets, 1 + offsets**2, loss=1.0, labels=("a", "b")),
        plots.plot_relation(PAIRS),
        plots.plot_noise(PAIRS),
        plots.plot_stiffness(PAIRS),
        plots.plot_times(PAIRS, lr=0.1, window=100),
        plots.plot_annealing(LINE[:3].flip(0), LINE[:6].reshape(3, 2), LINE[:6].reshape(3, 2)),
    ]


def test_every_axis_has_a_label_with_its_unit_and_every_figure_a_title() -> None:
    for ax in drawn():
        assert ax.get_title()
        for label in (ax.get_xlabel(), ax.get_ylabel()):
            assert label
            assert label.startswith("rank") or "(" in label
        assert isinstance(ax.figure, Figure)
        ax.figure.canvas.draw()


def test_given_axes_are_drawn_on() -> None:
    ax = Figure().subplots()
    assert plots.plot_relation(PAIRS, ax) is ax
    assert plots.plot_spectrum(LINE, ax) is ax


def test_points_are_the_pairs_without_censored_ones() -> None:
    ax = plots.plot_relation(PAIRS)
    first, second = (np.asarray(c.get_offsets()) for c in ax.collections)
    assert first[:, 0].tolist() == LINE.tolist()
    assert first[:, 1].tolist() == (LINE**2).tolist()
    assert second.tolist() == [[1.0, 1.0]]


def test_the_predicted_time_is_one_over_lr_h() -> None:
    ax = plots.plot_times({"a": (LINE, LINE)}, lr=0.1, window=100)
    line = next(item for item in ax.lines if item.get_label() == "1/(ηh)")
    h, times = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    np.testing.assert_allclose(h * times, 10.0)


def test_a_plane_beyond_the_directions_is_refused() -> None:
    with pytest.raises(OptionError, match="there are 2 directions"):
        plots.plot_trajectory(torch.zeros(5, 2), planes=(0, 2))
