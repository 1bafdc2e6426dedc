"""A figure of forecasts against what was measured; nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatcl.errors import DataError

_INK = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def plot_forecast(rows: Sequence[Mapping[str, object]], ax: Axes | None = None) -> Axes:
    """Draw predicted against measured rises of the loss, both logarithmic.

    Args:
        rows: ``predicted`` and ``measured`` in nats; optionally ``group``, a name to colour by, and
            ``trusted``, False for an open mark. Rows that are not above 0 are left out and counted.
        ax: to draw in; None makes a figure.

    Returns:
        The axes drawn in.

    Raises:
        DataError: no row has both numbers above 0.
    """
    shown = [
        (float(str(row["predicted"])), float(str(row["measured"])), row)
        for row in rows
        if float(str(row["predicted"])) > 0 and float(str(row["measured"])) > 0
    ]
    if not shown:
        raise DataError("no row has both numbers above 0: nothing to plot")
    if ax is None:
        ax = Figure(figsize=(5.2, 4.6), layout="constrained").subplots()
    groups = list(dict.fromkeys(str(row.get("group", "")) for row in rows))
    for number, group in enumerate(groups):
        colour = _INK[number % len(_INK)]
        for trusted in (True, False):
            points = [
                (x, y)
                for x, y, row in shown
                if str(row.get("group", "")) == group and bool(row.get("trusted", True)) == trusted
            ]
            if not points:
                continue
            label = (
                f"{group}, warned" if group and not trusted else "warned" if not trusted else group
            )
            ax.plot(
                [x for x, _ in points],
                [y for _, y in points],
                "o",
                color=colour,
                markersize=4,
                markerfacecolor=colour if trusted else "none",
                linestyle="none",
                label=label or None,
            )
    low = min(min(x, y) for x, y, _ in shown)
    high = max(max(x, y) for x, y, _ in shown)
    ax.plot([low, high], [low, high], color="#555555", linewidth=1)
    for factor in (0.5, 2.0):
        ax.plot([low, high], [factor * low, factor * high], color="#999999", linewidth=0.7, ls="--")
    ax.set(xscale="log", yscale="log")
    left_out = len(rows) - len(shown)
    ax.set_xlabel("predicted rise (nats)" + (f"; {left_out} not above 0" if left_out else ""))
    ax.set_ylabel("measured rise (nats)")
    if any(groups) or any(not bool(row.get("trusted", True)) for row in rows):
        ax.legend(fontsize=6.5)
    return ax
