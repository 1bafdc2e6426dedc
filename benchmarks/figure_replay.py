"""What a replay buffer is worth by its size, beside LDC and together with it."""

from __future__ import annotations

import math
import re

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from benchmarks.collected import Collected
from benchmarks.figure_style import GRID, OWN, Styles, frame
from benchmarks.outcomes import Regime
from benchmarks.statistics import REFERENCE, Estimate, estimate

_ALONE, _WITH = re.compile(r"er-(\d+)"), re.compile(r"ldc-er-(\d+)")


def by_buffer(
    collected: Collected, protocol: str, regime: Regime, *, with_ldc: bool
) -> dict[int, Estimate]:
    """Return ACC by the number of images that replay keeps.

    Args:
        collected: all runs.
        protocol: its name.
        regime: whose.
        with_ldc: of replay beside LDC, else of replay alone.

    Returns:
        Percent, by rising size.
    """
    pattern, found = _WITH if with_ldc else _ALONE, {}
    for method in collected.methods(protocol, regime):
        size = pattern.fullmatch(method)
        acc = estimate(list(collected.acc(protocol, regime, method).values()))
        if size is not None and acc is not None:
            found[int(size[1])] = acc
    return dict(sorted(found.items()))


def overtakes(replay: dict[int, Estimate], level: float) -> float | None:
    """Return the size at which replay reaches a level, between sizes on a logarithmic scale.

    Args:
        replay: ACC by size.
        level: percent.

    Returns:
        Images; None if no size reaches it, the least size if all do.
    """
    sizes = list(replay)
    for place, size in enumerate(sizes):
        high = replay[size].mean
        if high < level:
            continue
        if place == 0:
            return float(size)
        before = sizes[place - 1]
        low = replay[before].mean
        share = (level - low) / (high - low)
        return math.exp(math.log(before) + share * (math.log(size) - math.log(before)))
    return None


def replay_against_memory(
    collected: Collected, protocol: str, regime: Regime, styles: Styles
) -> Figure | None:
    """Return ACC against the images that replay keeps, alone and beside LDC.

    Args:
        collected: all runs.
        protocol: its name.
        regime: whose.
        styles: of the methods.

    Returns:
        Two curves with 95 % intervals and LDC's level; None without two sizes of buffer.
    """
    alone = by_buffer(collected, protocol, regime, with_ldc=False)
    if len(alone) < 2:
        return None
    figure = Figure(figsize=(7.2, 4.3), layout="constrained")
    axes = figure.subplots()
    curves = {"replay alone": alone}
    both = by_buffer(collected, protocol, regime, with_ldc=True)
    if both:
        curves["LDC and replay"] = both
    for label, curve in curves.items():
        own = label != "replay alone"
        axes.errorbar(
            list(curve),
            [one.mean for one in curve.values()],
            yerr=[one.half or 0.0 for one in curve.values()],
            color=OWN if own else styles.colour(f"er-{next(iter(alone))}"),
            marker="*" if own else "o",
            markersize=10 if own else 6,
            linewidth=1.6,
            label=label,
        )
    ldc = estimate(list(collected.acc(protocol, "default", REFERENCE).values()))
    if ldc is not None:
        axes.axhline(ldc.mean, color=OWN, linestyle="--", linewidth=1.2, label="LDC, no buffer")
        size = overtakes(alone, ldc.mean)
        if size is not None and size > next(iter(alone)):
            axes.axvline(size, color=GRID, linestyle=":", linewidth=1.0)
            axes.annotate(
                f"{size:.0f} images",
                (size, axes.get_ylim()[0]),
                xytext=(4, 6),
                textcoords="offset points",
                fontsize=8.5,
            )
    frame(axes)
    axes.set_xscale("log")
    axes.set_xticks(list(alone))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("images that the buffer keeps (log scale)")
    axes.set_ylabel("ACC (%)")
    axes.legend(fontsize=8.5, frameon=False)
    return figure
