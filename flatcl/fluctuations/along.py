"""Everything that is measured along given directions: displacement, memory, flatness, curvature."""

from __future__ import annotations

import torch
from torch import Tensor

from flatcl.fluctuations.correlation import efold_time, stationarity
from flatcl.fluctuations.flatness import curvature, flatness
from flatcl.fluctuations.surface import LossSurface

_SNAPSHOTS = 1000  # projected together: the window may be mapped from a file

Part = dict[str, Tensor]
"""Arrays that belong together, by name."""


def displacements(snapshots: Tensor, directions: Tensor) -> Tensor:
    """Return θ_i(t), the window's displacements from its mean along each direction.

    Args:
        snapshots: [T, P], w.
        directions: [k, P], of unit norm.

    Returns:
        [T, k], float64, w.
    """
    mean = snapshots.mean(0, dtype=torch.float64)
    rows = directions.double().T
    parts = [(part.double() - mean) @ rows for part in torch.split(snapshots, _SNAPSHOTS)]
    return torch.cat(parts)


def along(snapshots: Tensor, directions: Tensor, surface: LossSurface) -> Part:
    """Return what a window and the loss around its mean show along each direction.

    Args:
        snapshots: [T, P], w.
        directions: [k, P], of unit norm up to rounding; normalised here.
        surface: the loss, its reference the window's mean.

    Returns:
        ``directions`` [k, P]; ``variances`` σ² [k], w²; ``tau`` e-fold times [k], spacings;
        ``stationarity`` [k], σ²(T) over σ²(T/2); ``left``, ``right``, ``width`` F [k], w, NaN where
        censored; ``monotone`` [k, 2]; ``curvature`` h [k], nats/w²; ``loss`` [2], L₀ and its
        standard error, nats.
    """
    rows = directions / directions.norm(dim=1, keepdim=True)
    theta = displacements(snapshots, rows)
    valley = flatness(surface, rows)
    return {
        "directions": rows,
        "variances": theta.var(0, unbiased=False),
        "tau": efold_time(theta),
        "stationarity": stationarity(theta),
        "left": valley.left,
        "right": valley.right,
        "width": valley.width,
        "monotone": valley.monotone,
        "curvature": curvature(surface, rows),
        "loss": torch.tensor([valley.loss, valley.loss_error], dtype=torch.float64),
    }
