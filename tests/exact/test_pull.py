"""Known answers 12 and 12b: the proximal step, in a number and in a diagonal metric."""

from __future__ import annotations

import pytest
import torch

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.pull import TIERS, PullState, by_falling_stiffness, correction, pull_reference

OUT, IN = 5, 7


def orthonormal(n, generator):
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]


def random_constraint(generator, *, decades=4.0):
    basis = KroneckerBasis(orthonormal(OUT, generator), orthonormal(IN, generator))
    k = 10 ** (decades * (torch.rand(OUT, IN, generator=generator, dtype=torch.float64) - 0.5))
    anchor = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    return by_falling_stiffness(Constraint(basis, k, anchor))


def diagonal_metric(generator):
    return 10 ** (2 * torch.rand(OUT, IN, generator=generator, dtype=torch.float64) - 2)


def full(constraint, weight, metric, strength, state=None):
    return correction(
        constraint,
        weight,
        metric,
        strength=strength,
        state=state or PullState(),
        shares=[1.0] * TIERS,
    )


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e6])
def test_number_metric_is_the_implicit_step(generator, strength):
    c = random_constraint(generator)
    W = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    y = full(c, W, 0.3, strength)
    torch.testing.assert_close(
        y, pull_reference(c, W, 0.3, strength=strength), rtol=1e-10, atol=1e-12
    )


def test_zero_stiffness_changes_no_bit_and_infinite_strength_gives_the_anchor(generator):
    c = random_constraint(generator)
    W = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    free = Constraint(c.basis, torch.zeros_like(c.stiffness), c.anchor)
    for metric in (0.3, diagonal_metric(generator)):
        assert torch.equal(W - full(free, W, metric, 10.0), W)
    torch.testing.assert_close(W - full(c, W, 0.3, 1e14), c.anchor, rtol=0, atol=1e-9)


def test_distance_never_grows_while_the_explicit_twin_diverges(generator):
    c = random_constraint(generator)
    W = V = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    strength = 3.0 / float(c.stiffness.max())  # explicit: factor 1 − 3 on the stiffest direction
    last = float((W - c.anchor).norm())
    for _ in range(50):
        W = W - full(c, W, 1.0, strength)
        V = V - strength * c.apply(V - c.anchor)
        now = float((W - c.anchor).norm())
        assert now <= last
        last = now
    assert float((V - c.anchor).norm()) > 1e6


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_diagonal_metric_against_the_dense_solve(generator, strength, monkeypatch):
    monkeypatch.setattr("flatcl.core.pull._TOLERANCE", 1e-12)
    monkeypatch.setattr("flatcl.core.pull._ITERATIONS", 500)
    c, D = random_constraint(generator), diagonal_metric(generator)
    W = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    expected = pull_reference(c, W, D, strength=strength)
    torch.testing.assert_close(full(c, W, D, strength), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("iterations", [0, 1, 2, 20])
def test_energy_and_objective_never_rise_however_few_iterations(generator, iterations, monkeypatch):
    monkeypatch.setattr("flatcl.core.pull._ITERATIONS", iterations)
    c, D = random_constraint(generator), diagonal_metric(generator)
    state = PullState()
    for _ in range(8):  # warm starts that fit nothing must not hurt either
        W = c.anchor + torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
        y = full(c, W, D, 30.0, state)
        assert float(c.energy(W - y)) <= float(c.energy(W)) * (1 + 1e-12)
        objective = 0.5 * float((y * y / D).sum()) + 30.0 * float(c.energy(W - y))
        assert objective <= 30.0 * float(c.energy(W)) * (1 + 1e-12)


def alternate(metric_of_pull, D, A, b, c, strength, *, rounds):
    x = torch.zeros(OUT, IN, dtype=torch.float64)
    state = PullState()
    centred = Constraint(c.basis, c.stiffness, torch.zeros_like(c.anchor))
    for _ in range(rounds):
        x = x - D * ((A @ x.reshape(-1)).reshape(OUT, IN) - b)
        x = x - full(centred, x, metric_of_pull, strength, state)
    return x, centred


def test_fixed_point_does_not_depend_on_the_metric_but_a_scalar_has_the_wrong_one(
    generator, monkeypatch
):
    monkeypatch.setattr("flatcl.core.pull._TOLERANCE", 1e-11)
    monkeypatch.setattr("flatcl.core.pull._ITERATIONS", 500)
    c, D = random_constraint(generator, decades=2.0), diagonal_metric(generator)
    root = torch.randn(OUT * IN, OUT * IN, generator=generator, dtype=torch.float64)
    A = root @ root.T / (OUT * IN) + 0.1 * torch.eye(OUT * IN, dtype=torch.float64)
    D = D * (1.0 / float(torch.linalg.eigvalsh(A)[-1] * D.max()))  # D A < 2
    b = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    x, centred = alternate(D, D, A, b, c, 2.0, rounds=20_000)
    expected = torch.linalg.solve(A + 2.0 * centred.to_dense(), b.reshape(-1)).reshape(OUT, IN)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-8)
    wrong, _ = alternate(float(D.mean()), D, A, b, c, 2.0, rounds=20_000)
    assert float((wrong - expected).norm() / expected.norm()) > 1e-2


def test_tiers_make_up_for_the_steps_they_waited(generator):
    c = random_constraint(generator, decades=6.0)
    W = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    state, metric = PullState(), 0.5
    largest = c.stiffness.amax(0)
    strength = 0.5 / (metric * float(largest[3])) * 0.999  # columns 0..2 have r > 1/2
    shares = [1.0, 2.0, 4.0, 8.0, 16.0]
    y = correction(c, W, metric, strength=strength, state=state, shares=shares)
    assert len(shares) == TIERS
    assert state.ends[0] == 3
    assert state.ends == sorted(state.ends)
    assert state.ends[-1] == IN
    tier = [next(j for j, end in enumerate(state.ends) if i < end) for i in range(IN)]
    for column, j in enumerate(tier[3:], 3):
        r = strength * metric * float(largest[column])
        assert r <= 0.5**j  # a visit after 2^j pulls is no coarser than r = 1
    waited = torch.tensor([shares[j] for j in tier], dtype=torch.float64)
    r, z = strength * metric * c.stiffness * waited, c.coordinates(W)
    torch.testing.assert_close(y, c.basis.unproject(z * r / (1 + r)), rtol=1e-10, atol=1e-12)
    quick = correction(c, W, metric, strength=strength, state=state, shares=[1.0])
    r[:, :3], r[:, 3:] = strength * metric * c.stiffness[:, :3], 0.0
    torch.testing.assert_close(quick, c.basis.unproject(z * r / (1 + r)), rtol=1e-10, atol=1e-12)


def test_entry_by_entry_unit(generator):
    k = torch.rand(9, generator=generator, dtype=torch.float64)
    c = Constraint(None, k, torch.zeros(9, dtype=torch.float64))
    W = torch.randn(9, generator=generator, dtype=torch.float64)
    D = torch.rand(9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(W - full(c, W, D, 3.0), W / (1 + 3.0 * D * k), rtol=1e-10, atol=0)
