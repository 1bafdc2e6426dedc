"""What noise without a force would show in Hessian eigenvectors, beside what SGD showed there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fluctuations_runs import column, load, load_points, spread
from flatcl.exact import reshuffled_variance, stationary_variance, windowed_variance
from flatcl.fluctuations import VarianceFlatness, noise_alone, over_noise
from flatcl.fluctuations.panel import SETTINGS, relation
from flatcl.tables import markdown_table

SHARPEST = """\
Variances along the ten sharpest eigenvectors of the Hessian over those that the minibatches'
noise, measured there, gives in this window with no force (`flatcl.exact.frozen_variance`) and
with the force of a parabola of the measured curvature (`reshuffled_variance`,
`windowed_variance`): geometric means over directions, then mean ± 95 % t-interval over seeds.
Beside them medians of σ²(T)/σ²(T/2), 1 where stationary, 2 for a walk, 4 for a drift. A window
holds few correlation times of a direction, so that single ratios scatter.
"""


def relation_of(folder: Path) -> VarianceFlatness:
    """The panel of one run, with the closed null in Hessian eigenvectors."""
    run, part = load(folder), _hessian(folder)
    found = VarianceFlatness.from_dict(run["relation"])
    alone = noise_alone(part["noise"], lr=run["config"]["lr"], steps=run["n_snapshots"])
    row = relation(
        "walk_hessian", alone, part["width"], part["curvature"], seed=run["config"]["seed"]
    )
    own, twin = _over_noise(folder)
    facts = {
        "over_noise": over_noise(*own),
        "over_noise_replacement": over_noise(*twin),
        "stationarity_hessian": float(part["stationarity"].nanmedian()),
    }
    rows = {**found.rows, row.name: row}
    return VarianceFlatness(
        {name: rows[name] for name in SETTINGS if name in rows}, {**found.facts, **facts}
    )


def sharpest(folders: Sequence[Path]) -> str:
    """Both windows in the ten sharpest directions beside noise alone and beside theory."""
    header = ["window", "σ² / noise without a force", "σ² / noise and force", "σ²(T)/σ²(T/2)"]
    header += ["… all directions"]
    lines = []
    for name, key in (("SGD", "hessian"), ("SGD with replacement", "twin_hessian")):
        shares: list[list[float]] = [[], [], [], []]
        for folder in folders:
            part, points = _hessian(folder), load_points(folder)
            variances, alone = _over_noise(folder)[key != "hessian"]
            ratios = torch.tensor(points[key]["stationarity"]).double()
            forced = _forced(folder, part, dealt=key == "hessian")
            shares[0].append(over_noise(variances, alone))
            shares[1].append(over_noise(variances, forced))
            shares[2].append(float(ratios[:10].median()))
            shares[3].append(float(ratios.nanmedian()))
        lines.append([name, *(spread(values) for values in shares)])
    return markdown_table(header, lines)


def _hessian(folder: Path) -> dict[str, Tensor]:
    names = ("noise", "width", "curvature", "variances", "stationarity")
    return {name: column(load_points(folder)["hessian"][name]) for name in names}


def _over_noise(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Variances of both windows in Hessian eigenvectors, and of their noise alone."""
    run, part = load(folder), _hessian(folder)
    twin = column(load_points(folder)["twin_hessian"]["variances"])
    lr, steps, M = run["config"]["lr"], run["n_snapshots"], run["epoch_steps"]
    dealt, drawn = (noise_alone(part["noise"], lr=lr, steps=steps, batches=b) for b in (M, None))
    return [(part["variances"], dealt), (twin, drawn)]


def _forced(folder: Path, part: dict[str, Tensor], *, dealt: bool) -> Tensor:
    """What SGD on a parabola would show in the ten sharpest directions."""
    run = load(folder)
    lr, T, M = run["config"]["lr"], run["n_snapshots"], run["epoch_steps"]

    def expected(h: float, c: float) -> float:
        if dealt:
            return reshuffled_variance(h, c, lr=lr, batches=M)
        return windowed_variance(stationary_variance(h, c, lr=lr), 1.0 - lr * h, T)

    pairs = zip(part["curvature"][:10].tolist(), part["noise"][:10].tolist(), strict=True)
    return torch.tensor([expected(h, c) for h, c in pairs], dtype=torch.float64)
