"""The page and the figure of ``benchmarks.strengths``, made from the accuracies it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flatcl.scores import mean_ci95
from flatcl.tables import markdown_table

TARGET, CLASS_TARGET = 1.5, 4.0  # points that the default may lie under the best strength
# Okabe and Ito's colours, told apart by colour-blind readers.
_LINE, _RUN, _DEFAULT, _BEST, _BAND = "#0072B2", "#56B4E9", "#D55E00", "#000000", "#009E73"
_COLUMNS = 4
TEXT = """# One default on twelve streams

Made by `python -m benchmarks.strengths`: ACC in percent on test images by LDC's strength γ, plain
SGD (lr 0.05), networks 784-100-100-C, batches of 32; {runs} runs, {minutes:.0f} minutes of training
together on one core. Nothing else is changed, and at γ = {default:g}, the default, nothing is
given at all. Raw records: `results/strengths/runs`.

Cells are means over the *repeats*, a number in brackets tells where there are fewer. *Default −
best* is the default's ACC less that of the best strength (bold), the mean over the repeats that
both have, with the 95 % interval of the paired difference where they are several; 0.00 where the
default is itself the best. The best of a row is chosen on the very test images of the row, and the
default is not: chance favours it, so that the distance is shown rather too large. The *target*:
never more than {target:g} points under the best on permuted, rotated, task- and domain-incremental
streams, never more than {class_target:g} on class-incremental ones.

**{verdict}**

## Short streams: five tasks of 6000 images

{short}

## Long streams

Ten permuted tasks of 12,000 images and twenty of 6000, three epochs each; fifteen tasks of 6000
rotated up to 162°, two epochs. To spare time there are here two decades of strength in place of
six, and one repeat is planned in place of three but for the default: a departure. The column
"repeats" has those made.

{long}
{missing}
![ACC by strength](../docs/strengths.png)

The thick line is the default's mean plus the mean paired difference from it, thin lines are single
repeats, the green band is the target below the best strength; vertical ranges differ from panel to
panel.

## The constraint alone

The same without the rehearsal (`pseudo_inputs=0`), and with an offset of 1 on class-incremental
streams, from runs that were made before there was a rehearsal: what it adds, and how much less the
strength matters beside it.

