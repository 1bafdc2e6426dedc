"""Memory of a fluctuation: autocorrelation, correlation times, effective samples, stationarity.

Series are displacements θ_i(t) [T, k] along k directions, one column each, evenly spaced; times are
in spacings. Three correlation times are in use in the literature and differ by design: *e-fold*,
where ρ falls to 1/e; *integrated*, Σ_s ρ(s), which sets errors of means; *variance ratio*,
σ²/⟨Δ²⟩ of values and their increments. Each function says which it gives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatcl.errors import DataError, OptionError
from flatcl.fluctuations.finite import refuse_not_finite

_SOKAL = 5.0  # the window of an integrated time ends after this many of its own times
_SNAPSHOTS = 1000  # in float64 at a time: the window may be mapped from a file
_ROUNDING = 1e-14  # of a series' mean
_LEAST = 1e-9  # an integrated time up to it is rounding, or of a noise that is larger than it
_TIMES = 50.0  # integrated times that a series must last for the estimate to be trusted


def autocorrelation(series: Tensor, *, lags: int | None = None) -> Tensor:
    """Return ρ_i(s) = ⟨θ_i(t) θ_i(t+s)⟩ / ⟨θ_i²⟩ about each series' mean.

    Each lag's mean is over the T pairs that a full window would have (the biased estimator, which
    keeps |ρ| ≤ 1); by FFT.

    Args:
        series: [T, k].
        lags: S, the largest lag; T − 1 if None.

    Returns:
        [S + 1, k], float64, 1 at lag 0.

    Raises:
        OptionError: lags is not between 0 and T − 1.
        DataError: a series does not vary.
    """
    x = _centred(series)
    T = len(x)
    S = T - 1 if lags is None else lags
    if not 0 <= S < T:
        raise OptionError(f"lags is {S}; a series of {T} has lags 0 to {T - 1}")
    n = 1 << (2 * T - 1).bit_length()
    power = torch.fft.rfft(x, n=n, dim=0).abs().square()
    covariance = torch.fft.irfft(power, n=n, dim=0)[: S + 1]
    still = (x.square().mean(0).sqrt() <= _still(series)).nonzero()
    if len(still):
        raise DataError(
            f"series {int(still[0])} does not vary: leave it out, it has no correlation time"
        )
    rho: Tensor = covariance / covariance[0]
    return rho


def efold_time(series: Tensor) -> Tensor:
    """Return the e-fold correlation time, the first lag where ρ falls below 1/e.

    About a window's own mean ρ always falls so far inside the window: a time that is no small part
    of T says that the window is too short, not what the time is.

    Args:
        series: [T, k].

    Returns:
        [k], in spacings, interpolated between lags.
    """
    rho = autocorrelation(series)
    first = (rho < 1.0 / math.e).to(torch.int8).argmax(0)
    after, before = rho.gather(0, first[None])[0], rho.gather(0, first[None] - 1)[0]
    return first - 1 + (before - 1.0 / math.e) / (before - after)


def integrated_time(series: Tensor, *, tolerance: float = _TIMES) -> Tensor:
    """Return the integrated correlation time 1 + 2 Σ_s ρ(s), with Sokal's automatic window.

    Args:
        series: [T, k].
        tolerance: how many of its times a series must last.

    Returns:
        [k], in spacings; (1 + a)/(1 − a) for an AR(1) series.

    Raises:
        DataError: a series is shorter than ``tolerance`` times its estimate; the message has both.
    """
    times = _integrated(autocorrelation(series))
    T = len(series)
    worst = float(times.max())
    if tolerance * worst > T:
        raise DataError(
            f"{T} snapshots for an integrated correlation time of about {worst:.3g}: an estimate "
            f"needs {tolerance:g} times as many; record longer, or leave slow directions out"
        )
    return times


def variance_ratio_time(series: Tensor) -> Tensor:
    """Return σ²/⟨Δ²⟩ of values and increments; 1 / (2 (1 − ρ₁)) where stationary.

    Args:
        series: [T, k].

    Returns:
        [k], in spacings; grows with the window for a random walk.

    Raises:
        DataError: a series does not vary.
    """
    x = _centred(series)
    moves = x.diff(dim=0).square().mean(0)
    if bool((moves.sqrt() <= _still(series)).any()):
        raise DataError("a series does not vary: leave it out, it has no correlation time")
    return x.square().mean(0) / moves


def effective_samples(series: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many independent snapshots a series is worth, for its mean and its variance.

    T/τ with τ the integrated time of ρ for the mean, and of ρ² for the variance (of a Gaussian
    series): T (1 − a)/(1 + a) and T (1 − a²)/(1 + a²) for AR(1).

    Args:
        series: [T, k].

    Returns:
        Two tensors [k].
    """
    rho = autocorrelation(series)
    T = len(series)
    return T / _integrated(rho), T / _integrated(rho.square())


