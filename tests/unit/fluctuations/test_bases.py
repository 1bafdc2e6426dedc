"""Directions of the Hessian, of a layer and of chance, against dense decompositions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from flatcl.errors import DataError, OptionError
from flatcl.fluctuations import principal_directions
from flatcl.fluctuations.bases import (
    hessian,
    hessian_directions,
    kronecker_directions,
    random_directions,
)
from flatcl.fluctuations.surface import LossSurface


def network(**options) -> tuple[nn.Module, LossSurface]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 5, generator=g, dtype=torch.float64), torch.arange(40) % 3
    return model, LossSurface(model, x, y, **options)


def dense_oracle(model: nn.Module, surface: LossSurface, name: str, point=None) -> torch.Tensor:
    """Reverse over reverse, entry by entry; the surface goes forward over reverse."""
    held = dict(model.named_parameters())
    w = (surface.reference if point is None else point).clone().requires_grad_()
    weights = held | {name: w.reshape(held[name].shape)}
    logits = functional_call(model, weights, (surface.inputs,))
    loss = nn.functional.cross_entropy(logits, surface.targets)
    (slope,) = torch.autograd.grad(loss, w, create_graph=True)
    return torch.stack([torch.autograd.grad(s, w, retain_graph=True)[0] for s in slope])


def assert_orthonormal(rows, tolerance=1e-12):
    eye = torch.eye(len(rows), dtype=rows.dtype)
    torch.testing.assert_close(rows @ rows.T, eye, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "0.bias"])
def test_the_dense_hessian_of_a_block(name):
    model, surface = network(parameters=name)
    H = dense_oracle(model, surface, name)
    torch.testing.assert_close(hessian(surface), H, rtol=1e-10, atol=1e-12)
    elsewhere = surface.reference + 0.5
    H = dense_oracle(model, surface, name, elsewhere)
    torch.testing.assert_close(hessian(surface, elsewhere), H, rtol=1e-10, atol=1e-12)


def test_a_hessian_of_more_rows_than_a_slice_is_exactly_symmetric():
    _, surface = network(parameters=["0.*", "2.*"])
    assert surface.size == 57
    torch.manual_seed(0)
    wide = LossSurface(nn.Linear(50, 3), torch.randn(20, 50), torch.arange(20) % 3)
    H = hessian(wide)
    assert H.shape == (153, 153)  # three slices
    assert torch.equal(H, H.T)
    v = torch.randn(2, 153, dtype=torch.float64)
    torch.testing.assert_close(
        v @ H, wide.hessian_products(wide.reference, v), rtol=1e-10, atol=1e-12
    )


def test_all_eigenvectors_by_falling_eigenvalue():
    model, surface = network(parameters="0.weight")
    H = dense_oracle(model, surface, "0.weight")
    found = hessian_directions(surface)
    assert found.vectors.shape == (30, 30)
    assert_orthonormal(found.vectors)
    assert bool((found.values.diff() <= 0).all())
    assert float(found.values[-1]) < 0 < float(found.values[0])
    rebuilt = found.vectors.T @ (found.values[:, None] * found.vectors)
    torch.testing.assert_close(rebuilt, H, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 29])
def test_lanczos_finds_the_largest_of_the_dense_ones(k, generator):
    _, surface = network(parameters="0.weight")
    point = surface.reference + 0.3
    true = hessian_directions(surface, point=point)
    found = hessian_directions(surface, k, point=point, generator=generator)
    assert found.vectors.shape == (k, 30)
    assert found.vectors.dtype == found.values.dtype == torch.float64
    torch.testing.assert_close(found.values, true.values[:k], rtol=1e-8, atol=1e-10)
    assert_orthonormal(found.vectors, 1e-10)
    products = surface.hessian_products(point, found.vectors)
    torch.testing.assert_close(products, found.values[:, None] * found.vectors, rtol=0.0, atol=1e-8)


def test_what_lanczos_cannot_find_is_refused():
    model, surface = network(parameters="0.bias")
    for k in (0, 6, 7):
        with pytest.raises(OptionError, match=f"k is {k}; Lanczos finds 1 to 5"):
            hessian_directions(surface, k)
    model.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    idle = LossSurface(model, surface.inputs, surface.targets, parameters="idle")
    with pytest.raises(DataError, match="the block's Hessian is 0"):
        hessian_directions(idle, 1)
    assert torch.equal(hessian_directions(idle).values, torch.zeros(3, dtype=torch.float64))


def test_a_hessian_too_large_is_refused():
    model = nn.Linear(4097, 1, bias=False)
    surface = LossSurface(model, torch.ones(2, 4097), torch.ones(2), loss=lambda z, y: z[:, 0] ** 2)
    for ask in (hessian, hessian_directions):
        with pytest.raises(OptionError, match=r"4097 weights .* the limit is 4096: use hessian_d"):
            ask(surface)
    top = hessian_directions(surface, 1)  # as advised; H = 2 x xᵀ
    assert float(top.values[0]) == pytest.approx(2 * 4097, rel=1e-8)


SHAPE = (3, 4)


def kronecker_snapshots(T, generator, *, exactly):
    """Rows of covariance A ⊗ B about a mean far away, in the sample too if ``exactly``."""
    white = torch.randn(T, 12, generator=generator, dtype=torch.float64)
    if exactly:
        white -= white.mean(0)
        white = torch.linalg.qr(white)[0] * T**0.5
    sides = []
    for d, values in zip(SHAPE, ([3.0, 1.0, 0.35], [2.0, 1.1, 0.5, 0.13]), strict=True):
        Q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        sides.append(Q @ torch.diag(torch.tensor(values).double().sqrt()) @ Q.T)
    return white @ torch.kron(*sides).T + 50.0


@pytest.mark.parametrize("k", [3, 12, 100])
def test_kronecker_directions_are_the_principal_ones_of_a_kronecker_covariance(k, generator):
    X = kronecker_snapshots(40, generator, exactly=True)
    found, true = kronecker_directions(X, SHAPE, k), principal_directions(X, min(k, 12))
    assert len(found.values) == len(found.vectors) == min(k, 12)
    torch.testing.assert_close(found.values, true.variances, rtol=1e-8, atol=0.0)
    overlaps = (found.vectors * true.directions).sum(1).abs()
    torch.testing.assert_close(overlaps, torch.ones_like(overlaps), rtol=0.0, atol=1e-8)
    assert_orthonormal(found.vectors)


def test_a_matrix_normal_sample_is_so_within_its_sampling_error(generator):
    T = 20_000
    X = kronecker_snapshots(T, generator, exactly=False)
    found, true = kronecker_directions(X, SHAPE, 12), principal_directions(X, 12)
    error = (2 / T) ** 0.5
    torch.testing.assert_close(found.values, true.variances, rtol=4 * error, atol=0.0)
    assert float((found.vectors * true.directions).sum(1)[:4].abs().min()) > 0.99


def test_the_variances_are_exact_whatever_the_covariance(generator):
    # Not a Kronecker product: correlated entries of different scale, few snapshots.
    X = torch.randn(9, 12, generator=generator, dtype=torch.float64) + 10.0
    X = X @ torch.randn(12, 12, generator=generator, dtype=torch.float64)
    found = kronecker_directions(X, SHAPE, 12)
    scores = (X - X.mean(0)) @ found.vectors.T
    torch.testing.assert_close(found.values, scores.square().mean(0), rtol=1e-10, atol=0.0)
    assert_orthonormal(found.vectors)
    assert float(found.values.sum()) == pytest.approx(float(X.var(0, unbiased=False).sum()))
    assert bool((found.values.diff() <= 0).all())
    # Each is u vᵀ, of rank one, and PCA's first is the largest of all.
    ranks = torch.linalg.svdvals(found.vectors.reshape(12, *SHAPE))
    assert float(ranks[:, 1].max()) < 1e-12
    assert float(found.values[0]) < float(principal_directions(X, 1).variances[0])
    single = kronecker_directions(X.float(), SHAPE, 12)
    torch.testing.assert_close(single.values, found.values, rtol=1e-3, atol=1e-5)


def test_what_is_no_layer_is_refused():
    X = torch.randn(5, 12)
    for wrong in (X[0], torch.randn(5, 11), torch.randn(5, 3, 4)):
        with pytest.raises(DataError, match=r"are not of a \(3, 4\) matrix"):
            kronecker_directions(wrong, SHAPE, 1)
    for few in (0, 1):
        with pytest.raises(DataError, match=f"{few} snapshots: a variance needs at least 2"):
            kronecker_directions(X[:few], SHAPE, 1)
    for k in (0, -1):
        with pytest.raises(OptionError, match=f"k is {k}; at least one"):
            kronecker_directions(X, SHAPE, k)


def test_random_directions_are_orthonormal_and_prefer_none(generator):
    for size, k in ((7, 7), (50, 3), (1, 1)):
        rows = random_directions(size, k, generator=generator)
        assert rows.shape == (k, size)
        assert_orthonormal(rows)
    draws = torch.stack([random_directions(4, 2, generator=generator)[0] for _ in range(2000)])
    # Uniform on the sphere: E x xᵀ = I/4, and the variance of x_i² is 2 (1 − 1/4) / (4 · 6).
    error = (1 / 16 / 2000) ** 0.5
    torch.testing.assert_close(
        draws.T @ draws / 2000, torch.eye(4).double() / 4, rtol=0.0, atol=4 * error
    )
    again = [random_directions(5, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    for k in (0, 6):
        with pytest.raises(OptionError, match=f"k is {k}; there are 1 to 5"):
            random_directions(5, k, generator=generator)
