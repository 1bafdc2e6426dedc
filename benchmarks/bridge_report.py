"""The page and the figure of ``benchmarks.bridge``, made from the rows it keeps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from flatcl.core.options import Source
from flatcl.fluctuation_plots import plot_stiffness
from flatcl.fluctuations import power_fit
from flatcl.fluctuations.ranking import rank_correlation
from flatcl.io import write_bytes
from flatcl.plots import png
from flatcl.tables import markdown_table

Row = dict[str, Any]
STREAMS = {"permuted": 5, "split": 3}  # epochs a task
SOURCES: tuple[Source, ...] = ("probe", "sgd")
RISE = 0.5  # nats above the centre: the threshold of the widths W and N
LAYERS = {"0": "784→50", "2": "50→50", "4": "50→10"}
RANKED = {  # statistics of the first two tables, and their headings
    "k h": "k, h",
    "k width": "k, 1/F",
    "k far": "k, 1/W",
    "k nearest": "k, 1/N",
    "top h": "half: k, h",
    "top width": "half: k, 1/F",
    "top nearest": "half: k, 1/N",
    "exponent": "e",
    "censored": "no F",
    "censored far": "no W",
}
COMPARED = {  # of the third
    "undamped h": "δ = 0: k, h",
    "undamped width": "δ = 0: k, 1/F",
    "undamped nearest": "δ = 0: k, 1/N",
    "h width": "h, 1/F",
    "h nearest": "h, 1/N",
    "level": "k / h",
    "level far": "k / (1/N²)",
    "scatter": "scatter",
}
TEXT = """# What LDC rests on: does stiffness rank flatness?

Made by `python -m benchmarks.bridge` (raw figures, direction by direction: `results/bridge.json`).
A 784-50-50-10 ReLU perceptron learns {tasks} tasks of MNIST with LDC at its defaults, by plain SGD
(η = {lr:g}, B = {batch}): *permuted*, {images} images a task, {permuted} epochs; *split*, two
digits a task, at most {images} images, {split} epochs, one head of ten outputs. Trainings of each
stream and source: {repeats}. Along {directions} eigendirections u vᵀ of every layer, at places
spread evenly in the logarithm of the rank of k, the loss on {judged} training images is measured:

- h = pᵀHp, the curvature at the weights w*: F as its distance goes to 0;
- F, the two-sided width where the loss is e times its central value L₀;
- W, the two-sided width where it is L₀ + {rise:g} nats, and N, the nearer side of it (a direction
  in which neither side gets there counts as the flattest, 1/N = 0).

Numbers are Spearman's rank correlations, over all directions of a layer ({decades:.0f} decades of k
in the median), then over the stiffer *half* of them ({top_decades:.1f} decades). Without a relation
19 of 20 would lie within ±{chance:.2f}, and within ±{top_chance:.2f} for the half. e is the
exponent in F ∝ k^e, −½ if k is the curvature of a quadratic valley; *no F*, *no W*: share of
directions in which a side does not get there within ten times the layer's norm.

## How to read it

{reading}

## A task alone

k of one task by its own measurement (damped as LDC holds it), the loss that task's. L₀ in nats:
{losses}. Mean over tasks [least, greatest].

{own}

## All tasks, after the last

The merged k, the loss the mean over all {tasks} tasks. L₀ in nats: {joint_losses}. Where it is of
the order of a nat, the tasks' minimum has been left, and F, out to e L₀, says little.

{joint}

## Against the curvature itself, and without damping

A task alone, means over tasks. *δ = 0*: k before damping, in the same directions (source "sgd" has
none). *h, 1/F* and *h, 1/N*: what the exact curvature at w* would reach. *k / h* and *k / (1/N²)*:
medians over the stiffer half, of k over the curvature at w*, and of k over that of the parabola
which rises by {rise:g} nats at N. A constant factor is the strength's business; one that differs
from stream to stream or layer to layer is not. *scatter*: standard deviation of log₁₀ k/h.

{compared}
"""


def _columns(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return the columns of one layer, or of several joined; NaN where there is no number."""

    def joined(key: str) -> Tensor:
        values = [v for row in rows for v in row[key] or [None] * len(row["k"])]
        return torch.tensor([math.nan if v is None else v for v in values]).double()

    keys = ("k", "undamped", "h", "left", "right", "far_left", "far_right")
    c = {key: joined(key) for key in keys}
    c["width"], c["far"] = c["left"] + c["right"], c["far_left"] + c["far_right"]
    c["nearest"] = torch.stack([c["far_left"], c["far_right"]]).nan_to_num(nan=math.inf).amin(0)
    return c


