"""Known answers 3 to 5: memory of series whose memory is known."""

from __future__ import annotations

import math

import pytest
import torch

from flatcl import exact
from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations import (
    autocorrelation,
    effective_samples,
    efold_time,
    fluctuation_dissipation,
    integrated_time,
    mean_squared_displacement,
    stationarity,
    variance_ratio_time,
    whole_stationarity,
)


def ar1(a, T, k=1, seed=0):
    """Stationary series of variance 1, k of them, with memory a."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(T, k, generator=g, dtype=torch.float64) * math.sqrt(1 - a * a)
    x = torch.empty_like(noise)
    x[0] = noise[0] / math.sqrt(1 - a * a)
    for t in range(1, T):
        x[t] = a * x[t - 1] + noise[t]
    return x


LONG = ar1(0.9, 40_000, 5)
WALK = ar1(0.0, 2000, 50).cumsum(0)


def test_autocorrelation_is_the_sum_of_products():
    x = ar1(0.5, 50, 3)
    d = x - x.mean(0)
    expected = torch.stack([(d[: 50 - s] * d[s:]).sum(0) for s in range(50)]) / d.square().sum(0)
    torch.testing.assert_close(autocorrelation(x), expected, rtol=1e-10, atol=1e-12)
    assert autocorrelation(x, lags=7).shape == (8, 3)


def test_ar1_has_the_memory_it_was_given():
    rho = autocorrelation(LONG, lags=10)
    powers = 0.9 ** torch.arange(11, dtype=torch.float64)
    torch.testing.assert_close(rho.mean(1), powers, rtol=0.0, atol=0.03)
    assert float(integrated_time(LONG).mean()) == pytest.approx(19.0, rel=0.1)
    assert float(efold_time(LONG).mean()) == pytest.approx(exact.efold_time(0.9), rel=0.05)
    assert float(variance_ratio_time(LONG).mean()) == pytest.approx(1 / (2 * 0.1), rel=0.05)
    increments = float(LONG.diff(dim=0).square().mean())
    assert increments == pytest.approx(exact.increment_moment(1.0, 0.9), rel=0.02)


def test_effective_samples_of_ar1():
    means, variances = effective_samples(LONG)
    assert float(means.mean()) == pytest.approx(40_000 * 0.1 / 1.9, rel=0.1)
    assert float(variances.mean()) == pytest.approx(40_000 * 0.19 / 1.81, rel=0.1)


def test_a_series_too_short_for_its_time_is_refused_with_the_estimate():
    with pytest.raises(DataError, match=r"100 snapshots for an integrated .* about \d"):
        integrated_time(ar1(0.9, 100))
    assert float(integrated_time(ar1(0.9, 100), tolerance=0.0)) > 1


def test_a_window_shortens_what_it_sees():
    T, a = 100, 0.95
    x = ar1(a, T, 4000)
    seen = float((x - x.mean(0)).square().mean())
    assert seen == pytest.approx(exact.windowed_variance(1.0, a, T), rel=0.03)
    assert float(efold_time(x).median()) < exact.efold_time(a)


def test_stationarity_tells_a_walk_from_a_bound_fluctuation():
    assert float(stationarity(LONG).mean()) == pytest.approx(1.0, abs=0.02)
    assert float(stationarity(WALK).mean()) == pytest.approx(2.0, rel=0.2)
    drift = torch.arange(100, dtype=torch.float64)[:, None]
    assert float(stationarity(drift)) == pytest.approx(4.0, rel=1e-2)


def test_a_walk_never_forgets_and_a_drift_is_ballistic():
    lags = torch.tensor([1, 4, 16])
    walk = mean_squared_displacement(WALK, lags).mean(1)
    torch.testing.assert_close(walk, lags.double(), rtol=0.1, atol=0.0)
    drift = torch.arange(100, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        mean_squared_displacement(drift, lags)[:, 0], lags.double().square(), rtol=1e-12, atol=0.0
    )
    bound = mean_squared_displacement(LONG, torch.tensor([200])).mean()
    assert float(bound) == pytest.approx(2.0, rel=0.1)
    assert 0.2 < float(efold_time(drift)) / 100 < 0.4  # the window's time, not the drift's


def test_stationary_sgd_obeys_fluctuation_dissipation():
    g = torch.Generator().manual_seed(0)
    h, lr, T = torch.tensor([0.5, 3.0], dtype=torch.float64).repeat(100), 0.1, 4000
    w, kept, squares = torch.zeros(200, dtype=torch.float64), [], []
    for t in range(T + 500):
        noisy = h * w + torch.randn(200, generator=g, dtype=torch.float64)
        if t >= 500:
            kept.append(w)
            squares.append(noisy.square().sum())
        w = w - lr * noisy
    weights, full = torch.stack(kept), torch.stack(kept) * h
    ratio = fluctuation_dissipation(weights, full, torch.stack(squares), lr=lr)
    assert ratio == pytest.approx(1.0, abs=0.02)
    halved = fluctuation_dissipation(weights, full, torch.stack(squares), lr=2 * lr)
    assert halved == pytest.approx(ratio / 2)


def test_series_without_an_answer_are_refused():
    with pytest.raises(DataError, match="series 1 does not vary"):
        autocorrelation(torch.stack([torch.arange(9.0), torch.ones(9)], 1))
    with pytest.raises(OptionError, match="lags is 9; a series of 9"):
        autocorrelation(ar1(0.1, 9), lags=9)
    with pytest.raises(DataError, match=r"shape \(9,\)"):
        efold_time(torch.arange(9.0))
    with pytest.raises(DataError, match="at least 4"):
        stationarity(ar1(0.1, 3))
    with pytest.raises(OptionError, match="between 1 and 8"):
        mean_squared_displacement(ar1(0.1, 9), torch.tensor([9]))
    zero = torch.zeros(3, 2)
    with pytest.raises(DataError, match="all 0"):
        fluctuation_dissipation(zero, zero, zero[:, 0], lr=0.1)


@pytest.mark.parametrize("a", [-0.5, -0.9])
def test_a_series_that_goes_to_and_fro_has_a_time_below_one(a):
    x = ar1(a, 40_000, 3)
    assert float(integrated_time(x).mean()) == pytest.approx(exact.integrated_time(a), abs=0.03)
    means, variances = effective_samples(ar1(-0.5, 40_000, 3))
    assert float(means.mean()) == pytest.approx(120_000, rel=0.1)
    assert float(variances.mean()) == pytest.approx(40_000 * 0.75 / 1.25, rel=0.1)


def test_a_time_that_cannot_be_is_refused():
    swing = torch.tensor([1.0, -1.0] * 10, dtype=torch.float64)[:, None]
    with pytest.raises(DataError, match="20 snapshots give an integrated correlation time of"):
        integrated_time(swing)


@pytest.mark.parametrize("measure", [efold_time, stationarity, variance_ratio_time])
@pytest.mark.parametrize("value", [0.1, 0.3])
def test_a_constant_whose_mean_is_rounded_does_not_vary(measure, value):
    still = torch.full((997, 1), value, dtype=torch.float64)
    with pytest.raises(DataError, match="does not vary"):
        measure(torch.cat([ar1(0.5, 997), still], dim=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_series_that_is_not_finite_is_refused(bad):
    x = ar1(0.5, 100)
    x[50] = bad
    for measure in (efold_time, stationarity, variance_ratio_time, autocorrelation):
        with pytest.raises(NonFiniteError, match="not finite"):
            measure(x)


def test_a_whole_window_tells_what_its_principal_directions_hide():
    g = torch.Generator().manual_seed(3)
    walk = torch.randn(2000, 300, generator=g, dtype=torch.float64).cumsum(0)
    directions = torch.linalg.svd(walk - walk.mean(0), full_matrices=False).Vh[10:110]
    hidden = stationarity((walk - walk.mean(0)) @ directions.T)
    assert float(hidden.median()) == pytest.approx(1.0, abs=0.01)  # as if it were stationary
    assert whole_stationarity(walk) == pytest.approx(2.0, rel=0.1)
    assert whole_stationarity(torch.arange(1000.0)[:, None]) == pytest.approx(4.0, rel=0.01)
    assert whole_stationarity(ar1(0.5, 4000, 20)) == pytest.approx(1.0, abs=0.01)
    for few, reason in ((walk[:3], "at least 4"), (torch.ones(9, 2), "do not move")):
        with pytest.raises(DataError, match=reason):
            whole_stationarity(few)


def test_dissipation_about_the_start_tells_a_walk_from_a_bound_state():
    g = torch.Generator().manual_seed(4)
    noise = torch.randn(4000, 50, generator=g, dtype=torch.float64)
    ratios = {}
    for h in (0.0, 1.0):
        w, path, slopes = torch.zeros(50, dtype=torch.float64), [], []
        for xi in noise:
            path.append(w)
            slopes.append(h * w + xi)
            w = w - 0.1 * slopes[-1]
        weights, gradients = torch.stack(path), torch.stack(slopes)
        squares = gradients.square().sum(1)
        for name, centre in (("mean", weights.mean(0)), ("start", weights[0])):
            found = fluctuation_dissipation(weights - centre, gradients, squares, lr=0.1)
            ratios[h, name] = found
    assert ratios[0.0, "start"] == pytest.approx(0.0, abs=0.5)
    assert ratios[1.0, "start"] == pytest.approx(1.0, abs=0.05)
    assert ratios[0.0, "mean"] == pytest.approx(1.0, abs=0.5)  # which says nothing
