"""The page and the figure of ``benchmarks.rotation``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from scipy.stats import spearmanr

from flatcl.io import write_bytes
from flatcl.plots import png
from flatcl.tables import markdown_table

Row = Mapping[str, Any]
LAYERS = ("first", "second", "third")
_OUTCOMES: dict[str, Callable[[Row], list[float]]] = {
    "zero-shot": lambda row: row["zero_shot"],
    "forgetting, Naive": lambda row: row["trained"]["naive"]["forgetting"],
    "forgetting, LDC": lambda row: row["trained"]["ldc"]["forgetting"],
}


def _of_layer(layer: str, what: str) -> Callable[[Row], list[float]]:
    return lambda row: row["layers"][layer][what]


_PREDICTORS: dict[str, Callable[[Row], list[float]]] = {
    **{f"½ Δw*ᵀKΔw*, {layer} layer": _of_layer(layer, "energy") for layer in LAYERS},
    **{f"size alone, |Δw*|², {layer} layer": _of_layer(layer, "move") for layer in LAYERS},
    "change of the images, |Δx|²": lambda row: row["distance"],
}
_HEAD = """# New inputs as moves of the old weights

Made by `python -m benchmarks.rotation`: a network (784-100-100-10, SGD 0.05) learns 6000 images of
MNIST; the same images turned by {angles} degrees are the next task.
By the activity–weight duality each turned image is, for a layer, an exact move Δw* of that layer's
weights from the upright one. LDC's constraint K of the first task gives the move's energy
½ Δw*ᵀKΔw*, before anything is trained on the new task. {seeds} repeats; raw figures:
`results/rotation/`.

*Zero-shot* is the rise of the loss on test images when they are turned, *forgetting* the rise on
upright test images after one epoch on the turned ones, without LDC and with it (strength as in the
defaults, the constraint alone). ρ is Spearman's: *pooled* over all repeats, angles and classes;
*within* an angle over its classes, the mean over angles and repeats, where no common growth with
the angle helps. *Ratio* is the median of predicted to measured over angles' means: 1 is a forecast
in the right nats. Layers are several accounts of one change, not parts of it.
"""
_SAMPLES = """## Image by image

Spearman's ρ of the energy of an image's own move with the rise of its own loss, mean over repeats.
"""
_LINEAR = """## What the linear forecast misses

The usual forecast is the energy of the weights' own displacement after training,
½ (w − w*)ᵀK(w − w*). Beside it the energy of the dual moves (third layer), known before training.
Means over repeats, nats.
"""
_FIGURE = """![Energy of the dual moves against the loss of turned images](../docs/rotation.png)
"""


def render(repeats: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the page and its figure.

    Args:
        repeats: what ``benchmarks.rotation.measure`` returned, a repeat each.
        folder: of the benchmarks.
    """
    rows = [row for repeat in repeats for row in repeat["angles"]]
    angles = sorted({row["angle"] for row in rows})
    head = _HEAD.format(angles=", ".join(map(str, angles)), seeds=len(repeats))
    parts = [
        head,
        _table(rows),
        _FIGURE,
        _SAMPLES,
        _samples(rows, angles),
        _LINEAR,
        _linear(rows, angles),
        "\n" + _sentences(rows),
    ]
    write_bytes(folder / "ROTATION.md", "\n".join(p.rstrip() + "\n" for p in parts).encode())
    write_bytes(folder.parent / "docs" / "rotation.png", png(_figure(rows, angles), dpi=130))


def _rho(first: Sequence[float], second: Sequence[float]) -> float:
    return float(spearmanr(first, second).statistic)


def _pooled(rows: Sequence[Row], predictor: str, outcome: str) -> float:
    pairs = [
        pair
        for row in rows
        for pair in zip(_PREDICTORS[predictor](row), _OUTCOMES[outcome](row), strict=True)
    ]
    return _rho([a for a, _ in pairs], [b for _, b in pairs])


def _within(rows: Sequence[Row], predictor: str, outcome: str) -> float:
    return fmean(_rho(_PREDICTORS[predictor](row), _OUTCOMES[outcome](row)) for row in rows)


def _ratio(rows: Sequence[Row], predictor: str, outcome: str) -> str:
    if not predictor.startswith("½"):
        return "–"
    pairs = [(fmean(_PREDICTORS[predictor](r)), fmean(_OUTCOMES[outcome](r))) for r in rows]
    return f"{median(a / b for a, b in pairs if b > 0):.2f}"


