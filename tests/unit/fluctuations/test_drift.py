"""A drift of known slope, alone and under noise, and what is left without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flatcl.errors import DataError, NonFiniteError
from flatcl.fluctuations import drift, principal_directions
from flatcl.fluctuations.drift import alignment, linear_drift, without_drift


def draw(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def straight(T, slope, start):
    return start + torch.arange(T, dtype=torch.float64)[:, None] * slope


@pytest.mark.parametrize("held", [1, 100, 1 << 20])
def test_a_straight_line_has_its_slope_and_leaves_its_mean(held, monkeypatch):
    monkeypatch.setattr(drift, "_HELD", held)
    slope, start = draw(30), 10.0 + draw(30, seed=1)
    X = straight(41, slope, start)
    torch.testing.assert_close(linear_drift(X), slope, rtol=1e-12, atol=1e-13)
    rest = without_drift(X)
    torch.testing.assert_close(rest, X.mean(0).expand_as(X), rtol=1e-12, atol=1e-12)


def test_the_slope_is_that_of_least_squares():
    X = draw(25, 7).cumsum(0) + 3.0
    expected = np.polyfit(np.arange(25), X.numpy(), 1)[0]
    np.testing.assert_allclose(linear_drift(X).numpy(), expected, rtol=1e-10)
    two = X[:2]
    torch.testing.assert_close(linear_drift(two), two[1] - two[0], rtol=1e-12, atol=1e-14)


def test_what_is_left_has_the_mean_and_no_slope():
    X = straight(60, draw(9), draw(9, seed=1)) + 0.1 * draw(60, 9, seed=2)
    before = X.clone()
    rest = without_drift(X)
    torch.testing.assert_close(rest.mean(0), X.mean(0), rtol=1e-12, atol=1e-12)
    assert float(linear_drift(rest).abs().max()) < 1e-13
    torch.testing.assert_close(without_drift(rest), rest, rtol=1e-12, atol=1e-12)
    assert torch.equal(X, before)


def test_single_precision_far_from_the_origin_keeps_a_small_slope():
    X = straight(2000, 1e-4 * draw(50), 10.0 + draw(50, seed=1)).float()
    found = linear_drift(X)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, 1e-4 * draw(50), rtol=1e-4, atol=1e-9)
    rest = without_drift(X)
    assert rest.dtype == torch.float32
    assert (
        float((rest.double() - rest.double().mean(0)).abs().max()) < 2e-6
    )  # the snapshots' own rounding


def test_the_first_direction_of_a_drifting_trajectory_is_its_drift():
    slope = draw(40)
    X = straight(100, 0.1 * slope, draw(40, seed=1)) + 0.05 * draw(100, 40, seed=2)
    found = principal_directions(X, 3)
    along = alignment(found.directions, linear_drift(X))
    assert along.shape == (3,)
    assert float(along[0]) > 0.9999
    assert float(along[1:].max()) < 0.02
    still = principal_directions(without_drift(X), 3)
    assert float(alignment(still.directions, slope).max()) < 0.5
    assert float(still.variances[0]) < 1e-3 * float(found.variances[0])


def test_alignment_is_the_cosine_whatever_sign_and_size():
    a = torch.tensor([3.0, 4.0])
    one = alignment(a, torch.tensor([-2.0, 0.0]))
    assert one.shape == ()
    assert one.dtype == torch.float64
    assert float(one) == pytest.approx(0.6, rel=1e-15)
    rows = torch.stack([a, torch.tensor([-4.0, 3.0]), -5 * a])
    torch.testing.assert_close(alignment(rows, a), torch.tensor([1.0, 0.0, 1.0]).double())
    assert float(alignment(rows, a).max()) <= 1.0


def test_what_has_no_drift_is_refused():
    X = draw(5, 4)
    for bad in (X[:1], X[0], X[:, :0]):
        with pytest.raises(DataError, match="a slope needs"):
            linear_drift(bad)
    X[2, 1] = float("inf")
    with pytest.raises(NonFiniteError, match="not finite"):
        without_drift(X)
    with pytest.raises(DataError, match=r"shape \(2, 3\)"):
        alignment(torch.ones(2, 3), torch.ones(4))
    with pytest.raises(DataError, match="has no direction"):
        alignment(torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(DataError, match="has no direction"):
        alignment(torch.ones(3), torch.full((3,), float("nan")))
