"""The page and the figure of ``benchmarks.rotation``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from scipy.stats import spearmanr

from flatcl.io import write_bytes
from flatcl.plots import png
from flatcl.tables import markdown_table

Row = Mapping[str, Any]
Forecast = Callable[[Row], float]
LAYERS = ("first", "second", "third")
_TRAINED = {"naive": "forgetting, Naive", "ldc": "forgetting, LDC"}
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
the angle helps. *Ratio* is the median of predicted to measured over repeats and angles, each a mean
over classes: 1 is a forecast in the right nats. "31 of 50" are those it rests on: an energy is
never below 0, so where the loss fell the forecast has the wrong sign and there is no ratio. Layers
are several accounts of one change, not parts of it.
"""
_SAMPLES = """## Image by image

Spearman's ρ of the energy of an image's own move with the rise of its own loss, mean over repeats.
"""
_LINEAR = """## Beside the linear forecast

The usual forecast is the energy of the weights' own displacement after training,
½ (w − w*)ᵀK(w − w*). Beside it the energy of the dual moves, known before training. Means over
repeats, nats.
"""
_ERRORS = """The factor by which the forecasts of forgetting are off: the median, and the largest,
over repeats and angles at which the loss rose. At the others every forecast has the wrong sign.
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
        _ERRORS,
        _errors(rows, angles),
        _sentences(rows, angles),
    ]
    write_bytes(folder / "ROTATION.md", "\n".join(p.rstrip() + "\n" for p in parts).encode())
    write_bytes(folder.parent / "docs" / "rotation.png", png(_figure(rows, angles), dpi=100))


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


def _risen(rows: Sequence[Row], outcome: str) -> list[Row]:
    """Return the rows whose loss rose: no energy can be in ratio to a fall."""
    return [row for row in rows if fmean(_OUTCOMES[outcome](row)) > 0]


def _ratio(rows: Sequence[Row], predictor: str, outcome: str) -> str:
    if not predictor.startswith("½"):
        return "–"
    used = _risen(rows, outcome)
    if not used:
        return f"– (0 of {len(rows)})"
    middle = median(
        fmean(_PREDICTORS[predictor](row)) / fmean(_OUTCOMES[outcome](row)) for row in used
    )
    return f"{middle:.2f}" + ("" if len(used) == len(rows) else f" ({len(used)} of {len(rows)})")


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
    def mean(pick: Forecast, angle: int) -> str:
        return f"{fmean(pick(row) for row in rows if row['angle'] == angle):.3f}"

    picks: dict[str, Forecast] = {
        "zero-shot rise": lambda r: fmean(r["zero_shot"]),
        **{f"energy of the dual moves, {layer} layer": _energy(layer) for layer in LAYERS},
        "forgetting, Naive": lambda r: fmean(r["trained"]["naive"]["forgetting"]),
        "linear forecast of it": lambda r: r["trained"]["naive"]["quadratic"],
        "forgetting, LDC": lambda r: fmean(r["trained"]["ldc"]["forgetting"]),
        "linear forecast of that": lambda r: r["trained"]["ldc"]["quadratic"],
    }
    lines = [[name, *(mean(pick, angle) for angle in angles)] for name, pick in picks.items()]
    return markdown_table(["nats, by angle", *(f"{a}°" for a in angles)], lines)


def _energy(layer: str) -> Forecast:
    return lambda row: fmean(row["layers"][layer]["energy"])


def _forecasts(method: str) -> dict[str, Forecast]:
    """Return the dual forecasts and the linear one of what training by a method costs, nats."""
    dual = {f"{layer} layer": _energy(layer) for layer in LAYERS}
    return {**dual, "linear forecast": lambda row: row["trained"][method]["quadratic"]}


def _ranges(rows: Sequence[Row], angles: Sequence[int]) -> dict[str, list[Row]]:
    """Return all rows, and those of the smaller and of the larger angles."""
    found = {"all angles": list(rows)}
    half = len(angles) // 2
    for part in (angles[:half], angles[half:]):
        if part:
            mine = [row for row in rows if row["angle"] in part]
            found[f"{part[0]}° to {part[-1]}°"] = mine
    return found


def _factors(rows: Sequence[Row], forecast: Forecast, outcome: str) -> list[float]:
    """Return by how much the forecast is off, too high or too low, where the loss rose."""
    pairs = [(forecast(row), fmean(_OUTCOMES[outcome](row))) for row in _risen(rows, outcome)]
    return [max(a / b, b / a) for a, b in pairs]


def _errors(rows: Sequence[Row], angles: Sequence[int]) -> str:
    lines = []
    for method, outcome in _TRAINED.items():
        for name, mine in _ranges(rows, angles).items():
            cells = [outcome, name, f"{len(_risen(mine, outcome))} of {len(mine)}"]
            for forecast in _forecasts(method).values():
                found = _factors(mine, forecast, outcome)
                cells.append(f"{median(found):.2f}, {max(found):.1f}" if found else "–")
            lines.append(cells)
    header = ["median, largest factor", "over", "loss rose", *_forecasts("naive")]
    return markdown_table(header, lines)


def _nearer(rows: Sequence[Row], angles: Sequence[int]) -> str:
    said = []
    for method, outcome in _TRAINED.items():
        counts = []
        for name, mine in _ranges(rows, angles).items():
            if not _risen(mine, outcome):
                continue
            *dual, linear = (
                median(_factors(mine, f, outcome)) for f in _forecasts(method).values()
            )
            counts.append(f"{sum(one < linear for one in dual)} of {len(dual)} layers over {name}")
        if counts:
            said.append(f"to {outcome.split()[-1]}'s forgetting in {', '.join(counts)}")
    return f"By the median the dual one is nearer {'; '.join(said)}."


def _sentences(rows: Sequence[Row], angles: Sequence[int]) -> str:
    """Say what the tables show, from their own numbers."""
    naive = _TRAINED["naive"]
    ranks = ", ".join(
        f"{_within(rows, f'½ Δw*ᵀKΔw*, {layer} layer', 'zero-shot'):.2f} against "
        f"{_within(rows, f'size alone, |Δw*|², {layer} layer', 'zero-shot'):.2f} in the {layer}"
        for layer in LAYERS
    )
    classes = ", ".join(
        f"{_within(rows, f'½ Δw*ᵀKΔw*, {layer} layer', naive):.2f}" for layer in LAYERS
    )
    return (
        "Within an angle, the energy ranks classes by their zero-shot loss, against the moves' "
        f"size alone, with ρ {ranks} layer: only where the first is larger does the landscape add "
        "to the size.\n\n"
        "The dual forecast is known before training, the linear one after it. "
        f"{_nearer(rows, angles)} No layer was chosen beforehand.\n\n"
        "How well the energies tell which class is forgotten is ρ within an angle, by layer "
        f"{classes}; the new task may teach a class of the old one as well as harm it."
    )


def _figure(rows: Sequence[Row], angles: Sequence[int]) -> Figure:
    figure = Figure(figsize=(12, 9.6), layout="constrained")
    panels = figure.subplots(len(LAYERS), len(_OUTCOMES), sharex=True, sharey=True)
    for line, layer in zip(panels, LAYERS, strict=True):
        for panel, pick in zip(line, _OUTCOMES.values(), strict=True):
            x = [value for row in rows for value in row["layers"][layer]["energy"]]
            y = [value for row in rows for value in pick(row)]
            colour = [row["angle"] for row in rows for _ in pick(row)]
            drawn = panel.scatter(x, y, c=colour, cmap="viridis", s=9, linewidths=0, alpha=0.8)
            ends = [min(x), max(x)]
            panel.plot(ends, ends, "--", color="#777777", lw=1, label="forecast = measured")
            panel.set_xscale("log")
            panel.set_yscale("symlog", linthresh=0.1)
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.set_xlabel(f"½ Δw*ᵀKΔw*, {layer} layer (nats)")
            panel.grid(alpha=0.3, linewidth=0.6)
        line[0].set_ylabel("rise of the loss (nats)")
    for panel, outcome in zip(panels[0], _OUTCOMES, strict=True):
        panel.set_title(outcome)
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.colorbar(drawn, ax=panels, label="angle (degrees)", ticks=angles[::2], aspect=40)
    return figure