def _table(rows: Sequence[Row]) -> str:
    header = ["predictor"]
    for outcome in _OUTCOMES:
        header += [f"{outcome}: pooled ρ", "within", "ratio"]
    lines = []
    for predictor in _PREDICTORS:
        cells = [predictor]
        for outcome in _OUTCOMES:
            cells += [
                f"{_pooled(rows, predictor, outcome):.2f}",
                f"{_within(rows, predictor, outcome):.2f}",
                _ratio(rows, predictor, outcome),
            ]
        lines.append(cells)
    return markdown_table(header, lines)


def _samples(rows: Sequence[Row], angles: Sequence[int]) -> str:
    lines = [
        [
            f"{layer} layer",
            *(
                f"{fmean(r['layers'][layer]['per_sample'] for r in rows if r['angle'] == a):.2f}"
                for a in angles
            ),
        ]
        for layer in LAYERS
    ]
    return markdown_table(["ρ, by angle", *(f"{a}°" for a in angles)], lines)


def _linear(rows: Sequence[Row], angles: Sequence[int]) -> str:
    def mean(pick: Callable[[Row], float], angle: int) -> str:
        return f"{fmean(pick(row) for row in rows if row['angle'] == angle):.3f}"

    picks: dict[str, Callable[[Row], float]] = {
        "zero-shot rise": lambda r: fmean(r["zero_shot"]),
        "energy of the dual moves": lambda r: fmean(r["layers"]["third"]["energy"]),
        "forgetting, Naive": lambda r: fmean(r["trained"]["naive"]["forgetting"]),
        "linear forecast of it": lambda r: r["trained"]["naive"]["quadratic"],
        "forgetting, LDC": lambda r: fmean(r["trained"]["ldc"]["forgetting"]),
        "linear forecast of that": lambda r: r["trained"]["ldc"]["quadratic"],
    }
    lines = [[name, *(mean(pick, angle) for angle in angles)] for name, pick in picks.items()]
    return markdown_table(["nats, by angle", *(f"{a}°" for a in angles)], lines)


def _sentences(rows: Sequence[Row]) -> str:
    """Say what the tables show, from their own numbers."""

    def log_error(pick: Callable[[Row], float], outcome: str) -> float:
        pairs = [(pick(r), fmean(_OUTCOMES[outcome](r))) for r in rows]
        return median(abs(np.log(a / b)) for a, b in pairs if a > 0 and b > 0)

    naive = "forgetting, Naive"
    dual = log_error(lambda r: fmean(r["layers"]["third"]["energy"]), naive)
    linear = log_error(lambda r: r["trained"]["naive"]["quadratic"], naive)
    best = "½ Δw*ᵀKΔw*, third layer"
    better = "nearer" if dual < linear else "no nearer"
    ranks = ", ".join(
        f"{_within(rows, f'½ Δw*ᵀKΔw*, {layer} layer', 'zero-shot'):.2f} against "
        f"{_within(rows, f'size alone, |Δw*|², {layer} layer', 'zero-shot'):.2f} in the {layer}"
        for layer in LAYERS
    )
    return (
        "Within an angle, the energy ranks classes by their zero-shot loss, against the moves' "
        f"size alone, with ρ {ranks} layer: only where the first is larger does the landscape add "
        "to the size. Of Naive's forgetting, the median error of the dual forecast is a factor of "
        f"{np.exp(dual):.1f}, that of the linear forecast {np.exp(linear):.1f}: the dual moves, "
        f"known before training, are {better} than the weights' own displacement after it. How "
        "well they tell which class is forgotten is ρ within an angle, "
        f"{_within(rows, best, naive):.2f}; the new task may teach a class of the old one as well "
        "as harm it."
    )


def _figure(rows: Sequence[Row], angles: Sequence[int]) -> Figure:
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for panel, (outcome, pick) in zip(panels, _OUTCOMES.items(), strict=True):
        x = [value for row in rows for value in row["layers"]["third"]["energy"]]
        y = [value for row in rows for value in pick(row)]
        colour = [row["angle"] for row in rows for _ in pick(row)]
        drawn = panel.scatter(x, y, c=colour, cmap="viridis", s=9, linewidths=0, alpha=0.8)
        line = [min(x), max(x)]
        panel.plot(line, line, "--", color="#777777", lw=1, label="forecast = measured")
        panel.set_xscale("log")
        panel.set_yscale("symlog", linthresh=0.1)
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.set(title=outcome, xlabel="½ Δw*ᵀKΔw*, third layer (nats)")
        panel.grid(alpha=0.3, linewidth=0.6)
    panels[0].set_ylabel("rise of the loss (nats)")
    panels[0].legend(frameon=False, fontsize=8)
    figure.colorbar(drawn, ax=panels, label="angle (degrees)", ticks=angles[::2])
    return figure
