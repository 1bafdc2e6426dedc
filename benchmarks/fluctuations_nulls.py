"""What noise without a force would show in Hessian eigenvectors, beside what SGD showed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.fluctuations_runs import column, load, load_points, spread
from flatcl.exact import reshuffled_variance, stationary_variance, windowed_variance
from flatcl.fluctuations import VarianceFlatness, noise_alone, over_noise
from flatcl.fluctuations.noise import SHARPEST
from flatcl.fluctuations.panel import relation
from flatcl.tables import markdown_table

_NAMES = ("SGD", "SGD with replacement")
EXPLAINED = """\
Variances along the ten sharpest eigenvectors of the Hessian over those that the minibatches'
noise, measured there, gives in this window with no force (`flatcl.exact.frozen_variance`) and
with the force of a parabola of the measured curvature (`reshuffled_variance`,
`windowed_variance`): geometric means over directions, then mean ± 95 % t-interval over seeds.
Beside them medians of σ²(T)/σ²(T/2), 1 where stationary, 2 for a walk, 4 for a drift. A window
holds few correlation times of a direction, so that single ratios scatter.
"""


@dataclass(frozen=True)
class _Window:
    """What one window showed in Hessian eigenvectors, and what its noise alone would show.

    Attributes:
        variances: σ² [k], w².
        alone: of the noise without a force [k], w².
        forced: of the noise and the force of a parabola, in the sharpest directions, w².
        stationarity: σ²(T)/σ²(T/2) [k].
    """

    variances: Tensor
    alone: Tensor
    forced: Tensor
    stationarity: Tensor


def relation_of(folder: Path) -> VarianceFlatness:
    """The panel of one run, with the closed null in Hessian eigenvectors."""
    run, points = load(folder), load_points(folder)
    found = VarianceFlatness.from_dict(run["relation"])
    own, twin = _windows(run, points)
    width, curvature = (column(points["hessian"][name]) for name in ("width", "curvature"))
    seed = run["config"]["seed"]
    row = relation("walk_hessian", own.alone, width, curvature, seed=seed)
    facts = {
        "over_noise": over_noise(own.variances, own.alone),
        "over_noise_replacement": over_noise(twin.variances, twin.alone),
        "stationarity_hessian": float(own.stationarity.nanmedian()),
    }
    return VarianceFlatness({**found.rows, row.name: row}, {**found.facts, **facts})


def sharpest(folders: Sequence[Path]) -> str:
    """Both windows in the ten sharpest directions beside noise alone and beside theory."""
    header = ["window", "σ² / noise without a force", "σ² / noise and force", "σ²(T)/σ²(T/2)"]
    header += ["… all directions"]
    pairs = [_windows(load(folder), load_points(folder)) for folder in folders]
    lines = []
    for name, windows in zip(_NAMES, zip(*pairs, strict=True), strict=True):
        shares = (
            [over_noise(one.variances, one.alone) for one in windows],
            [over_noise(one.variances, one.forced) for one in windows],
            [float(one.stationarity[:SHARPEST].median()) for one in windows],
            [float(one.stationarity.nanmedian()) for one in windows],
        )
        lines.append([name, *(spread(values) for values in shares)])
    return markdown_table(header, lines)


def _windows(run: dict[str, Any], points: dict[str, Any]) -> tuple[_Window, _Window]:
    """Return a run's window and its twin with replacement."""
    lr, T, M = run["config"]["lr"], run["n_snapshots"], run["epoch_steps"]
    c, h = (column(points["hessian"][name]) for name in ("noise", "curvature"))
    sharp = list(zip(h[:SHARPEST].tolist(), c[:SHARPEST].tolist(), strict=True))
    forced = {
        "hessian": [reshuffled_variance(h, c, lr=lr, batches=M) for h, c in sharp],
        "twin_hessian": [
            windowed_variance(stationary_variance(h, c, lr=lr), 1.0 - lr * h, T) for h, c in sharp
        ],
    }

    def window(name: str, batches: int | None) -> _Window:
        return _Window(
            column(points[name]["variances"]),
            noise_alone(c, lr=lr, steps=T, batches=batches),
            torch.tensor(forced[name], dtype=torch.float64),
            column(points[name]["stationarity"]),
        )

    return window("hessian", M), window("twin_hessian", None)
