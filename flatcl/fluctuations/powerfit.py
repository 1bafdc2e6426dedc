"""Power laws between two measured quantities, fitted in logarithms, with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from flatcl.errors import DataError

Array = NDArray[np.float64]

_DRAWS = 2000
_LEAST = 8  # directions: fewer give no exponent worth an interval
_LEVEL = 0.05


@dataclass(frozen=True)
class PowerFit:
    """y ∝ x^exponent, fitted in logarithms over directions.

    Attributes:
        exponent: ordinary least squares of ln y on ln x.
        low: lower end of the 95 % bootstrap interval over directions.
        high: upper end.
        inverse: 1 / slope of ln x on ln y, where the error is all in x.
        orthogonal: slope of the principal axis of (ln x, ln y), equal errors.
        theil_sen: median of the pairs' slopes.
        spearman: rank correlation.
        p_value: share of permuted pairings with a slope as steep, two-sided.
        n: directions in the fit.
        decades: of x that they span.
    """

    exponent: float
    low: float
    high: float
    inverse: float
    orthogonal: float
    theil_sen: float
    spearman: float
    p_value: float
    n: int
    decades: float

    def text(self, sign: float = 1.0) -> str:
        """Return ``exponent [low, high]``.

        Args:
            sign: −1 for an exponent defined with a minus, as ψ.

        Returns:
            Two decimals each.
        """
        low, high = sorted((sign * self.low, sign * self.high))
        return f"{sign * self.exponent:.2f} [{low:.2f}, {high:.2f}]"


def power_fit(x: Tensor, y: Tensor, *, draws: int = _DRAWS, seed: int = 0) -> PowerFit | None:
    """Return the exponent of y ∝ x^e with its interval, or None where there is too little.

    Pairs with a value that is not finite and positive are left out (censored widths are NaN).

    Args:
        x: [k].
        y: [k].
        draws: bootstrap resamples of directions, and permutations.
        seed: of both.

    Returns:
        The fit; None for fewer than eight pairs, or where x or y does not vary.

    Raises:
        DataError: x and y differ in length.
    """
    if x.shape != y.shape:
        raise DataError(f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}; a fit needs pairs")
    a, b = (np.asarray(t.detach().double().cpu()) for t in (x, y))
    good = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
    u, v = np.log(a[good]), np.log(b[good])
    if len(u) < _LEAST or np.ptp(u) == 0 or np.ptp(v) == 0:
        return None
    rng = np.random.default_rng(seed)
    slope = float(_slopes(u[None], v[None])[0])
    chosen = rng.integers(len(u), size=(draws, len(u)))
    resampled = _slopes(u[chosen], v[chosen])
    low, high = np.nanquantile(resampled, [_LEVEL / 2, 1 - _LEVEL / 2])
    permuted = _slopes(u[None], rng.permuted(np.tile(v, (draws, 1)), axis=1))
    steeper = int((np.abs(permuted) >= abs(slope)).sum())
    inverse = float(_slopes(v[None], u[None])[0])
    axis = np.linalg.eigh(np.cov(u, v))[1][:, -1]
    return PowerFit(
        exponent=slope,
        low=float(low),
        high=float(high),
        inverse=1.0 / inverse if inverse else math.inf,
        orthogonal=float(axis[1] / axis[0]) if axis[0] else math.inf,
        theil_sen=float(stats.theilslopes(v, u).slope),
        spearman=float(stats.spearmanr(u, v).statistic),
        p_value=(1 + steeper) / (1 + draws),
        n=len(u),
        decades=float(np.ptp(u) / math.log(10.0)),
    )


def _slopes(u: Array, v: Array) -> Array:
    u = u - u.mean(1, keepdims=True)
    v = v - v.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample of one direction alone: NaN
        found: Array = (u * v).sum(1) / np.square(u).sum(1)
    return found
