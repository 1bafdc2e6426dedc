"""Known answers 1 to 8, 17, 18 and 23: the closed forms against simulation and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import solve_discrete_lyapunov

from flatcl import exact
from flatcl.errors import OptionError

LR = 0.1


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_one_direction_agrees_with_the_covariance_of_many(rng):
    h = np.array([0.3, 2.0, 11.0])
    Q = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    H = (Q * h) @ Q.T
    S = exact.stationary_covariance(H, (Q * h**2) @ Q.T, lr=LR)
    expected = [exact.stationary_variance(x, x**2, lr=LR) for x in h]
    np.testing.assert_allclose(np.diag(Q.T @ S @ Q), expected, rtol=1e-10)
    mixed = rng.standard_normal((3, 3))
    C = mixed @ mixed.T
    S, M = exact.stationary_covariance(H, C, lr=LR), np.eye(3) - LR * H
    np.testing.assert_allclose(S, M @ S @ M.T + LR**2 * C, atol=1e-12)


def test_stationary_variance_of_simulated_chains(rng):
    h, c, x, squares = 2.0, 0.5, np.zeros(200), 0.0
    for t in range(20_500):
        x = x - LR * (h * x + math.sqrt(c) * rng.standard_normal(200))
        squares += float((x**2).mean()) if t >= 500 else 0.0
    assert squares / 20_000 == pytest.approx(exact.stationary_variance(h, c, lr=LR), rel=0.03)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_against_the_lyapunov_equation_of_weight_and_velocity(momentum):
    h, c = 3.0, 0.7
    # (w, v) ← (w − η(βv + hw + ξ), βv + hw + ξ)
    M = np.array([[1 - LR * h, -LR * momentum], [h, momentum]])
    noise = np.array([-LR, 1.0])
    S = solve_discrete_lyapunov(M, c * np.outer(noise, noise))
    found = exact.stationary_variance(h, c, lr=LR, momentum=momentum)
    assert found == pytest.approx(S[0, 0], rel=1e-10)


@pytest.mark.parametrize("h", [0.0, -1.0, 20.0, 25.0])
def test_no_stationary_state_is_refused(h):
    with pytest.raises(OptionError, match="no stationary state"):
        exact.stationary_variance(h, 1.0, lr=LR)
    with pytest.raises(OptionError, match="eigenvalues reach from"):
        exact.stationary_covariance(np.diag([1.0, h]), np.eye(2), lr=LR)


def test_increments_of_sgd():
    h, c = 2.0, 0.5
    s = exact.stationary_variance(h, c, lr=LR)
    moment = exact.increment_moment(s, 1 - LR * h)
    assert moment == pytest.approx(2 * LR * h * s, rel=1e-12)
    assert moment == pytest.approx(LR**2 * (h**2 * s + c), rel=1e-12)


def test_ar1_times():
    a = 0.9
    rho = a ** np.arange(10_000)
    assert exact.integrated_time(a) == pytest.approx(2 * rho.sum() - 1, rel=1e-10)
    assert exact.integrated_time(a) == pytest.approx(19.0)
    assert a ** exact.efold_time(a) == pytest.approx(1 / math.e, rel=1e-12)


@pytest.mark.parametrize(("a", "T"), [(0.9, 7), (0.99, 50), (-0.5, 4), (0.0, 10)])
def test_windowed_variance_against_the_covariance_matrix(a, T):
    lags = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    covariance = 2.5 * np.power(float(a), lags)
    centring = np.eye(T) - 1 / T
    expected = np.trace(centring @ covariance @ centring) / T
    assert exact.windowed_variance(2.5, a, T) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("h", [0.05, 0.8, 5.0])
def test_reshuffled_batches_simulated(rng, h):
    M, chains, epochs = 40, 400, 400
    c, x, squares, count = 1.0, np.zeros(400), 0.0, 0
    noise = rng.standard_normal((chains, M))
    noise -= noise.mean(1, keepdims=True)
    noise /= noise.std(1, keepdims=True)
    for epoch in range(epochs):
        order = rng.permuted(noise, axis=1)
        for step in range(M):
            x = x - LR * (h * x + math.sqrt(c) * order[:, step])
            if epoch >= 30:
                squares, count = squares + float((x**2).mean()), count + 1
    found = exact.reshuffled_variance(h, c, lr=LR, batches=M)
    assert squares / count == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("h", [0.02, 1.0, 12.0])
def test_reshuffled_variance_is_the_published_closed_form(h):
    M, c, a = 40, 0.7, 1 - LR * h
    bracket = 1 - 2 * a * ((M - 1) - M * a + a**M) / (M * (M - 1) * (1 - a) ** 2)
    found = exact.reshuffled_variance(h, c, lr=LR, batches=M)
    assert found == pytest.approx(LR**2 * c / (1 - a**2) * bracket, rel=1e-8)


def test_reshuffling_matters_in_flat_directions_only():
    M = 1200
    sharp, flat = 10.0, 1e-6
    full = exact.stationary_variance(sharp, 1.0, lr=LR)
    assert exact.reshuffled_variance(sharp, 1.0, lr=LR, batches=M) == pytest.approx(full, rel=0.01)
    # The limit of a flat direction: η² c (M + 1) / 6, whatever h.
    found = exact.reshuffled_variance(flat, 1.0, lr=LR, batches=M)
    assert found == pytest.approx(LR**2 * (M + 1) / 6, rel=0.01)


def test_langevin_is_sgd_with_constant_noise():
    T, kappa, dt = 0.3, 2.0, 0.1
    noise = 2 * T / dt  # η² c = 2 T dt at η = dt
    assert exact.langevin_variance(T, kappa, dt) == pytest.approx(
        exact.stationary_variance(kappa, noise, lr=dt), rel=1e-12
    )


def test_random_walk_in_many_dimensions(rng):
    T, D = 200, 4000
    walk = np.cumsum(rng.standard_normal((T, D)) / math.sqrt(D), axis=0)
    U, S, _ = np.linalg.svd(walk - walk.mean(0), full_matrices=False)
    found, expected = S[:5] ** 2 / T, exact.walk_spectrum(T)
    np.testing.assert_allclose(found, expected[:5], rtol=0.1)
    for j in range(1, 4):
        assert abs(U[:, j - 1] @ exact.walk_score(j, T)) > 0.99
    assert expected.sum() == pytest.approx((T**2 - 1) / (6 * T), rel=1e-10)
    assert expected[0] / expected.sum() == pytest.approx(6 / math.pi**2, rel=1e-3)


def test_marchenko_pastur(rng):
    n, p = 2000, 500
    q = p / n
    eigenvalues = np.linalg.eigvalsh(np.cov(rng.standard_normal((p, n))))
    low, high = exact.marchenko_pastur_edges(q)
    assert eigenvalues[0] == pytest.approx(low, rel=0.05)
    assert eigenvalues[-1] == pytest.approx(high, rel=0.03)
    for power, moment in ((0, 1.0), (1, 1.0), (2, 1 + q), (3, 1 + 3 * q + q**2)):
        value, _ = quad(
            lambda x, k=power: x**k * exact.marchenko_pastur_density(np.array([x]), q)[0], low, high
        )
        assert value == pytest.approx(moment, rel=1e-6)
        assert float((eigenvalues**power).mean()) == pytest.approx(moment, rel=0.02)


@pytest.mark.parametrize("factor", [2.0, math.e])
def test_flatness_of_a_quadratic(factor):
    loss, h = 0.02, 3.0
    half = exact.flatness(loss, h, factor=factor) / 2
    assert loss + h * half**2 / 2 == pytest.approx(factor * loss, rel=1e-12)


@pytest.mark.parametrize("g", [0.0, 1.0, 1.4, 2.0])
def test_the_null_slopes(g):
    h = np.geomspace(1e-3, 1e-2, 9)
    variance = [exact.stationary_variance(x, x**g, lr=LR) for x in h]
    F = [exact.flatness(0.1, x) for x in h]
    slope = np.polyfit(np.log(F), np.log(variance), 1)[0]
    assert slope == pytest.approx(exact.null_exponent(g), abs=0.01)


@pytest.mark.parametrize("window", [200, 73, 11, 1])
def test_noise_alone_dealt_anew_is_a_string_of_bridges(rng, window):
    M, lr = 20, 0.3
    noise = rng.standard_normal(M)
    noise -= noise.mean()
    epochs = -(-window // M)
    order = rng.permuted(np.tile(noise, (20_000, epochs, 1)), axis=2).reshape(20_000, -1)
    paths = lr * np.cumsum(order[:, :window], axis=1)
    found = exact.frozen_variance(float(noise.var()), lr=lr, window=window, batches=M)
    assert paths.var(1).mean() == pytest.approx(found, rel=0.015, abs=1e-12)


def test_noise_alone_is_the_limit_without_a_force():
    c, h = 2.0, 1e-7
    walk = exact.frozen_variance(c, lr=LR, window=100)
    bound = exact.stationary_variance(1e3 * h, c, lr=LR)
    assert exact.windowed_variance(bound, 1 - LR * 1e3 * h, 100) == pytest.approx(walk, rel=1e-3)
    bridges = exact.frozen_variance(c, lr=LR, window=10**6, batches=20)
    assert bridges == pytest.approx(exact.reshuffled_variance(h, c, lr=LR, batches=20), rel=1e-4)