def statistics(rows: Sequence[Row]) -> dict[str, float | None]:
    """Return how well k, and h for comparison, rank what was measured along the directions.

    Args:
        rows: entries of the results, of one layer or of several whose directions are joined.

    Returns:
        Rank correlations by ``a b``, a the predictor (``k``, ``undamped`` k, ``h``, or ``top``, k
        of the stiffer half), b what it predicts: ``h``, and the inverse of ``width`` F, of the
        threshold width ``far``, and of the side of it that is ``nearest``, 0 where neither side
        reaches the threshold; ``exponent`` e of F ∝ k^e; ``level`` and ``level far``, medians over
        the stiffer half of k/h and of k over the curvature of a parabola through ``nearest``;
        ``scatter``, the standard deviation of log10 k/h where h > 0; ``censored`` and ``censored
        far``, shares of directions; ``decades`` of k, and ``top decades``.
    """
    c = _columns(rows)
    inverse = {"h": c["h"]} | {name: 1.0 / c[name] for name in ("width", "far", "nearest")}
    found = {
        f"{a} {b}": rank_correlation(c[a], inverse[b])
        for a in ("k", "undamped", "h")
        for b in inverse
        if a != b
    }
    top = c["k"] >= c["k"].median()
    for name, values in inverse.items():
        found[f"top {name}"] = rank_correlation(c["k"][top], values[top])
    law = power_fit(c["k"], c["width"], draws=1)
    ratio = (c["k"] / c["h"])[(c["h"] > 0) & (c["k"] > 0)].log10()
    return found | {
        "exponent": None if law is None else law.exponent,
        "level": float((c["k"] / c["h"])[top & (c["h"] > 0)].median()),
        "level far": float((c["k"] * c["nearest"].square() / (2 * RISE))[top].median()),
        "scatter": float(ratio.std()),
        "decades": _decades(c["k"]),
        "top decades": _decades(c["k"][top]),
        "censored": float(c["width"].isnan().double().mean()),
        "censored far": float(c["far"].isnan().double().mean()),
    }


def _decades(values: Tensor) -> float:
    positive = values[values > 0]
    return float((positive.max() / positive.min()).log10())


def _cases(rows: Sequence[Row], joint: bool) -> Iterator[tuple[str, str, str, list[list[Row]]]]:
    """Yield stream, source, layer ("all" for all joined), and its repeats."""
    for stream in STREAMS:
        for source in SOURCES:
            chosen = [
                row
                for row in rows
                if (row["stream"], row["source"]) == (stream, source)
                and (row["data"] == "all") == joint
            ]
            for layer in [*LAYERS, "all"]:
                repeats: dict[tuple[int, int | str], list[Row]] = {}
                for row in chosen:
                    if layer in {"all", row["layer"]}:
                        repeats.setdefault((row["seed"], row["data"]), []).append(row)
                yield stream, source, layer, list(repeats.values())


def _number(name: str, value: float) -> str:
    if name.startswith("censored"):
        return f"{value:.0%}"
    text = f"{value:.2g}" if name.startswith("level") else f"{value:.2f}"
    return text.replace("-", "−")


def _cell(name: str, values: Sequence[float | None], *, spread: bool) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    whole = geometric_mean(known) if name.startswith("level") else fmean(known)
    mean, low, high = (_number(name, v) for v in (whole, min(known), max(known)))
    return f"{mean} [{low}, {high}]" if spread and low != high else mean


def _table(rows: Sequence[Row], columns: dict[str, str], *, joint: bool, spread: bool) -> str:
    lines = []
    for stream, source, layer, repeats in _cases(rows, joint):
        found = [statistics(repeat) for repeat in repeats]
        cells = [_cell(name, [f[name] for f in found], spread=spread) for name in columns]
        lines.append([f"{stream}, {source}", LAYERS.get(layer, "all joined"), *cells])
    return markdown_table(["stream, source", "layer", *columns.values()], lines)


def _losses(rows: Sequence[Row], joint: bool) -> str:
    said = []
    for stream, source, layer, repeats in _cases(rows, joint):
        if layer == "all":
            losses = ", ".join(f"{repeat[0]['loss']:.2g}" for repeat in repeats)
            said.append(f"{losses} ({stream}, {source})")
    return "; ".join(said)