{alone}
"""


@dataclass
class Curve:
    """The accuracies of one stream.

    Attributes:
        stream: its name.
        strengths: those that belong to it, ascending.
        default: the one of them that is the default.
        acc: ACC in percent by strength and seed; None for a run that did not end well.
        planned: runs that belong to it.
        seconds: of training, all recorded runs.
    """

    stream: str
    strengths: tuple[float, ...]
    default: float
    acc: dict[float, dict[int, float | None]] = field(default_factory=dict)
    planned: int = 0
    seconds: float = 0.0

    @property
    def target(self) -> float:
        """Points that the default may lie under the best."""
        return CLASS_TARGET if self.stream.endswith("-class") else TARGET

    @property
    def recorded(self) -> int:
        """Number of runs on the disk."""
        return sum(map(len, self.acc.values()))

    def differences(self) -> dict[float, list[float]]:
        """Return each strength's ACC less the default's, seed by seed.

        Returns:
            In points, by ascending strength, on the seeds that both have. A strength of which a
            run broke down, or that has no seed in common with the default, is left out.
        """
        default = self.acc.get(self.default, {})
        found = {s: _paired(self.acc.get(s, {}), default) for s in self.strengths}
        return {s: pairs for s, pairs in found.items() if pairs}

    def best(self) -> float | None:
        """Return the strength that is best in the mean of its differences from the default.

        Returns:
            The default where no other is better; None without a run of it.
        """
        differences = self.differences()
        return max(
            differences, key=lambda s: (fmean(differences[s]), s == self.default), default=None
        )

    def gaps(self) -> list[float]:
        """Return the default's ACC less the best strength's, seed by seed.

        Returns:
            In points; empty without a run of the default.
        """
        best = self.best()
        return [] if best is None else [0.0 - d for d in self.differences()[best]]

    def missed(self) -> bool | None:
        """Return whether the default lies further under the best than the target allows.

        Returns:
            None as long as it cannot be told, since a strength has no run yet.
        """
        gaps = self.gaps()
        if None in self.acc.get(self.default, {}).values() or (gaps and fmean(gaps) < -self.target):
            return True
        return False if set(self.acc) == set(self.strengths) else None


def _paired(acc: dict[int, float | None], default: dict[int, float | None]) -> list[float]:
    if None in acc.values() or None in default.values():
        return []
    pairs = [(acc[seed], default[seed]) for seed in sorted(acc.keys() & default.keys())]
    return [a - d for a, d in pairs if a is not None and d is not None]


def _gap(curve: Curve) -> str:
    gaps = curve.gaps()
    if not gaps:
        return "–"
    mean, half = mean_ci95(gaps)
    return f"{mean:.2f}".replace("-", "−") + (f" ± {half:.2f}" if half else "")


def _cell(curve: Curve, strength: float) -> str:
    runs = curve.acc.get(strength, {})
    values = [acc for acc in runs.values() if acc is not None]
    if len(values) < len(runs):
        return "diverged"
    if not values:
        return "–"
    mean = f"{fmean(values):.1f}"
    if strength == curve.best():
        mean = f"**{mean}**"
    fewer = len(values) < max(map(len, curve.acc.values()))
    return f"{mean} ({len(values)})" if fewer else mean


def _row(curve: Curve) -> list[str]:
    best, missed = curve.best(), curve.missed()
    return [
        curve.stream,
        *(_cell(curve, strength) for strength in curve.strengths),
        str(max(map(len, curve.acc.values()), default=0)),
        "–" if best is None else f"{best:g}",
        _gap(curve),
        f"−{curve.target:g}",
        "–" if missed is None else "**miss**" if missed else "met",
    ]


def table(curves: Sequence[Curve]) -> str:
    """Return one row a stream: ACC at each strength, the best, the distance, the target.

    Args:
        curves: of streams that share their strengths.

    Returns:
        Markdown; the best of a row is bold, and a number in brackets that of fewer repeats.
    """
    strengths = curves[0].strengths
    heads = [f"{s:g}" + (", default" if s == curves[0].default else "") for s in strengths]
    last = ["repeats", "best γ", "default − best", "target", "verdict"]
    rows = [_row(curve) for curve in curves]
    return markdown_table(["stream \\ γ", *heads, *last], rows)


def verdict(curves: Sequence[Curve]) -> str:
    """Return one sentence on how many streams the default meets its target on.

    Args:
        curves: one a stream.

    Returns:
        It names the misses, with the distance.
    """
    known = [curve for curve in curves if curve.missed() is not None]
    missed = [curve for curve in known if curve.missed()]
    text = f"The target is met on {len(known) - len(missed)} of {len(curves)} streams"
    if missed:
        text += "; a miss on " + ", ".join(f"{c.stream} ({_gap(c)})" for c in missed)
    if len(known) < len(curves):
        text += f"; {len(curves) - len(known)} without enough runs"
    return text + "."


def _missing(curves: Sequence[Curve]) -> str:
    short = [c for c in curves if c.recorded < c.planned]
    if not short:
        return ""
    shown = ", ".join(f"{c.stream} {c.planned - c.recorded} of {c.planned}" for c in short)
    return f"\n**Runs that are missing**: {shown}.\n"


def text_of(curves: Sequence[Curve], alone: Sequence[Curve]) -> str:
    """Return the page.

    Args:
        curves: one a stream; those with the strengths of the first are the short ones.
        alone: those of the constraint alone.

    Returns:
        Markdown.
    """
    short, long = _by_length(curves)
    return TEXT.format(
        runs=sum(c.recorded for c in curves),
        minutes=sum(c.seconds for c in curves) / 60,
        default=curves[0].default,
        target=TARGET,
        class_target=CLASS_TARGET,
        verdict=verdict(curves),
        short=table(short),
        long=table(long),
        missing=_missing(curves),
        alone="\n\n".join(table(part) for part in _by_length(alone)),
    )


def _by_length(curves: Sequence[Curve]) -> tuple[list[Curve], list[Curve]]:
    """Return those with the strengths of the first, and the others."""
    first = curves[0].strengths
    return [c for c in curves if c.strengths == first], [c for c in curves if c.strengths != first]


def _panel(axes: Axes, curve: Curve) -> None:
    differences, best = curve.differences(), curve.best()
    axes.set_title(curve.stream, fontsize=9.5)
    axes.set_xscale("log")
    axes.grid(alpha=0.3, linewidth=0.6)
    if best is None:
        return
    default = [acc for acc in curve.acc[curve.default].values() if acc is not None]
    level = fmean(default)
    top = level + fmean(differences[best])
    axes.axhspan(top - curve.target, top, color=_BAND, alpha=0.22, linewidth=0)
    axes.axvline(curve.default, color=_DEFAULT, linestyle=":", linewidth=1.2)
    for seed in sorted({seed for runs in curve.acc.values() for seed in runs}):
        line = [(s, a) for s in differences if (a := curve.acc[s].get(seed)) is not None]
        axes.plot(
            [s for s, _ in line], [a for _, a in line],
            color=_RUN, linewidth=0.9, marker="o", markersize=2,
        )  # fmt: skip
    means = [level + fmean(pairs) for pairs in differences.values()]
    axes.plot(list(differences), means, color=_LINE, linewidth=1.8, marker="o", markersize=3.5)
    axes.plot(best, top, linestyle="", marker="*", color=_BEST, markersize=7, zorder=5)
    axes.plot(curve.default, level, marker="D", color=_DEFAULT, markersize=9, zorder=4)


def plot_curves(curves: Sequence[Curve]) -> Figure:
    """Return a figure of ACC by strength, a panel a stream.

    Args:
        curves: one a stream.

    Returns:
        The figure; the strength is drawn in logarithms over the same range in every panel.
    """
    lines = math.ceil(len(curves) / _COLUMNS)
    figure = Figure(figsize=(3.1 * _COLUMNS, 2.5 * lines + 0.5), layout="constrained")
    panels = list(figure.subplots(lines, _COLUMNS, sharex=True, squeeze=False).flat)
    for number, (axes, curve) in enumerate(zip(panels, curves, strict=False)):
        _panel(axes, curve)
        if number % _COLUMNS == 0:
            axes.set_ylabel("ACC, test images (%)")
        if number + _COLUMNS >= len(curves):
            axes.set_xlabel("strength γ")
            axes.xaxis.set_tick_params(labelbottom=True)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    keys = [
        Line2D([], [], color=_LINE, marker="o", markersize=3.5, label="mean over repeats"),
        Line2D([], [], color=_RUN, linewidth=0.9, marker="o", markersize=2, label="one repeat"),
        Line2D(
            [], [], color=_DEFAULT, linestyle=":", marker="D", markersize=9, label="the default"
        ),
        Line2D([], [], color=_BEST, linestyle="", marker="*", markersize=7, label="best strength"),
        Patch(color=_BAND, alpha=0.22, label="target, below the best"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=9)
    return figure
