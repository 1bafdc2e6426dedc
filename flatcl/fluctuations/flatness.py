"""Loss profiles along directions, and how wide the valley is there.

Source: Feng & Tu, PNAS 118 (2021): the flatness F of a direction is the distance between the two
points, one on each side, where the training loss is e times its value at the centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations.surface import LossSurface

_FIRST = 2.0**-12  # of the reach: the first step out
_GROWTH = 1.6  # of each further step, so that the first crossing is met, not a later one
_SHRINKS = 40
_ROUNDS = 60
_SECANTS = 20  # of the rounds; the others bisect, which no jump of the loss slows down
_UNIT = 1e-3  # how far a direction's norm may be from 1


@dataclass(frozen=True)
class Flatness:
    """Widths of the valley along k directions.

    A side that does not reach the target within ``reach`` is censored: its distance is NaN, never
    the reach.

    Attributes:
        left: [k], distance to the first crossing at negative displacements, w; NaN if censored.
        right: [k], at positive ones.
        censored: [k, 2], left and right.
        monotone: [k, 2], True where the loss rose at every point that was looked at on the way.
        loss: L₀ at the centre, nats.
        loss_error: its standard error as a sample of more data, nats.
        target: loss at the crossings, nats.
        reach: how far was looked, w.
    """

    left: Tensor
    right: Tensor
    censored: Tensor
    monotone: Tensor
    loss: float
    loss_error: float
    target: float
    reach: float

    @property
    def width(self) -> Tensor:
        """F [k], both sides together, w; NaN where a side is censored."""
        return self.left + self.right


def profile(
    surface: LossSurface, directions: Tensor, offsets: Tensor, *, centre: Tensor | None = None
) -> Tensor:
    """Return the loss along lines through the centre.

    Args:
        surface: the loss.
        directions: [k, P], of unit norm.
        offsets: [n], displacements, w.
        centre: [P], w; the model's weights if None.

    Returns:
        [k, n], float64, nats.
    """
    directions, centre = _lines(surface, directions, centre)
    points = centre + offsets.to(centre)[None, :, None] * directions[:, None]
    return surface.losses(points.reshape(-1, surface.size)).reshape(len(directions), len(offsets))


def curvature(surface: LossSurface, directions: Tensor, *, centre: Tensor | None = None) -> Tensor:
    """Return pᵀHp, the Hessian's quadratic form in each direction.

    Args:
        surface: the loss.
        directions: [k, P], of unit norm.
        centre: [P], w; the model's weights if None.

    Returns:
        [k], float64, nats/w²; negative where the loss curves down.
    """
    directions, centre = _lines(surface, directions, centre)
    products = surface.hessian_products(centre, directions)
    return (products * directions.double()).sum(1)


def flatness(
    surface: LossSurface,
    directions: Tensor,
    *,
    centre: Tensor | None = None,
    factor: float = math.e,
    threshold: float | None = None,
    reach: float | None = None,
    tolerance: float = 1e-3,
) -> Flatness:
    """Return the two-sided width at which the loss reaches ``factor`` times its central value.

    On each side the displacement grows from a small step until the loss is above the target, and
    the crossing is closed in by the Illinois variant of regula falsi on ln L, to a relative
    tolerance; all directions together, on the same data. The published code bisects to an absolute
    tolerance and returns the reach where it finds no crossing; here that side is censored.

    Args:
        surface: the loss.
        directions: [k, P], of unit norm.
        centre: [P], w; the model's weights if None.
        factor: of the loss; e in the source.
        threshold: absolute loss in its place, nats.
        reach: how far to look, w; ten times the centre's norm if None.
        tolerance: relative, of each side's distance.

    Returns:
        Both sides' distances.

    Raises:
        OptionError: factor ≤ 1, tolerance outside 0 to 1, reach not between 0 and ∞, or a threshold
            that is not above 0 and the central loss.
        DataError: the central loss is 0, so that no factor of it means anything.
        NonFiniteError: the central loss is not finite.
    """
    directions, centre = _lines(surface, directions, centre)
    loss, error = surface.loss_with_error(centre)
    if not math.isfinite(loss):
        raise NonFiniteError(f"the loss at the centre is {loss}: choose another centre")
    reach = 10.0 * float(centre.norm()) if reach is None else reach
    if not factor > 1 or not 0 < tolerance < 1 or not 0 < reach < math.inf:
        raise OptionError(
            f"factor {factor:g}, tolerance {tolerance:g}, reach {reach:g}: they need factor > 1, "
            "0 < tolerance < 1, reach > 0 and finite"
        )
    if threshold is None and loss <= 0:
        raise DataError(
            f"the loss at the centre is {loss:g}, and so is any factor of it: use float64, or "
            "give a threshold"
        )
    target = factor * loss if threshold is None else threshold
    if not target > max(loss, 0.0):
        raise OptionError(
            f"threshold {target:g} is not above 0 and the loss at the centre, {loss:g}"
        )
    k = len(directions)
    rays = torch.cat([-directions, directions])
    distance, monotone = _crossings(surface, centre, rays, loss, target, reach, tolerance)
    left, right = distance[:k], distance[k:]
    censored = torch.stack([left.isnan(), right.isnan()], dim=1)
    return Flatness(
        left, right, censored, monotone.reshape(2, k).T.contiguous(), loss, error, target, reach
    )


def _crossings(
    surface: LossSurface,
    centre: Tensor,
    rays: Tensor,
    loss: float,
    target: float,
    reach: float,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Return the first crossing on each ray, NaN where there is none, and whether losses rose."""
    tiny = torch.finfo(torch.float64).tiny

    def height(rows: Tensor, at: Tensor) -> Tensor:
        # ln L − ln target, +∞ where the loss is not finite.
        # As many points as are evaluated together: all rays at once would hold 2 k P numbers.
        parts = zip(torch.split(rows, surface.rows), torch.split(at, surface.rows), strict=True)
        found = torch.cat(
            [surface.losses(centre + a.to(centre)[:, None] * rays[i]) for i, a in parts]
        )
        found = found.nan_to_num(nan=math.inf, posinf=math.inf).clamp_min(tiny)
        return found.log() - math.log(target)

    n = len(rays)
    start = math.log(max(loss, tiny)) - math.log(target)
    low, low_height = torch.zeros(n).double(), torch.full((n,), start).double()
    high, high_height = torch.full((n,), reach * _FIRST).double(), torch.zeros(n).double()
    monotone, censored = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    rows = torch.arange(n)
    for _ in range(_SHRINKS):  # a first step that is beyond the crossing already
        value = height(rows, high[rows]).cpu()
        high_height[rows] = value
        rows = rows[value > 0]
        if len(rows) == 0:
            break
        high[rows] /= 8.0
    # A ray whose step was shrunk may cross between the last two steps: growth finds it again.
    rows = torch.arange(n)
    while len(rows):
        value = high_height[rows]
        monotone[rows] &= value >= low_height[rows]
        rows = rows[value < 0]
        beyond = high[rows] >= reach
        censored[rows[beyond]] = True
        rows = rows[~beyond]
        low[rows], low_height[rows] = high[rows], high_height[rows]
        high[rows] = (high[rows] * _GROWTH).clamp_max(reach)
        if len(rows):
            high_height[rows] = height(rows, high[rows]).cpu()
    rows = (~censored).nonzero()[:, 0]
    side = torch.zeros(n)  # which end moved last, for Illinois' halving
    for turn in range(_ROUNDS):
        rows = rows[(high[rows] - low[rows]) > tolerance * high[rows]]
        if len(rows) == 0:
            break
        a, b, fa, fb = low[rows], high[rows], low_height[rows], high_height[rows]
        secant = (a * fb - b * fa) / (fb - fa)
        # Never nearer to an end than the tolerance: the last round then closes the bracket.
        edge = 0.4 * tolerance * b
        inside = secant.isfinite() & (secant > a) & (secant < b) & (turn < _SECANTS)
        at = torch.where(inside, secant.clamp(a + edge, b - edge), 0.5 * (a + b))
        value = height(rows, at).cpu()
        up = value >= 0
        high_height[rows] = torch.where(up, value, torch.where(side[rows] < 0, fb / 2, fb))
        low_height[rows] = torch.where(up, torch.where(side[rows] > 0, fa / 2, fa), value)
        high[rows], low[rows] = torch.where(up, at, b), torch.where(up, a, at)
        side[rows] = torch.where(up, 1.0, -1.0)
    distance = 0.5 * (low + high)
    distance[censored] = math.nan
    return distance, monotone


def _lines(
    surface: LossSurface, directions: Tensor, centre: Tensor | None
) -> tuple[Tensor, Tensor]:
    centre = surface.reference if centre is None else centre.to(surface.reference)
    directions = directions.to(surface.reference)
    if directions.ndim != 2 or directions.shape[1] != surface.size or len(directions) == 0:
        raise DataError(
            f"directions have shape {tuple(directions.shape)}; this block needs (k, {surface.size})"
        )
    off = float((directions.norm(dim=1) - 1.0).abs().max())
    if not off < _UNIT:
        raise OptionError(
            f"a direction's norm is {off:.2g} away from 1: distances along it would not be in "
            "units of the weights; normalise it"
        )
    return directions, centre
