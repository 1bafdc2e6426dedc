"""Everything that is measured along given directions: displacement, memory, flatness, curvature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatcl.fluctuations.correlation import efold_time, stationarity
from flatcl.fluctuations.finite import refuse_not_finite
from flatcl.fluctuations.flatness import curvature, flatness
from flatcl.fluctuations.surface import LossSurface

_SNAPSHOTS = 1000  # projected together: the window may be mapped from a file
_STILL = 1e-14  # of |⟨w⟩|: a spread up to it is rounding, as of the weights of a dead unit

Part = dict[str, Tensor]
"""Arrays that belong together, by name."""


def displacements(snapshots: Tensor, directions: Tensor) -> Tensor:
    """Return θ_i(t), the window's displacements from its mean along each direction.

    A snapshot that is not finite is a NonFiniteError.

    Args:
        snapshots: [T, P], w.
        directions: [k, P], of unit norm.

    Returns:
        [T, k], float64, w.
    """
    mean = snapshots.mean(0, dtype=torch.float64)
    refuse_not_finite(mean)
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
        ``stationarity`` [k], σ²(T) over σ²(T/2); where nothing moves the variance is 0 and these
        two are NaN; ``left``, ``right``, ``width`` F [k], w, NaN where
        censored; ``monotone`` [k, 2]; ``curvature`` h [k], nats/w²; ``loss`` [2], L₀ and its
        standard error, nats.
    """
    rows = directions / directions.norm(dim=1, keepdim=True)
    theta = displacements(snapshots, rows)
    valley = flatness(surface, rows)
    variances = theta.var(0, unbiased=False)
    moving = variances.sqrt() > _STILL * float(snapshots.mean(0, dtype=torch.float64).norm())
    return {
        "directions": rows,
        "variances": torch.where(moving, variances, 0.0),
        "tau": _where(moving, efold_time, theta),
        "stationarity": _where(moving, stationarity, theta),
        "left": valley.left,
        "right": valley.right,
        "width": valley.width,
        "monotone": valley.monotone,
        "curvature": curvature(surface, rows),
        "loss": torch.tensor([valley.loss, valley.loss_error], dtype=torch.float64),
    }


def _where(moving: Tensor, measure: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Return a measure of each series that moves, NaN of the others, which have none."""
    found = torch.full_like(theta[0], torch.nan)
    if bool(moving.any()):
        found[moving] = measure(theta[:, moving])
    return found