def stationarity(series: Tensor) -> Tensor:
    """Return σ²(T) over the mean of the two half-windows' σ²(T/2), each about its own mean.

    Args:
        series: [T, k], T ≥ 4.

    Returns:
        [k]; near 1 where stationary, 2 for a random walk in the mean, 4 for a pure drift.

    Raises:
        DataError: the series is shorter than 4, or does not vary in its halves.
    """
    T = len(series)
    if T < 4:
        raise DataError(f"{T} snapshots: two halves with a variance each need at least 4")
    half = T // 2
    parts = [_centred(part).square().mean(0) for part in (series[:half], series[T - half :])]
    halves = (parts[0] + parts[1]) / 2.0
    if bool((halves.sqrt() <= _still(series)).any()):
        raise DataError("a series does not vary in its halves: leave it out")
    return _centred(series).square().mean(0) / halves


def whole_stationarity(snapshots: Tensor) -> float:
    """Return ``stationarity`` of the whole trajectory: of the sum of all weights' variances.

    It needs no basis. In principal directions of the same window, those of high rank go to and fro
    many times within it whatever moves the weights: a walk's are all near 1.

    Args:
        snapshots: [T, P], w, T ≥ 4; may be mapped from a file.

    Returns:
        Near 1 where stationary, 2 for a random walk in the mean, 4 for a pure drift.

    Raises:
        DataError: there are fewer than 4 snapshots, or the weights do not move in the halves.
    """
    T = len(snapshots)
    if T < 4:
        raise DataError(f"{T} snapshots: two halves with a variance each need at least 4")
    half = T // 2
    halves = (_spread(snapshots[:half]) + _spread(snapshots[T - half :])) / 2.0
    if halves <= 0:
        raise DataError("the weights do not move in the window's halves")
    return _spread(snapshots) / halves


def _spread(snapshots: Tensor) -> float:
    mean = snapshots.mean(0, dtype=torch.float64)
    parts = torch.split(snapshots, _SNAPSHOTS)
    return sum(float((part.double() - mean).square().sum()) for part in parts) / len(snapshots)


def mean_squared_displacement(series: Tensor, lags: Tensor) -> Tensor:
    """Return ⟨(θ_i(t + s) − θ_i(t))²⟩ over the window.

    Args:
        series: [T, k].
        lags: [n], whole numbers from 1 to T − 1.

    Returns:
        [n, k], w²; grows as s for a walk, as s² for a drift, and saturates at 2σ² where bound.

    Raises:
        OptionError: a lag is outside 1 to T − 1.
    """
    x, T = series.double(), len(series)
    if len(lags) == 0 or int(lags.min()) < 1 or int(lags.max()) >= T:
        raise OptionError(f"lags must lie between 1 and {T - 1} for {T} snapshots, got {lags}")
    return torch.stack([(x[s:] - x[:-s]).square().mean(0) for s in lags.tolist()])


def fluctuation_dissipation(
    weights: Tensor, gradients: Tensor, minibatch_squares: Tensor, *, lr: float
) -> float:
    """Return ⟨w·∇L⟩ / ((η/2) ⟨|g_B|²⟩), 1 in the stationary state of SGD.

    Exact for independent batches and plain SGD, whatever the landscape. Source: Yaida, ICLR 2019.
    With the minibatches' own gradients it is (|w_0|² − |w_T|²)/(η² Σ|g_B|²) + 1 by algebra: about
    the window's mean that is 1 for a walk too, about the window's first weights 0 for a walk and
    negative for a drift, so that only there 1 says something.

    Args:
        weights: [T, P], before each step, about any fixed point.
        gradients: [T, P], ∇L of the full loss there; the minibatch's own serves, with more noise.
        minibatch_squares: [T], |g_B|² of each step's minibatch gradient.
        lr: η.

    Returns:
        The ratio; below 1 while weights still grow, above 1 while they shrink.

    Raises:
        DataError: the minibatch gradients are all zero.
    """
    right = 0.5 * lr * float(minibatch_squares.double().mean())
    if right <= 0:
        raise DataError("the minibatch gradients are all 0: SGD does not move, nothing to compare")
    return float((weights.double() * gradients.double()).sum(1).mean()) / right


def _centred(series: Tensor) -> Tensor:
    if series.ndim != 2 or len(series) < 2:
        raise DataError(f"a series has shape {tuple(series.shape)}; it must be (T, k) with T ≥ 2")
    x = series.double()
    mean = x.mean(0)
    refuse_not_finite(mean, "series")
    return x - mean


def _still(series: Tensor) -> Tensor:
    """Return the spread [k] up to which a series is constant but for rounding."""
    return _ROUNDING * series.double().mean(0).abs()


def _integrated(rho: Tensor) -> Tensor:
    # Where ρ changes its sign, Σρ is small long before ρ is: the window lasts as long as ρ² asks.
    sums, squares = (2.0 * r.cumsum(0) - 1.0 for r in (rho, rho.square()))
    lags = torch.arange(len(rho), dtype=rho.dtype, device=rho.device)[:, None]
    closed = lags >= _SOKAL * torch.maximum(sums, squares)
    window = torch.where(closed.any(0), closed.to(torch.int8).argmax(0), len(rho) - 1)
    times = sums.gather(0, window[None])[0]
    if bool((times <= _LEAST).any()):
        raise DataError(
            f"{len(rho)} snapshots give an integrated correlation time of "
            f"{float(times.min()):.3g}, which cannot be: record longer"
        )
    return times
