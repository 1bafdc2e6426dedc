"""Known answer 20, and the limits of a sketch: exact against dense SVD, streaming against exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from flatcl import exact
from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations import StreamingDirections, cosine_overlap, pca, principal_directions


def trajectory(T, P, rank, *, noise=0.0, seed=0, dtype=torch.float64):
    """Snapshots of falling variance along ``rank`` directions, far from the origin."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(T, rank, generator=g, dtype=torch.float64)
    scores *= torch.linspace(3.0, 0.5, rank, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(P, rank, generator=g, dtype=torch.float64))[0].T
    white = noise * torch.randn(T, P, generator=g, dtype=torch.float64)
    return (scores @ axes + 10.0 + white).to(dtype)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation gives back in memory of its own."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
            self.bytes = max(self.bytes, out.nbytes)
        return out


def streamed(X, k, **sizes):
    stream = StreamingDirections(k, **sizes)
    stream.add(X)
    return stream.directions()


def assert_same(a, b, *, tolerance):
    torch.testing.assert_close(a.variances, b.variances, rtol=tolerance, atol=0.0)
    torch.testing.assert_close(a.directions, b.directions, rtol=0.0, atol=tolerance * 10)
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    assert a.total == pytest.approx(b.total, rel=tolerance)
    assert a.snapshots == b.snapshots


@pytest.mark.parametrize(("T", "P"), [(40, 300), (300, 40), (30, 20_000), (60, 60), (61, 60)])
def test_exact_is_the_svd(T, P):
    X = trajectory(T, P, 20, noise=0.1)
    found = principal_directions(X, 6)
    _, S, Vh = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    torch.testing.assert_close(found.variances, S[:6].square() / T, rtol=1e-10, atol=0.0)
    assert float((found.directions * Vh[:6]).sum(1).abs().min()) > 1 - 1e-10
    assert found.total == pytest.approx(float(S.square().sum()) / T, rel=1e-10)
    theta = found.scores(X)
    torch.testing.assert_close(theta.square().mean(0), found.variances, rtol=1e-9, atol=0.0)
    peaks = found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True))
    assert bool((peaks > 0).all())


@pytest.mark.parametrize(("T", "P"), [(12_000, 300), (300, 12_000)])
def test_exact_reads_in_blocks_and_writes_nothing(T, P):
    X = trajectory(T, P, 20, noise=0.1, dtype=torch.float32)
    before = X.clone()
    with Largest() as largest:
        found = principal_directions(X, 6)
    # No copy of the snapshots, least of all in float64.
    assert largest.bytes <= 8 * max(pca._HELD, min(T, P) ** 2) < X.nbytes
    assert torch.equal(X, before)
    centred = X.double() - X.double().mean(0)
    S = torch.linalg.svdvals(centred if T < P else centred.T @ centred).double()
    expected = (S.square() if T < P else S)[:6] / T
    torch.testing.assert_close(found.variances, expected, rtol=1e-10, atol=0.0)
    assert found.directions.dtype == torch.float32


@pytest.mark.parametrize(("T", "P"), [(50, 20), (20, 50)])
def test_the_size_of_the_blocks_changes_nothing(T, P, monkeypatch):
    X = trajectory(T, P, 6, noise=0.1)
    whole, stream = principal_directions(X, 4), streamed(X, 4, block=9)
    monkeypatch.setattr(pca, "_HELD", 70)
    monkeypatch.setattr(pca, "_TILE", 3)
    assert_same(principal_directions(X, 4), whole, tolerance=1e-12)
    assert_same(streamed(X, 4, block=9), stream, tolerance=1e-12)
    torch.testing.assert_close(
        whole.scores(X), (X - X.mean(0)) @ whole.directions.T, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_streaming_is_exact_up_to_its_rank_whatever_the_block(block):
    X = trajectory(90, 500, 8)
    found = streamed(X, 8, sketch=8, block=block)
    assert_same(found, principal_directions(X, 8), tolerance=1e-9)
    assert found.error_bound < 1e-12 * found.total


def test_rows_one_by_one_or_together_are_the_same_stream():
    X = trajectory(50, 60, 5, noise=0.2)
    stream = StreamingDirections(5)
    for row in X:
        stream.add(row)
    together = streamed(X, 5)
    assert torch.equal(stream.directions().directions, together.directions)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), sketch=st.integers(3, 12), block=st.integers(1, 20))
