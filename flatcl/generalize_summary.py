"""What a study of knobs says: how far each moves the gap and its factors, and what goes with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from flatcl.fluctuations.ranking import rank_correlation
from flatcl.generalize_runs import SHARP
from flatcl.generalize_settings import KNOBS
from flatcl.scores import mean_ci95
from flatcl.tables import markdown_table

Row = Mapping[str, Any]
FACTORS = ("gap", "sharpness", "size", "correlation")
MEASURES = ("sharpness", "size", "product", "weight_norm", "trace", "margin")
_SAID = {
    "sharpness": "sharpness alone",
    "size": "size alone",
    "product": "Σ sharpness × size",
    "weight_norm": "weight norm",
    "trace": "trace of the Hessian",
    "margin": "margin",
}


@dataclass(frozen=True)
class Change:
    """How far a quantity moves from a knob's first value to its last.

    Attributes:
        mean: of ln(last/first) over seeds.
        half: half-width of its 95 % t-interval; infinite for a single seed.
        n: seeds.
    """

    mean: float
    half: float
    n: int

    @property
    def sign(self) -> int:
        """1 up, −1 down, 0 where the interval holds 0."""
        return 0 if not abs(self.mean) > self.half else (1 if self.mean > 0 else -1)

    def __str__(self) -> str:
        """Return e.g. "× 1.31 [1.2, 1.4]"."""
        if not self.n:
            return "–"
        middle = f"× {math.exp(self.mean):.2f}"
        if not math.isfinite(self.half):
            return middle
        low, high = (math.exp(self.mean + side * self.half) for side in (-1, 1))
        return f"{middle} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Effect:
    """What turning one knob does.

    Attributes:
        knob: its name.
        first: its first value.
        last: its last.
        changes: of each of ``FACTORS``.
    """

    knob: str
    first: float
    last: float
    changes: dict[str, Change]

    @property
    def through(self) -> str:
        """The factors whose change is outside its interval and goes the gap's way."""
        way = self.changes["gap"].sign
        if not way:
            return "no change of the gap"
        found = [name for name in FACTORS[1:3] if self.changes[name].sign == way]
        return {2: "both", 1: found[0] if found else "", 0: "neither"}[len(found)]


