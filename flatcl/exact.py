"""Closed forms of SGD's fluctuations: what a measurement must give where the answer is known.

Conventions: η ``lr``, β momentum in the form v ← βv + g, w ← w − ηv; h Hessian eigenvalue, nats/w²;
c, C variance and covariance of the minibatch gradient, nats²/w²; a = 1 − ηh the memory of one
step; T window in steps. Sources: Mandt, Hoffman & Blei, JMLR 18 (2017); Liu, Ziyin & Ueda, ICML
2021, for discrete steps; Antognini & Sohl-Dickstein, NeurIPS 2018, for random walks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_lyapunov

from flatcl.errors import OptionError

Array = NDArray[np.float64]


def stationary_variance(h: float, c: float, *, lr: float, momentum: float = 0.0) -> float:
    """Return the stationary variance of SGD along one direction of a quadratic, in w².

    η c (1 + β) / (h (1 − β) (2 (1 + β) − η h)).

    Args:
        h: curvature, nats/w².
        c: variance of the minibatch gradient, nats²/w².
        lr: η.
        momentum: β.

    Returns:
        σ², in w².

    Raises:
        OptionError: there is no stationary state: h ≤ 0, or η h ≥ 2 (1 + β).
    """
    if h <= 0 or not 0 <= momentum < 1 or lr * h >= 2 * (1 + momentum):
        raise OptionError(
            f"h {h:g}, lr {lr:g}, momentum {momentum:g} have no stationary state: it needs "
            "0 < lr h < 2 (1 + momentum) and 0 ≤ momentum < 1"
        )
    return lr * c * (1 + momentum) / (h * (1 - momentum) * (2 * (1 + momentum) - lr * h))


def stationary_covariance(H: Array, C: Array, *, lr: float) -> Array:
    """Return the stationary covariance S of SGD on a quadratic, S = M S Mᵀ + η² C, M = I − ηH.

    Args:
        H: [d, d], Hessian, nats/w².
        C: [d, d], covariance of the minibatch gradient, nats²/w².
        lr: η.

    Returns:
        S [d, d], w².

    Raises:
        OptionError: an eigenvalue of H is not between 0 and 2/η.
    """
    eigenvalues = np.linalg.eigvalsh(H)
    if eigenvalues[0] <= 0 or lr * eigenvalues[-1] >= 2:
        raise OptionError(
            f"the Hessian's eigenvalues reach from {eigenvalues[0]:g} to {eigenvalues[-1]:g}; a "
            f"stationary state needs them between 0 and 2/lr = {2 / lr:g}"
        )
    S: Array = solve_discrete_lyapunov(np.eye(len(H)) - lr * H, lr**2 * C)
    return S


def increment_moment(variance: float, correlation: float) -> float:
    """Return E Δ² = 2σ² (1 − ρ₁), for any stationary series.

    Args:
        variance: σ², w².
        correlation: ρ₁, autocorrelation at one step.

    Returns:
        E Δ², w²/step.
    """
    return 2.0 * variance * (1.0 - correlation)


def integrated_time(a: float) -> float:
    """Return the integrated correlation time of an AR(1) series, (1 + a) / (1 − a).

    Args:
        a: autocorrelation at one step, −1 < a < 1.

    Returns:
        τ, steps.
    """
    return (1.0 + a) / (1.0 - a)


def efold_time(a: float) -> float:
    """Return the steps after which an AR(1) series' autocorrelation has fallen to 1/e, −1/ln a.

    Args:
        a: autocorrelation at one step, 0 < a < 1.

    Returns:
        τ, steps.
    """
    return -1.0 / math.log(a)


def windowed_variance(variance: float, a: float, window: int) -> float:
    """Return the expected variance about the mean of a window of an AR(1) series.

    σ² − V, V = (σ²/T) [(1 + a)/(1 − a) − 2a (1 − a^T) / (T (1 − a)²)] the variance of the mean:
    a window shorter than some τ sees too little of slow directions.

    Args:
        variance: σ² of the series, w².
        a: its autocorrelation at one step, −1 < a < 1.
        window: T, steps.

    Returns:
        E of the mean squared deviation from the window's mean, w².
    """
    T = window
    bracket = integrated_time(a) - 2.0 * a * (1.0 - a**T) / (T * (1.0 - a) ** 2)
    return variance * (1.0 - bracket / T)


def reshuffled_variance(h: float, c: float, *, lr: float, batches: int) -> float:
    """Return the stationary variance when each epoch deals the same M batches in a new order.

    σ² = η²c/(1 − a²) · {1 − 2a [(M − 1) − Ma + a^M] / [M (M − 1) (1 − a)²]}, averaged over the
    phase of the epoch: within an epoch the noise is anti-correlated, which quenches directions of
    h ≪ 3/(ηM). Source: autocorrelation of the noise by Kühn & Rosenow, arXiv:2306.05300.

    Args:
        h: curvature, nats/w².
        c: variance of the minibatch gradient, nats²/w².
        lr: η.
        batches: M ≥ 2, an epoch's.

    Returns:
        σ², w².
    """
    # The bracket is Σ_s w_s (1 − a^s), w_s = 2 (M − s) / (M (M − 1)) for s = 1 … M − 1, which
    # loses no digit where a is close to 1.
    M, s = batches, np.arange(1, batches)
    shares = 2.0 * (M - s) / (M * (M - 1))
    step = lr * h
    lost = -np.expm1(s * np.log1p(-step)) if step < 1 else 1.0 - (1.0 - step) ** s
    return stationary_variance(h, c, lr=lr) * float(shares @ lost)


def frozen_variance(c: float, *, lr: float, window: int, batches: int | None = None) -> float:
    """Return the variance that the noise alone gives in a window, no force answering it.

    About the window's own mean. Batches drawn independently make a walk, η²c (T² − 1)/(6T); M
    batches dealt anew each epoch sum to 0 over it and make a bridge, η²c (M + 1)/6 · (1 − M/2T) for
    whole epochs: the limits h → 0 of ``windowed_variance`` and of ``reshuffled_variance``.

    Args:
        c: variance of the minibatch gradient, nats²/w².
        lr: η.
        window: T ≥ 1, steps, from the beginning of an epoch.
        batches: M ≥ 2, an epoch's; None for batches drawn independently.

    Returns:
        E of the mean squared deviation from the window's mean, w².
    """
    T = window
    if batches is None:
        return lr**2 * c * (T**2 - 1) / (6.0 * T)
    M = batches
    epochs, rest = divmod(T, M)
    # After s of M batches a bridge has the variance s (M − s)/(M − 1), and the covariance of s ≤ t
    # is s (M − t)/(M − 1); epochs are independent.
    squares = epochs * M * (M + 1) / 6.0 + sum(s * (M - s) for s in range(rest + 1)) / (M - 1)
    sums = epochs * M**2 * (M + 1) / 12.0
    ordered = rest * (rest + 1) * (2 * rest + 1) / 6.0 - (rest * (rest + 1) / 2.0) ** 2 / M
    sums += ordered * M / (M - 1)
    return lr**2 * c * (squares - sums / T) / T


def langevin_variance(temperature: float, stiffness: float, dt: float) -> float:
    """Return the variance of x ← x − κ x dt + √(2 T dt) ξ, (T/κ) / (1 − κ dt / 2).

    Args:
        temperature: T.
        stiffness: κ.
        dt: step, κ dt < 2.

    Returns:
        The stationary variance; T/κ for small steps, the equilibrium sign of σ² against κ.
    """
    return temperature / stiffness / (1.0 - 0.5 * stiffness * dt)


def walk_spectrum(steps: int) -> Array:
    """Return PCA's eigenvalues for a random walk in many dimensions, of unit step variance.

    λ_j = 1 / (4 sin²(π j / 2T)) / T as variances over the window, j = 1 … T − 1; they sum to
    (T² − 1) / 6T, and the shares tend to 6/(πj)², whatever drives the walk.

    Args:
        steps: T, snapshots in the window.

    Returns:
        [T − 1], by falling size, in units of the walk's total variance per step.
    """
    j = np.arange(1, steps)
    return 1.0 / (4.0 * np.sin(np.pi * j / (2 * steps)) ** 2) / steps


def walk_score(j: int, steps: int) -> Array:
    """Return the j-th principal component's score of a random walk over time, a cosine.

    Args:
        j: 1 for the first.
        steps: T.

    Returns:
        [T], of unit norm: cos(π j (t + ½) / T), t = 0 … T − 1.
    """
    score = np.cos(np.pi * j * (np.arange(steps) + 0.5) / steps)
    unit: Array = score / np.linalg.norm(score)
    return unit


def marchenko_pastur_edges(q: float) -> tuple[float, float]:
    """Return the edges of the spectrum of a sample covariance of unit white noise.

    Args:
        q: dimensions over samples, 0 < q.

    Returns:
        (1 − √q)² and (1 + √q)²; for q > 1 the rest of the eigenvalues are 0.
    """
    return (1.0 - math.sqrt(q)) ** 2, (1.0 + math.sqrt(q)) ** 2


def marchenko_pastur_density(x: Array, q: float) -> Array:
    """Return the density √((λ₊ − x)(x − λ₋)) / (2π q x) of that spectrum.

    Args:
        x: [n], where it is wanted.
        q: dimensions over samples, 0 < q ≤ 1.

    Returns:
        [n]; 0 outside the edges.
    """
    low, high = marchenko_pastur_edges(q)
    inside = np.clip((high - x) * (x - low), 0.0, None)
    return np.sqrt(inside) / (2.0 * np.pi * q * np.where(x > 0, x, 1.0))


def flatness(loss: float, h: float, *, factor: float = math.e) -> float:
    """Return the width F at which L₀ + hθ²/2 reaches ``factor`` times L₀, both sides together.

    F = 2 √(2 (f − 1) L₀ / h). Source: Feng & Tu, PNAS 118 (2021), with f = e.

    Args:
        loss: L₀ > 0, nats.
        h: curvature > 0, nats/w².
        factor: f > 1.

    Returns:
        F, w.
    """
    return 2.0 * math.sqrt(2.0 * (factor - 1.0) * loss / h)


def null_exponent(g: float) -> float:
    """Return the slope of ln σ² against ln F for stationary SGD with c ∝ h^g and small η h.

    σ² ∝ c/h = h^(g−1) and F ∝ h^(−½), so the slope is −2 (g − 1): +2 in equilibrium (g = 0), 0 for
    g = 1, −2 for g = 2; ψ is minus this.

    Args:
        g: exponent of the noise against the curvature.

    Returns:
        d ln σ² / d ln F.
    """
    return -2.0 * (g - 1.0)