def test_the_certificate_bounds_what_truncation_loses(seed, sketch, block):
    X = trajectory(60, 40, 10, noise=1.0, seed=seed)
    found, true = streamed(X, 3, sketch=sketch, block=block), principal_directions(X, 3)
    short = true.variances - found.variances
    assert float(short.min()) > -1e-9
    assert float(short.max()) <= found.error_bound + 1e-9
    assert found.total == pytest.approx(true.total, rel=1e-9)  # the trace loses nothing


def test_noise_beyond_the_sketch_costs_the_leading_directions_little():
    X = trajectory(400, 2000, 5, noise=0.02)
    found, true = streamed(X, 5, sketch=20), principal_directions(X, 5)
    torch.testing.assert_close(found.variances, true.variances, rtol=1e-3, atol=0.0)
    assert float((found.directions * true.directions).sum(1).min()) > 0.999
    assert found.error_bound > 0


def test_single_precision_far_from_the_origin_keeps_its_digits():
    X = trajectory(100, 3000, 4, noise=0.01, dtype=torch.float32)
    true = principal_directions(X.double(), 4)
    for found in (principal_directions(X, 4), streamed(X, 4, sketch=8)):
        assert found.directions.dtype == torch.float32
        torch.testing.assert_close(found.variances, true.variances, rtol=1e-3, atol=0.0)


def test_a_random_walk_is_known_by_its_cosines():
    g = torch.Generator().manual_seed(0)
    T, P = 200, 4000
    walk = torch.randn(T, P, generator=g, dtype=torch.float64).cumsum(0) / P**0.5
    found = principal_directions(walk, 5)
    expected = torch.from_numpy(exact.walk_spectrum(T))
    torch.testing.assert_close(found.variances, expected[:5], rtol=0.1, atol=0.0)
    assert float(cosine_overlap(found.scores(walk)).min()) > 0.97
    white = torch.randn(T, P, generator=g, dtype=torch.float64)
    still = principal_directions(white, 5)
    assert float(cosine_overlap(still.scores(white)).max()) < 0.5


def test_what_cannot_be_decomposed_is_refused():
    X = trajectory(10, 6, 3)
    with pytest.raises(DataError, match="1 snapshot: a variance needs at least 2"):
        principal_directions(X[:1], 2)
    with pytest.raises(DataError, match="0 snapshots"):
        StreamingDirections(2).directions()
    with pytest.raises(OptionError, match="k is 0"):
        principal_directions(X, 0)
    with pytest.raises(OptionError, match="sketch at least k"):
        StreamingDirections(4, sketch=3)
    with pytest.raises(DataError, match=r"shape \(6,\)"):
        principal_directions(X[0], 1)
    for still in (torch.full((4, 3), 0.1).double(), torch.full((3, 4), 0.1).double()):
        with pytest.raises(DataError, match="all the same"):
            principal_directions(still, 1)
        with pytest.raises(DataError, match="all the same"):
            streamed(still, 1)
    X[3, 2] = float("nan")
    for broken in (X, X.T, X / 0.0):
        with pytest.raises(NonFiniteError, match="not finite"):
            principal_directions(broken, 2)
        with pytest.raises(NonFiniteError, match="not finite"):
            streamed(broken, 2)
    stream = StreamingDirections(2)
    stream.add(X[:2])
    with pytest.raises(DataError, match="5 weights, those before had 6"):
        stream.add(torch.zeros(5))
    with pytest.raises(DataError, match="need"):
        principal_directions(X[:3], 2).scores(torch.zeros(2, 5))
    assert len(principal_directions(X[:3], 50).variances) == 2  # no more than there are


def test_directions_whose_variance_is_rounding_are_left_out() -> None:
    """Variances over eighteen decades: the last have none of their digits right in float64."""
    generator = torch.Generator().manual_seed(8)
    T, P = 60, 400
    frame = torch.linalg.qr(torch.randn(P, T, generator=generator, dtype=torch.float64)).Q.T
    sizes = torch.logspace(0, -9, T, dtype=torch.float64)
    weights = (torch.randn(T, T, generator=generator, dtype=torch.float64) * sizes) @ frame
    found = principal_directions(weights, 50).directions
    assert 20 < len(found) < 50
    assert float((found.norm(dim=1) - 1).abs().max()) < 1e-4