def rows_of(runs: Sequence[tuple[str, float, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of ``generalize.jsonl``.

    Args:
        runs: knob, value and record of each trained network.

    Returns:
        A flat dict a network and knob.
    """
    rows = []
    for knob, value, record in runs:
        row: dict[str, Any] = {
            "knob": knob,
            "value": value,
            "seed": record["setting"]["seed"],
            "status": record["status"],
        }
        if record["status"] == "done":
            row |= {name: record[name] for name in ("epochs", "reached", "accuracy")}
            row |= record["numbers"]
            row["seconds"] = sum(record["seconds"].values())
        rows.append(row)
    return rows


def usable(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of networks that met the stop rule: others are at another loss.

    Args:
        rows: of ``rows_of``.

    Returns:
        Some of them.
    """
    return [row for row in rows if row["status"] == "done" and row["reached"]]


def effects(rows: Sequence[Row]) -> list[Effect]:
    """Return what each knob does from its first value to its last, paired by seed.

    Args:
        rows: of ``rows_of``.

    Returns:
        One a knob that has two values with usable rows.
    """
    good, found = usable(rows), []
    for knob in KNOBS:
        mine = [row for row in good if row["knob"] == knob]
        values = list(dict.fromkeys(row["value"] for row in mine))
        if len(values) < 2:
            continue
        ends = [{r["seed"]: r for r in mine if r["value"] == v} for v in (values[0], values[-1])]
        changes = {name: _change(name, ends[0], ends[1]) for name in FACTORS}
        found.append(Effect(knob, values[0], values[-1], changes))
    return found


def _change(name: str, first: Mapping[int, Row], last: Mapping[int, Row]) -> Change:
    both = [(first[s][name], last[s][name]) for s in first if s in last]
    logs = [math.log(b / a) for a, b in both if a is not None and b is not None and a * b > 0]
    if not logs:
        return Change(math.nan, math.inf, 0)
    mean, half = mean_ci95(logs)
    return Change(mean, math.inf if half is None else half, len(logs))


def rank_correlations(rows: Sequence[Row]) -> dict[str, float]:
    """Return Spearman's correlation of the gap with each of ``MEASURES`` over all networks.

    Networks that are a row of several knobs count once.

    Args:
        rows: of ``rows_of``.

    Returns:
        By measure; NaN for fewer than three networks.
    """
    names = ("gap", *MEASURES)
    known = [row for row in usable(rows) if all(row[name] is not None for name in names)]
    single = {tuple(row[name] for name in names): row for row in known}
    gaps = torch.tensor([row["gap"] for row in single.values()], dtype=torch.float64)
    found = {}
    for name in MEASURES:
        values = torch.tensor([row[name] for row in single.values()], dtype=torch.float64)
        ranks = rank_correlation(gaps, values, least=3)
        found[name] = math.nan if ranks is None else ranks
    return found


def effects_table(found: Sequence[Effect]) -> str:
    """Return the knobs' effects as Markdown.

    Args:
        found: the effects.

    Returns:
        Lines without a newline at the end.
    """
    header = ["knob", "from → to", "gap", "sharpness", "size", "correlation c", "gap moves through"]
    lines = [
        [
            effect.knob,
            f"{effect.first:g} → {effect.last:g}",
            *(str(effect.changes[name]) for name in FACTORS),
            effect.through,
        ]
        for effect in found
    ]
    return markdown_table(header, lines)


def correlations_table(rows: Sequence[Row]) -> str:
    """Return the rank correlations as Markdown.

    Args:
        rows: of ``rows_of``.

    Returns:
        Lines without a newline at the end.
    """
    found = rank_correlations(rows)
    lines = [
        [_SAID[name], "–" if math.isnan(value) else f"{value:.2f}"] for name, value in found.items()
    ]
    return markdown_table(["measure", "Spearman with the gap"], lines)


def facts_of(rows: Sequence[Row]) -> list[str]:
    """Return, in words, how far the decomposition's assumptions hold over all networks.

    Args:
        rows: of ``rows_of``.

    Returns:
        Sentences.
    """
    good = usable(rows)
    left = len(rows) - len(good)
    said = [f"{left} of {len(rows)} runs did not reach the loss and are left out."] if left else []
    if not good:
        return said

    def mean(name: str) -> float:
        values = [row[name] for row in good if row[name] is not None]
        return fmean(values) if values else math.nan

    apart = max(abs(row["gap"] - row["matched_gap"]) / max(abs(row["gap"]), 1e-12) for row in good)
    return [
        *said,
        f"True and matched gap differ by {100 * apart:.1f} % at most. The sum over directions is "
        "an identity and proves nothing.",
        f"The product of the means is {100 * mean('share_of_means'):.1f} % of the gap.",
        f"c is {mean('correlation'):.2f}, {mean('correlation_null'):.2f} where losses are dealt "
        "anew to the moves; between directions it scatters by "
        f"{mean('correlation_spread'):.2f}.",
        f"r is {mean('ratio'):.1f} over all directions together: pairs that move far pay more than "
        f"in proportion to |Δw|². Along the {SHARP} sharpest it is {mean('ratio_top'):.1f} (null "
        f"1 ± {mean('ratio_null'):.1f}); they carry {100 * mean('share_top'):.0f} % of the gap.",
        f"σ_g/σ_w follows the curvature with a rank correlation of "
        f"{mean('rank_correlation_curvature'):.2f}.",
        f"Gradient and curvature at the training sample miss {100 * mean('expansion_error'):.0f} % "
        "of the loss rise (root mean square): the secant is not a gradient.",
    ]
