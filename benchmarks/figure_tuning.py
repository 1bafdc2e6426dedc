"""What a tuning saw: validation ACC against each method's own number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.families import in_order
from benchmarks.figure_style import INK, Styles, frame
from benchmarks.outcomes import Search

_COLUMNS = 5


def search_curves(searches: Sequence[Search], styles: Styles) -> Figure | None:
    """Return validation ACC against each method's own number, at the best learning rate for it.

    Args:
        searches: of one protocol.
        styles: of the methods.

    Returns:
        A panel a method, one vertical range; the chosen value is ringed, a value of which all
        runs diverged is a cross on the floor. None if no method has a number of its own.
    """
    curves = {s.method: (own, s) for s in searches if (own := _own_number(s)) is not None}
    if not curves:
        return None
    names = in_order(curves)
    lines = math.ceil(len(names) / _COLUMNS)
    width = min(_COLUMNS, len(names))
    figure = Figure(figsize=(2.5 * width + 0.4, 2.2 * lines + 0.3), layout="constrained")
    panels = list(figure.subplots(lines, width, sharey=True, squeeze=False).flat)
    found = {name: _best_of_each(*curves[name]) for name in names}
    known = [acc for curve in found.values() for acc in curve.values() if acc > 0]
    low, high = (min(known), max(known)) if known else (0.0, 100.0)
    floor = low - 0.06 * max(high - low, 1.0)
    for number, (axes, name) in enumerate(zip(panels, names, strict=False)):
        own, search = curves[name]
        _draw_curve(axes, found[name], search.chosen[own], floor, styles, name)
        title = name + (f"  (edge: {', '.join(search.on_edge)})" if search.on_edge else "")
        frame(axes, title)
        axes.set_ylim(floor - 0.03 * max(high - low, 1.0), high + 0.06 * max(high - low, 1.0))
        axes.set_xlabel(own, fontsize=8)
        if number % width == 0:
            axes.set_ylabel("validation ACC (%)")
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def _draw_curve(
    axes: Axes, curve: dict[float, float], chosen: float, floor: float, styles: Styles, name: str
) -> None:
    good = {value: acc for value, acc in curve.items() if acc > 0}
    colour = styles.colour(name)
    axes.plot(list(good), list(good.values()), color=colour, marker="o", markersize=4)
    lost = [value for value in curve if value not in good]
    if lost:
        axes.plot(lost, [floor] * len(lost), "x", color=INK, clip_on=False)
    if chosen in good:
        axes.plot([chosen], [good[chosen]], "o", markersize=10, mfc="none", mec=INK, mew=1.2)
    if min(curve) > 0 and max(curve) / min(curve) > 20:
        axes.set_xscale("log")
        axes.minorticks_off()


def _own_number(search: Search) -> str | None:
    """The setting other than the learning rate of which several values were tried."""
    values: dict[str, set[float]] = {}
    for cell in search.tried:
        for name, value in cell.settings.items():
            values.setdefault(name, set()).add(value)
    return next((name for name, v in values.items() if name != "lr" and len(v) > 1), None)


def _best_of_each(own: str, search: Search) -> dict[float, float]:
    best: dict[float, float] = {}
    for cell in search.tried:
        if own in cell.settings:
            value = cell.settings[own]
            best[value] = max(best.get(value, 0.0), 100 * cell.acc_val)
    return dict(sorted(best.items()))
