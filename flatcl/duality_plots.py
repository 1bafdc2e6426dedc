"""Figures of the duality: one function each, onto given axes or new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from flatcl.errors import DataError, OptionError

_QUANTITIES = {
    "sharpness": "$σ_{g,n}$ (nats/w)",
    "size": "$σ_{w,n}$ (w)",
    "correlation": "$c_n$",
    "ratio": "$r_n$, 1 if unrelated",
    "contribution": "share of the gap",
}
_COLUMNS = 4

Records = Sequence[Mapping[str, Any]]


def plot_profile(
    groups: Mapping[str, Records], quantity: str = "sharpness", ax: Axes | None = None
) -> Axes:
    """Return axes with one factor over the directions, sharpest first, a line a group.

    Args:
        groups: label → records of repeats (of ``flatcl generalize``); lines are their means.
        quantity: "sharpness", "size", "correlation", "ratio" or "contribution".
        ax: where to draw; new axes if None.

    Returns:
        The axes.

    Raises:
        OptionError: there is no such quantity.
        DataError: no record has a profile.
    """
    if quantity not in _QUANTITIES:
        raise OptionError(f"quantity is {quantity!r}: choose one of {', '.join(_QUANTITIES)}")
    ax = Figure(figsize=(4.2, 3.4), layout="constrained").subplots() if ax is None else ax
    shown = {label: [r for r in records if "profile" in r] for label, records in groups.items()}
    shown = {label: records for label, records in shown.items() if records}
    if not shown:
        raise DataError("no record has a profile: at least one network must have been measured")
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(shown)))
    for colour, (label, records) in zip(colours, shown.items(), strict=True):
        ranks, values = _mean_profile(records, quantity)
        ax.plot(ranks, values, "-", color=colour, lw=1.5, label=label)
    if quantity in ("correlation", "ratio"):
        _, null = _mean_profile(next(iter(shown.values())), "null_correlation")
        base = null if quantity == "correlation" else np.ones_like(null)
        ranks, _ = _mean_profile(next(iter(shown.values())), quantity)
        ax.plot(ranks, base, "--", color="#777777", lw=1, label="null: s dealt anew")
    if quantity in ("sharpness", "size"):
        ax.set_yscale("log")
    ax.set_xscale("log")
    ax.set(xlabel="direction, by falling curvature", ylabel=_QUANTITIES[quantity])
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.legend(frameon=False, fontsize=7)
    return ax


def _mean_profile(records: Records, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks and the mean over repeats, whose bins may differ by a little."""
    ranks = np.array(records[0]["profile"]["rank"], float)
    lines = []
    for record in records:
        profile = record["profile"]
        values = np.array([np.nan if v is None else v for v in profile[quantity]], float)
        if quantity == "contribution":
            values = values / values.sum()
        lines.append(np.interp(np.log(ranks), np.log(profile["rank"]), values))
    return ranks, np.mean(lines, axis=0)


def plot_knobs(rows: Records, ax: Axes | None = None) -> Axes:
    """Return axes with the gap over Σ sharpness × size, a mark a network, a colour a knob.

    Args:
        rows: as in ``generalize.jsonl``.
        ax: where to draw; new axes if None.

    Returns:
        The axes.
    """
    ax = Figure(figsize=(4.2, 3.4), layout="constrained").subplots() if ax is None else ax
    done = [row for row in rows if row["status"] == "done" and row["reached"]]
    knobs = list(dict.fromkeys(row["knob"] for row in done))
    for number, knob in enumerate(knobs):
        mine = [row for row in done if row["knob"] == knob]
        mine = [row for row in mine if min(row["product"] or 0.0, row["gap"]) > 0]
        if not mine:  # a logarithm has no place for them
            continue
        ax.scatter(
            [row["product"] for row in mine],
            [row["gap"] for row in mine],
            s=16,
            marker="os^vDPX*"[number % 8],
            color=mpl.colormaps["tab10"](number),
            linewidths=0,
            alpha=0.8,
            label=knob,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set(xlabel="$Σ_n σ_{g,n} σ_{w,n}$ (nats)", ylabel="generalisation gap (nats)")
    ax.grid(alpha=0.3, linewidth=0.6, which="both")
    if ax.collections:
        ax.legend(frameon=False, fontsize=7)
    return ax


def plot_study(rows: Records, records: Records) -> Figure:
    """Return the figure of a study: profiles of sharpness and size for every knob, and the gaps.

    Args:
        rows: as in ``generalize.jsonl``.
        records: of the runs, in the rows' order.

    Returns:
        The figure.
    """
    knobs = list(dict.fromkeys(row["knob"] for row in rows))
    bands = -(-(len(knobs) + 1) // _COLUMNS)  # the last place has what is said of all networks
    figure = Figure(figsize=(3.6 * _COLUMNS, 5.8 * bands), layout="constrained")
    panels = figure.subplots(2 * bands, _COLUMNS, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for number, knob in enumerate(knobs):
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row, record in zip(rows, records, strict=True):
            if row["knob"] == knob and row["status"] == "done" and row["reached"]:
                groups.setdefault(f"{row['value']:g}", []).append(record)
        band, column = divmod(number, _COLUMNS)
        for line, quantity in enumerate(("sharpness", "size")):
            panel = panels[2 * band + line, column]
            if groups:
                panel.set_axis_on()
                panel.set_title(knob, fontsize=10)
                plot_profile(groups, quantity, panel)
    # A network may be a row of several knobs.
    single = {str(record["setting"]): record for record in records if record["status"] == "done"}
    done = list(single.values())
    if done:
        for panel in panels[-2:, -1]:
            panel.set_axis_on()
        plot_knobs(rows, panels[-2, -1])
        plot_profile({"all networks": done}, "ratio", panels[-1, -1])
    return figure