def _reading(rows: Sequence[Row]) -> str:
    """Return what the numbers say, in words that follow from them."""
    own = {
        (stream, source, layer): [statistics(repeat) for repeat in repeats]
        for stream, source, layer, repeats in _cases(rows, False)
    }
    joint = {
        (stream, source, layer): [statistics(repeat) for repeat in repeats]
        for stream, source, layer, repeats in _cases(rows, True)
    }

    def span(found: dict[Any, list[dict[str, float | None]]], name: str, *key: str) -> str:
        """Return least to greatest over layers, tasks and repeats: of a stream, and a source."""
        values = [
            f[name]
            for (stream, source, layer), fs in found.items()
            if layer != "all" and set(key) <= {stream, source, layer}
            for f in fs
        ]
        known = [v for v in values if v is not None]
        low, high = (_number(name, v) for v in (min(known), max(known)))
        return low if low == high else f"{low} to {high}"

    lines = []
    for stream in STREAMS:
        for source in SOURCES:
            least = min(f["k width"] or 0.0 for layer in LAYERS for f in own[stream, source, layer])
            lines.append(
                f'**{stream}, source "{source}": stiffness ranks a task\'s own flatness '
                f"{_word(least)}.** Over layers and tasks the correlation of k is "
                f"{span(own, 'k h', stream, source)} with h, "
                f"{span(own, 'k width', stream, source)} with 1/F, "
                f"{span(own, 'k far', stream, source)} with 1/W and "
                f"{span(own, 'k nearest', stream, source)} with 1/N; within the stiffer half "
                f"{span(own, 'top width', stream, source)} with 1/F; "
                f"e is {span(own, 'exponent', stream, source)}."
            )
    lines.append(
        "**Merged, against the loss of all tasks**, the correlation of k with 1/N is "
        + "; ".join(
            f"{span(joint, 'k nearest', stream, source)} ({stream}, {source}, "
            f"L₀ = {fmean(r[0]['loss'] for r in repeats):.2g})"
            for stream, source, layer, repeats in _cases(rows, True)
            if layer == "all"
        )
        + "."
    )
    lines.append(
        "**A point is not a distance.** The exact curvature at w* itself ranks 1/N by "
        f"{span(own, 'h nearest', 'permuted')} on the permuted stream and "
        f"{span(own, 'h nearest', 'split')} on the split one; there e L₀ can lie far below "
        f"L₀ + {RISE:g} nats, so that F, too, sees the near part alone. In "
        f"{span(own, 'censored far', 'split')} of the split stream's directions "
        f"({span(own, 'censored far', 'permuted')} of the permuted one's) a side never gets there, "
        "and the two-sided W knows nothing of them: N does."
    )
    lines.append(
        "**Probe, with damping and without.** Without it the probe's k ranks a task's own h by "
        f"{span(own, 'undamped h', 'probe')} instead of {span(own, 'k h', 'probe')}; in the last "
        f"layer by {span(own, 'undamped h', 'probe', '4')} instead of "
        f"{span(own, 'k h', 'probe', '4')}. Damping, and random directions over all outputs, hold "
        "what this task's loss does not feel, units that are silent and outputs that no label has "
        "named yet: no measurement on the task's own data can count that for them."
    )
    lines.append(
        '**Rank is not size.** Over the stiffer half, the source "sgd"\'s k is, in the median, '
        f"{span(own, 'level', 'permuted', 'sgd')} times h on the permuted stream and "
        f"{span(own, 'level', 'split', 'sgd')} on the split one; against the parabola through N "
        f"it is {span(own, 'level far', 'permuted', 'sgd')} and "
        f"{span(own, 'level far', 'split', 'sgd')}. The probe's is "
        f"{span(own, 'level', 'permuted', 'probe')} and {span(own, 'level', 'split', 'probe')} "
        f"times h, {span(own, 'level far', 'permuted', 'probe')} and "
        f"{span(own, 'level far', 'split', 'probe')} times that parabola."
    )
    wrapped = (textwrap.fill(line, 98, break_on_hyphens=False) for line in lines)
    return "\n".join(f"- {textwrap.indent(line, '  ').lstrip()}" for line in wrapped)


def _word(least: float) -> str:
    steps = ((0.9, "well"), (0.75, "fairly"), (0.5, "moderately"), (-1.0, "poorly"))
    return f"{next(word for bound, word in steps if least >= bound)} ({least:.2f} at the least)"


def render(rows: Sequence[Row], names: Mapping[str, Any]) -> str:
    """Return the page made from the recorded runs.

    Args:
        rows: the recorded runs, a row for each layer, task, source and stream.
        names: the set-up, with ``tasks``, and the epochs of each stream by its name.

    Returns:
        Markdown.
    """
    found = [statistics([row]) for row in rows]
    decades, top_decades = (
        median([f[name] or 0.0 for f in found]) for name in ("decades", "top decades")
    )
    n = names["directions"]
    return TEXT.format(
        **names,
        repeats=len({row["seed"] for row in rows}),
        decades=decades,
        top_decades=top_decades,
        chance=1.96 / math.sqrt(n - 1),
        top_chance=1.96 / math.sqrt(n / 2 - 1),
        reading=_reading(rows),
        losses=textwrap.fill(_losses(rows, False), 98),
        joint_losses=_losses(rows, True),
        own=_table(rows, RANKED, joint=False, spread=True),
        joint=_table(rows, RANKED, joint=True, spread=False),
        compared=_table(rows, COMPARED, joint=False, spread=False),
    )


def figure(rows: Sequence[Row], path: Path) -> None:
    """Draw measured flatness against stiffness, one panel a stream and source.

    Args:
        rows: the recorded runs.
        path: of the PNG.
    """
    drawn = Figure(figsize=(9, 7.2), layout="constrained")
    cases = sorted({(row["stream"], row["source"]) for row in rows})
    for axes, (stream, source) in zip(drawn.subplots(2, 2).flat, cases, strict=True):
        pairs = {}
        for layer, label in LAYERS.items():
            own = [r for r in rows if (r["stream"], r["source"]) == (stream, source)]
            own = [r for r in own if r["layer"].startswith(layer) and r["data"] != "all"]
            c = _columns(own)
            pairs[label] = (c["k"], c["width"])
        plot_stiffness(pairs, axes)
        axes.set_title(f"{stream}, source “{source}”")
    write_bytes(path, png(drawn, dpi=110))
