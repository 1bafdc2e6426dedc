"""What a study of knobs says: how far each moves the gap and its factors, and what goes with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from flatcl.fluctuations.ranking import rank_correlation
from flatcl.generalize_effects import FACTORS, Effect, Level, Row, usable
from flatcl.generalize_runs import SHARP
from flatcl.tables import markdown_table

MEASURES = ("sharpness", "size", "correlation", "product", "weight_norm", "trace", "margin")
_SAID = {
    "sharpness": "sharpness alone",
    "size": "size alone",
    "correlation": "c alone",
    "product": "Σ sharpness × size",
    "weight_norm": "weight norm",
    "trace": "trace of the Hessian",
    "margin": "margin",
}


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


def networks(rows: Sequence[Row]) -> list[Row]:
    """Return a row of each network that met the stop rule, though it may be one of several knobs.

    Args:
        rows: of ``rows_of``.

    Returns:
        Some of them.
    """
    single = {tuple(row[name] for name in ("seed", "gap", *MEASURES)): row for row in usable(rows)}
    return list(single.values())


def rank_correlations(rows: Sequence[Row]) -> dict[str, float]:
    """Return Spearman's correlation of the gap with each of ``MEASURES`` over all networks.

    Networks that are a row of several knobs count once; a measure is held against the gap where it
    is known.

    Args:
        rows: of ``rows_of``.

    Returns:
        By measure; NaN for fewer than three networks.
    """
    found = {}
    for name in MEASURES:
        known = [row for row in networks(rows) if row[name] is not None]
        gaps, values = (
            torch.tensor([row[key] for row in known], dtype=torch.float64) for key in ("gap", name)
        )
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
    header = ["knob", "from → to", "gap", "sharpness", "size", "correlation c"]
    header += ["gap moves through", "monotone"]
    lines = [
        [
            effect.knob,
            f"{effect.first:g} → {effect.last:g}",
            *(str(effect.changes[name]) for name in FACTORS),
            effect.through,
            "yes" if effect.monotone else "no",
        ]
        for effect in found
    ]
    return markdown_table(header, lines)


def levels_table(found: Sequence[Level]) -> str:
    """Return what was found at every value of every knob as Markdown.

    Args:
        found: the knobs' values.

    Returns:
        Lines without a newline at the end.
    """
    header = ["knob", "value", "networks", "epochs", "sharpness", "size", "correlation c", "gap"]
    header += ["against the value before"]
    lines = [
        [
            one.knob,
            f"{one.value:g}",
            str(one.networks),
            f"{one.means['epochs']:.0f}",
            *(_told(one.means[name]) for name in (*FACTORS[1:], "gap")),
            "–" if one.step is None else str(one.step),
        ]
        for one in found
    ]
    return markdown_table(header, lines)


def correlations_table(rows: Sequence[Row]) -> str:
    """Return the rank correlations as Markdown.

    Args:
        rows: of ``rows_of``.

    Returns:
        Lines without a newline at the end.
    """
    every = networks(rows)
    lines = [
        [_SAID[name], str(sum(row[name] is not None for row in every)), _told(value)]
        for name, value in rank_correlations(rows).items()
    ]
    return markdown_table(["measure", "networks", "Spearman with the gap"], lines)


def _told(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def facts_of(rows: Sequence[Row]) -> list[str]:
    """Return, in words, how far the decomposition's assumptions hold over all networks.

    Args:
        rows: of ``rows_of``.

    Returns:
        Sentences.
    """
    good = networks(rows)
    left = len(rows) - len(usable(rows))
    said = [f"{left} of {len(rows)} runs did not reach the loss and are left out."] if left else []
    if not good:
        return said

    def mean(name: str) -> float:
        values = [row[name] for row in good if row[name] is not None]
        return fmean(values) if values else math.nan

    def extent(name: str) -> str:
        values = [row[name] for row in good if row[name] is not None]
        return f"from {min(values):.2f} to {max(values):.2f}" if values else "unknown"

    apart = max(abs(row["gap"] - row["matched_gap"]) / max(abs(row["gap"]), 1e-12) for row in good)
    return [
        *said,
        f"True and matched gap differ by {100 * apart:.1f} % at most. The sum over directions is "
        "an identity and proves nothing.",
        f"The product of the means is {100 * mean('share_of_means'):.1f} % of the gap.",
        f"c is {mean('correlation'):.2f} on average, over networks {extent('correlation')}. Where "
        f"s = Δℓ/|Δw|² is dealt anew to the moves (the null) it is {mean('correlation_null'):.2f}. "
        f"Between a network's directions c scatters by {mean('correlation_spread'):.2f}; in the "
        "null it is the same for all.",
        f"r is {mean('ratio'):.1f} over all directions together: pairs that move far pay more than "
        f"in proportion to |Δw|². Along the {SHARP} sharpest it is {mean('ratio_top'):.1f} (null "
        f"1 ± {mean('ratio_null'):.1f}); they carry {100 * mean('share_top'):.0f} % of the gap.",
        f"σ_g/σ_w follows the curvature with a rank correlation of "
        f"{mean('rank_correlation_curvature'):.2f}.",
        f"Gradient and curvature at the training sample miss {100 * mean('expansion_error'):.0f} % "
        "of the loss rise (root mean square): the secant is not a gradient.",
    ]
