"""How well stiffness read from gradient fluctuations ranks the flatness that is really there.

LDC holds a layer by a stiffness k for each eigendirection u vᵀ of its weights, and rests on k being
large where the valley is narrow. Here the valley is measured along those directions, at a point
(curvature h) and over finite distances (widths). A quadratic one of curvature k has F ∝ k^−½.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.layers import Part, Unit
from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations.flatness import Flatness, curvature, flatness
from flatcl.fluctuations.powerfit import PowerFit, power_fit
from flatcl.fluctuations.surface import LossSurface

_LEAST = 8  # directions: fewer have no rank correlation worth a number


@dataclass(frozen=True)
class Ranking:
    """A layer's stiffness beside its measured valley, along n of its eigendirections.

    Correlations are Spearman's, over the directions where both quantities are finite; None for
    fewer than eight of them, or where one does not vary.

    Attributes:
        ranks: [n], place among all of the layer's directions, 1 the stiffest.
        index: [n, 2], columns of U_out and U_in.
        stiffness: k [n], nats/w².
        curvature: h [n], pᵀHp, nats/w²; negative where the loss curves down.
        near: both sides' distances to where the loss is e times its central value, w.
        far: to where it is a given rise above its central value, w.
        law: F ∝ k^e, None for fewer than eight widths.
        with_curvature: correlation of k and h.
        with_width: of k and 1/F.
        with_threshold: of k and 1/``threshold_width``.
    """

    ranks: Tensor
    index: Tensor
    stiffness: Tensor
    curvature: Tensor
    near: Flatness
    far: Flatness
    law: PowerFit | None
    with_curvature: float | None
    with_width: float | None
    with_threshold: float | None

    @property
    def width(self) -> Tensor:
        """F [n], two-sided, w; NaN where a side is censored."""
        return self.near.width

    @property
    def censored(self) -> tuple[int, int]:
        """Directions in which a side does not reach e L₀, and the given rise."""
        return int(self.width.isnan().sum()), int(self.far.width.isnan().sum())

    def text(self) -> str:
        """Return the correlations and the law.

        Returns:
            One line.
        """
        known = (self.with_curvature, self.with_width, self.with_threshold)
        h, first, second = ("too few" if r is None else f"{r:.2f}" for r in known)
        return (
            f"{len(self.ranks)} directions; rank correlation of k with h {h}, with 1/F {first}, "
            f"with 1/width at +{self.far.target - self.far.loss:g} nats {second}; F ∝ k^e, "
            f"e = {'too few' if self.law is None else self.law.text()}; "
            f"{self.censored[0]} and {self.censored[1]} censored"
        )


def rank_correlation(x: Tensor, y: Tensor, *, least: int = _LEAST) -> float | None:
    """Return Spearman's correlation over the pairs where both are finite.

    Args:
        x: [n].
        y: [n], as many.
        least: pairs that a correlation is worth telling of.

    Returns:
        −1 to 1; None for fewer pairs, or where one does not vary.
    """
    good = x.isfinite() & y.isfinite()
    a, b = (t[good].detach().double().cpu().numpy() for t in (x, y))
    if len(a) < max(2, least) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)


def stiffness_ranking(
    stiffness: Tensor,
    basis: KroneckerBasis,
    surface: LossSurface,
    *,
    directions: int = 60,
    rise: float = 0.5,
    reach: float | None = None,
    tolerance: float = 1e-3,
) -> Ranking:
    """Return a layer's stiffness beside the loss that is measured along its eigendirections.

    The directions are chosen by falling stiffness, at places spread evenly in their logarithm over
    all out · in of them. Curvatures are taken in float64, widths in the surface's own arithmetic.

    Args:
        stiffness: k [out, in], of the layer's matrix view; a bias is its last column.
        basis: that k belongs to.
        surface: the loss, its block the layer's weight, and its bias if the view has one.
        directions: how many.
        rise: of the threshold above the central loss, nats.
        reach: how far to look for widths, w; as in ``flatness``.
        tolerance: relative, of the widths.

    Returns:
        Both sides of the comparison, and their correlations.

    Raises:
        OptionError: directions below 2, or a rise that is not above 0.
        DataError: block, basis and stiffness do not belong to one layer.
        NonFiniteError: a stiffness is not finite.
    """
    if directions < 2 or not 0 < rise < math.inf:
        raise OptionError(
            f"directions {directions}, rise {rise:g}: they must be 2 or more, above 0"
        )
    unit = _layer(surface)
    if unit is None:
        raise DataError(
            f"the surface's block is {', '.join(surface.shapes)}; it must be one layer's weight, "
            "and its bias if that is trained: pass parameters=[its names] to LossSurface"
        )
    view = unit.gather({name: torch.empty(shape) for name, shape in surface.shapes.items()}).shape
    sides = (len(basis.U_out), len(basis.U_in))
    if not tuple(stiffness.shape) == tuple(view) == sides:
        raise DataError(
            f"the block's matrix view has shape {tuple(view)}, the stiffness "
            f"{tuple(stiffness.shape)}, the basis {sides}: all three must agree"
        )
    if not bool(stiffness.isfinite().all()):
        raise NonFiniteError("a stiffness is not finite: measure it anew, on weights that are")
    order = stiffness.reshape(-1).argsort(descending=True, stable=True)
    places = _log_spaced(len(order), min(directions, len(order)))
    chosen = order[places.to(order.device)]
    rows, columns = chosen // stiffness.shape[1], chosen % stiffness.shape[1]
    pairs = zip(basis.U_out.T[rows], basis.U_in.T[columns], strict=True)
    lines = torch.stack([_flattened(surface, unit, torch.outer(u, v)) for u, v in pairs])
    near = flatness(surface, lines, reach=reach, tolerance=tolerance)
    level = near.loss + rise
    far = flatness(surface, lines, threshold=level, reach=reach, tolerance=tolerance)
    k = stiffness.reshape(-1)[chosen].double().cpu()
    h = curvature(surface.to(torch.float64), lines).cpu()
    return Ranking(
        ranks=places + 1,
        index=torch.stack([rows, columns], dim=1).cpu(),
        stiffness=k,
        curvature=h,
        near=near,
        far=far,
        law=power_fit(k, near.width),
        with_curvature=rank_correlation(k, h),
        with_width=rank_correlation(k, 1.0 / near.width),
        with_threshold=rank_correlation(k, 1.0 / far.width),
    )


def _log_spaced(total: int, number: int) -> Tensor:
    """Return places from 0 to total − 1, spread evenly in the logarithm, none twice."""
    spaced = np.floor(np.geomspace(1.0, total, number) + 0.5).astype(np.int64) - 1
    return torch.from_numpy(np.maximum(spaced, np.arange(number)))


def _layer(surface: LossSurface) -> Unit | None:
    """Return which of the block is a layer's weight, and which its bias; None for other blocks."""
    weights = [name for name, shape in surface.shapes.items() if len(shape) > 1]
    biases = [name for name, shape in surface.shapes.items() if len(shape) == 1]
    if len(weights) != 1 or len(biases) > 1 or len(surface.shapes) > 1 + len(biases):
        return None
    return Unit(weights[0], Part(weights[0]), Part(biases[0]) if biases else None, matrix=True)


def _flattened(surface: LossSurface, unit: Unit, view: Tensor) -> Tensor:
    """Return a matrix view [out, in (+1)] as a vector of the block, in the block's order."""
    parts = {name: view.new_zeros(surface.shapes[name]) for name in unit.names}
    unit.write_(parts, view)
    return surface.flatten(parts)
