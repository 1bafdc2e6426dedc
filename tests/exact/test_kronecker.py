"""Known answers 9, 10, 11, 13, 14: the Kronecker basis, moments in it, and merging."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis, decomposed, eigenvectors
from flatcl.core.merge import joint_basis, merge, spectrum_in
from flatcl.core.moments import EigenMoments, KroneckerMoments
from flatcl.errors import NonFiniteError, OptionError, StateError


def rand(*shape, g):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def constraint(g, out=4, width=6):
    basis = KroneckerBasis(
        torch.linalg.qr(rand(out, out, g=g))[0], torch.linalg.qr(rand(width, width, g=g))[0]
    )
    return Constraint(basis, rand(out, width, g=g).square(), rand(out, width, g=g))


def test_basis_against_a_dense_eigendecomposition(generator):
    A, B = (m @ m.T for m in (rand(3, 3, g=generator), rand(5, 5, g=generator)))
    basis = KroneckerBasis.from_moments(A, B)
    dense = torch.linalg.eigvalsh(torch.kron(A, B))
    spectrum = torch.outer(torch.linalg.eigvalsh(A).flip(0), torch.linalg.eigvalsh(B).flip(0))
    torch.testing.assert_close(spectrum.reshape(-1).sort().values, dense, rtol=1e-10, atol=1e-12)
    W = rand(3, 5, g=generator)
    through = basis.unproject(spectrum * basis.project(W))
    torch.testing.assert_close(through, A @ W @ B, rtol=1e-10, atol=1e-12)
    by_vec = (torch.kron(A, B) @ W.reshape(-1)).reshape(3, 5)
    torch.testing.assert_close(through, by_vec, rtol=1e-10, atol=1e-12)


def test_eigenvectors_have_fixed_signs_and_refuse_nan(generator):
    A = rand(6, 6, g=generator)
    A = A @ A.T
    V = eigenvectors(A)
    assert (V.gather(0, V.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(V.T @ V, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    values = (V.T @ A @ V).diagonal()
    assert (values.diff() <= 1e-9).all()
    A[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="not finite"):
        eigenvectors(A)


@pytest.mark.parametrize("seed", range(6))
def test_eigenvectors_where_most_inputs_were_never_seen(seed):
    # The moment of a 3×3 kernel's inputs on images of one pixel: its other places see the border.
    # On some builds of torch, eigh fails on such matrices in float32 or gives NaN.
    g = torch.Generator().manual_seed(seed)
    X = torch.zeros(64, 288)
    X[:, 4::9] = torch.randn(64, 32, generator=g) * torch.rand(32, generator=g) ** 3
    S = X.T @ X
    V = eigenvectors(S)
    assert V.dtype == torch.float32
    torch.testing.assert_close(V.T @ V, torch.eye(288), rtol=0, atol=1e-5)
    values = (V.T.double() @ S.double() @ V.double()).diagonal()
    assert (values.diff() <= 1e-4).all()
    dense = torch.linalg.eigvalsh(S.double()).flip(0)
    torch.testing.assert_close(values, dense, rtol=1e-5, atol=1e-4)


def test_rows_next_to_zero_are_left_out_where_eigh_fails_on_them(monkeypatch):
    """Seen once in float64, on a moment of ResNet's inputs; libraries differ in when they do."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(64, 24, generator=g)
    X[:, ::2] *= 1e-20
    S = X.T @ X
    plain = torch.linalg.eigh

    def failing(A):
        if bool((A.diagonal() < 1e-14 * A.diagonal().max()).any()):
            raise torch.linalg.LinAlgError("failed to converge")
        return plain(A)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    values, V = decomposed(S)
    assert (values.diff() >= 0).all()
    torch.testing.assert_close(V.T @ V, torch.eye(24), rtol=0, atol=1e-6)
    torch.testing.assert_close(V @ values.diag() @ V.T, S, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        values.double(), torch.linalg.eigvalsh(S.double()), rtol=1e-5, atol=1e-4
    )


def test_matrix_normal_moments_factorise(generator):
    U, V = (
        m @ m.T + torch.eye(len(m), dtype=torch.float64)
        for m in (rand(3, 3, g=generator), rand(4, 4, g=generator))
    )
    left, right = torch.linalg.cholesky(U), torch.linalg.cholesky(V)
    G = left @ rand(100_000, 3, 4, g=generator) @ right.T
    moments = KroneckerMoments(
        torch.einsum("nij,nkj->ik", G, G), torch.einsum("nji,njk->ik", G, G), float(len(G))
    )
    S_out, S_in = moments.means()
    torch.testing.assert_close(S_out, U * V.trace(), rtol=0, atol=0.02 * float(S_out.max()))
    torch.testing.assert_close(S_in, V * U.trace(), rtol=0, atol=0.02 * float(S_in.max()))
    torch.testing.assert_close(S_out.trace(), S_in.trace(), rtol=1e-10, atol=0)


