"""What a spectrum of variances says: its shares, its power law, its likeness to a random walk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.errors import DataError, OptionError


@dataclass(frozen=True)
class PowerLaw:
    """A least-squares fit of σ_i² ∝ i^(−γ) in logarithms, over a range fixed beforehand.

    Attributes:
        gamma: γ.
        standard_error: of γ, as if residuals were independent: a lower bound for eigenvalues.
        first: first rank in the fit, from 1.
        last: last rank in the fit.
        residual: root mean square of the residuals, in ln σ².
    """

    gamma: float
    standard_error: float
    first: int
    last: int
    residual: float


def participation_ratio(variances: Tensor) -> float:
    """Return (Σ σ²)² / Σ σ⁴, the number of directions that share the variance.

    Of the leading variances alone it is a lower bound, below their number.

    Args:
        variances: [k], w².

    Returns:
        1 for one direction, k for k equal ones.

    Raises:
        DataError: all are zero.
    """
    total = float(variances.double().sum())
    if total <= 0:
        raise DataError("all variances are 0: the trajectory does not move")
    return total**2 / float(variances.double().square().sum())


def variance_share(variances: Tensor, *, first: int, last: int, total: float) -> float:
    """Return the share of a range of ranks in the variance that begins with the first of them.

    Feng & Tu leave out the first direction, a drift, and give the share of ranks 2 to 35 in the
    rest: ``first=2, last=35``. Ranks that are not among the variances are an OptionError.

    Args:
        variances: [k], by falling size, w².
        first: first rank, from 1.
        last: last rank.
        total: the trajectory's whole variance, w².

    Returns:
        Σ_{first … last} σ² / (total − Σ_{i < first} σ²), between 0 and 1.
    """
    _ranks(variances, first, last)
    v = variances.double()
    return float(v[first - 1 : last].sum()) / (total - float(v[: first - 1].sum()))


def power_law(variances: Tensor, *, first: int, last: int) -> PowerLaw:
    """Return the exponent γ of σ_i² ∝ i^(−γ).

    A random walk has γ = 2 whatever the landscape: γ between 2 and 3 alone shows nothing.

    Args:
        variances: [k], by falling size, w².
        first: first rank of the fit, from 1; Feng & Tu take 20.
        last: last rank of the fit.

    Returns:
        The fit.

    Raises:
        OptionError: the ranks are fewer than three, or not among the variances.
        DataError: a variance in the range is not positive.
    """
    _ranks(variances, first, last)
    if last - first < 2:
        raise OptionError(f"ranks {first} to {last} are fewer than 3: a fit needs a wider range")
    y = variances[first - 1 : last].double()
    if bool((y <= 0).any()):
        raise DataError(f"a variance of ranks {first} to {last} is 0: end the range before it")
    x = torch.arange(first, last + 1, dtype=torch.float64).log()
    y = y.log().cpu()
    x = x - x.mean()
    slope = float((x * y).sum() / x.square().sum())
    residuals = y - y.mean() - slope * x
    squares = float(residuals.square().sum())
    error = math.sqrt(squares / (len(x) - 2) / float(x.square().sum()))
    return PowerLaw(-slope, error, first, last, math.sqrt(squares / len(x)))


def cosine_overlap(scores: Tensor) -> Tensor:
    """Return how far each principal component's score is the cosine of a random walk's.

    Component j of a walk follows cos(π j (t + ½) / T): a value above 0.7 flags a direction whose
    variance is the window's, not the landscape's. Source: Antognini & Sohl-Dickstein, NeurIPS 2018.

    Args:
        scores: θ_j(t) [T, k], components in the order of their rank.

    Returns:
        [k], absolute cosine similarity of each with its own cosine, 0 … 1.
    """
    T, k = scores.shape
    t = torch.arange(T, dtype=torch.float64) + 0.5
    j = torch.arange(1, k + 1, dtype=torch.float64)
    cosines = torch.cos(torch.pi * t[:, None] * j / T)
    theta = scores.double().cpu()
    dots: Tensor = (theta * cosines).sum(0).abs()
    sizes: Tensor = theta.norm(dim=0) * cosines.norm(dim=0)
    return dots / sizes.clamp_min(1e-300)


def _ranks(variances: Tensor, first: int, last: int) -> None:
    if not 1 <= first <= last <= len(variances):
        raise OptionError(
            f"ranks {first} to {last} of {len(variances)} variances: they must lie among 1 to "
            f"{len(variances)}; ask for more directions or narrow the range"
        )