def test_second_moment_is_the_diagonal_of_the_dense_one(generator):
    G = rand(40, 3, 5, g=generator)
    sides = KroneckerMoments.zeros(G[0])
    for g in G:
        sides.add(g)
    basis = KroneckerBasis.from_moments(*sides.means())
    moments = EigenMoments.zeros(basis, G[0])
    for g in G:
        moments.add(g, weight=2.0)
    S = torch.einsum("ni,nj->ij", G.reshape(40, -1), G.reshape(40, -1)) * 2.0
    Q = torch.kron(basis.U_out, basis.U_in)
    torch.testing.assert_close(
        moments.second.reshape(-1), (Q.T @ S @ Q).diagonal(), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(moments.second.sum(), S.trace(), rtol=1e-12, atol=0)
    assert (moments.weight, moments.count) == (80.0, 40)


def test_energy_and_dense_agree_and_dense_has_a_limit(generator):
    c = constraint(generator)
    W = rand(4, 6, g=generator)
    x = (W - c.anchor).reshape(-1)
    torch.testing.assert_close(c.energy(W), 0.5 * x @ c.to_dense() @ x, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        c.apply(W - c.anchor).reshape(-1), c.to_dense() @ x, rtol=1e-10, atol=1e-12
    )
    big = Constraint(None, torch.zeros(5000), torch.zeros(5000))
    with pytest.raises(OptionError, match="limit is 4096"):
        big.to_dense()


def test_merge_is_exact_where_bases_agree(generator):
    a = constraint(generator)
    b = Constraint(a.basis, rand(4, 6, g=generator).square(), rand(4, 6, g=generator))
    merged, lost = merge([a, b])
    torch.testing.assert_close(
        merged.to_dense(), a.to_dense() + b.to_dense(), rtol=1e-10, atol=1e-10
    )
    assert lost < 1e-12
    assert torch.equal(merged.anchor, b.anchor)


def test_merged_spectrum_is_the_exact_diagonal_and_keeps_the_trace(generator):
    parts = [constraint(generator) for _ in range(3)]
    merged, lost = merge(parts)
    K = sum(c.to_dense() for c in parts)
    Q = torch.kron(merged.basis.U_out, merged.basis.U_in)
    torch.testing.assert_close(
        merged.stiffness.reshape(-1), (Q.T @ K @ Q).diagonal(), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(merged.stiffness.sum(), K.trace(), rtol=1e-10, atol=0)
    off = 1 - float(merged.stiffness.square().sum() / K.square().sum())
    assert lost == pytest.approx(off, abs=1e-10)
    assert 0.05 < lost < 1


def test_chain_of_merges_keeps_both_partial_traces_of_the_sum(generator):
    parts = [constraint(generator) for _ in range(5)]
    chain = parts[0]
    for part in parts[1:]:
        chain, _ = merge([chain, part])
    for got, expected in zip(
        chain.partial_traces(),
        (sum(t) for t in zip(*(c.partial_traces() for c in parts), strict=True)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_adding_kronecker_factors_instead_would_not_keep_the_trace(generator):
    parts = [constraint(generator) for _ in range(3)]
    trace = sum(float(c.stiffness.sum()) for c in parts)
    P = sum(c.partial_traces()[0] for c in parts)
    Q = sum(c.partial_traces()[1] for c in parts)
    factored = P.trace() * Q.trace() / (trace / 3)
    assert float(factored) == pytest.approx(3 * trace, rel=1e-9)  # grows with the tasks
    assert float(merge(parts)[0].stiffness.sum()) == pytest.approx(trace, rel=1e-10)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    out=st.integers(1, 6), width=st.integers(1, 9), seed=st.integers(0, 2**31), n=st.integers(1, 4)
)
def test_merge_properties(out, width, seed, n):
    g = torch.Generator().manual_seed(seed)
    parts = [constraint(g, out, width) for _ in range(n)]
    merged, lost = merge(parts)
    assert (merged.stiffness >= 0).all()
    assert 0 <= lost < 1
    total = sum(float(c.stiffness.sum()) for c in parts)
    assert float(merged.stiffness.sum()) == pytest.approx(total, rel=1e-9)
    basis = joint_basis([c.partial_traces() for c in parts])
    assert float(spectrum_in(parts[0], basis).sum()) == pytest.approx(
        float(parts[0].stiffness.sum()), rel=1e-9
    )


def test_merging_quadratics_entry_by_entry(generator):
    k = rand(3, 8, g=generator).square()
    w = rand(3, 8, g=generator)
    merged, _ = merge([Constraint(None, k[i], w[i]) for i in range(3)])
    torch.testing.assert_close(merged.stiffness, k.sum(0), rtol=1e-12, atol=0)
    with pytest.raises(OptionError, match="at least one"):
        merge([])
    with pytest.raises(OptionError, match="different shapes"):
        merge([Constraint(None, k[0], w[0]), Constraint(None, k[0, :3], w[0, :3])])


def test_growth_leaves_new_rows_free(generator):
    c = constraint(generator)
    W = torch.cat([c.anchor, rand(2, 6, g=generator)])
    grown = c.grown_to(W)
    assert float(grown.energy(W)) == pytest.approx(0.0, abs=1e-20)
    moved = W.clone()
    moved[4:] += 1.0
    assert float(grown.energy(moved)) == pytest.approx(0.0, abs=1e-20)
    moved[:4] += 1.0
    assert float(grown.energy(moved)) == pytest.approx(float(c.energy(c.anchor + 1.0)), rel=1e-10)
    with pytest.raises(StateError, match="only new output rows"):
        c.grown_to(rand(4, 7, g=generator))
