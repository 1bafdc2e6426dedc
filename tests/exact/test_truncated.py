"""Truncated sides against dense linear algebra: operators, merge, pull, sketch, moments."""

from __future__ import annotations

import pytest
import torch

from flatcl.core.choice import Ranks
from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis, eigenvectors
from flatcl.core.merge import merge, spectrum_in
from flatcl.core.moments import EigenMoments, KroneckerMoments, OuterProduct
from flatcl.core.pull import TIERS, PullState, by_falling_stiffness, correction, pull_reference
from flatcl.core.shared_basis import merged_basis
from flatcl.core.sketch import RowSketch
from flatcl.core.stiffness import damp, stiffness_from_probe, stiffness_from_training
from flatcl.errors import NonFiniteError, StateError

OUT, IN = 6, 9
SIDES = {"in": (OUT, 3), "out": (2, IN), "both": (2, 3), "of one": (OUT - 1, IN - 1)}


def rand(*shape, g):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def columns(d, r, g):
    return torch.linalg.qr(rand(d, d, g=g))[0][:, :r].contiguous()


def constraint(g, sides, decades=2.0, *, ordered=False):
    """Random; the remainder of an ordered one is less stiff than any direction kept."""
    basis = KroneckerBasis.of_sides(columns(OUT, sides[0], g), columns(IN, sides[1], g))
    shape = basis.coordinates
    k = 10 ** (decades * (torch.rand(shape, generator=g, dtype=torch.float64) - 0.5))
    if ordered and basis.pooled_out:
        k[-1] = 0.1 * k[:-1].amin(0)
    if ordered and basis.pooled_in:
        k[:, -1] = 0.1 * k[:, :-1].amin(1)
    return by_falling_stiffness(Constraint(basis, k, rand(OUT, IN, g=g)))


def projectors(U):
    """Of each coordinate of a side, written out: u uᵀ for those kept, the rest together."""
    found = [torch.outer(u, u) for u in U.T]
    if U.shape[1] < U.shape[0]:
        found.append(torch.eye(len(U), dtype=U.dtype) - U @ U.T)
    return found


def dense(c):
    out, width = projectors(c.basis.U_out), projectors(c.basis.U_in)
    return sum(
        c.stiffness[i, j] * torch.kron(P, Q) for i, P in enumerate(out) for j, Q in enumerate(width)
    )


def dense_diagonal(K, basis):
    """Mean of K over the directions of each block of a basis."""
    return torch.tensor(
        [
            [float(torch.kron(P, Q).mul(K).sum() / (P.trace() * Q.trace()))
             for Q in projectors(basis.U_in)]
            for P in projectors(basis.U_out)
        ],
        dtype=torch.float64,
    )  # fmt: skip


def close(a, b, rtol=1e-10, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_operator_energy_traces_and_norm_are_those_of_the_projectors(generator, sides):
    c = constraint(generator, sides)
    K, W = dense(c), rand(OUT, IN, g=generator)
    x = (W - c.anchor).reshape(-1)
    close(c.to_dense(), K)
    close(c.energy(W), 0.5 * x @ K @ x)
    close(c.apply(W - c.anchor).reshape(-1), K @ x)
    close(c.squared_norm(), K.square().sum())
    blocks = K.reshape(OUT, IN, OUT, IN)
    P, Q = c.partial_traces()
    close(P, blocks.diagonal(dim1=1, dim2=3).sum(-1))
    close(Q, blocks.diagonal(dim1=0, dim2=2).sum(-1))
    close(c.basis.unproject(c.basis.project(W)), W)
    close(c.basis.entries(c.stiffness).reshape(-1), K.diagonal())


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_a_change_of_basis_keeps_each_block_s_mean_and_the_trace(generator, sides):
    c = constraint(generator, sides)
    K = dense(c)
    others = [constraint(generator, s).basis for s in (*SIDES.values(), (OUT, IN))]
    for basis in others:
        found = spectrum_in(c, basis)
        close(found, dense_diagonal(K, basis))
        out, width = basis.directions()
        close(out @ found @ width, K.trace())
        for rows in basis.overlaps(c.basis):
            close(rows.sum(1), torch.ones(len(rows), dtype=torch.float64))
    alone = Constraint(None, rand(OUT, IN, g=generator).square(), c.anchor)
    close(spectrum_in(alone, c.basis), dense_diagonal(alone.to_dense(), c.basis))
    close(spectrum_in(c, None).reshape(-1), K.diagonal())


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_merging_takes_the_leading_directions_of_the_traces_and_keeps_the_trace(generator, sides):
    parts = [constraint(generator, sides, ordered=True) for _ in range(3)]
    merged, lost = merge(parts)
    K = sum(dense(c) for c in parts)
    for U, trace in zip(
        (merged.basis.U_out, merged.basis.U_in),
        (sum(t) for t in zip(*(c.partial_traces() for c in parts), strict=True)),
        strict=True,
    ):
        # Only what exceeds the remainder is sketched: a multiple of the identity turns nothing.
        close(U, eigenvectors(trace)[:, : U.shape[1]], rtol=1e-6, atol=1e-6)
    close(merged.stiffness, dense_diagonal(K, merged.basis))
    close(dense(merged).trace(), K.trace())
    off = 1 - float(dense(merged).square().sum() / K.square().sum())
    assert lost == pytest.approx(off, abs=1e-10)
    assert 0.01 < lost < 1
    same, nothing = merge(parts[:1])
    assert nothing < 1e-9
    close(dense(same), dense(parts[0]), rtol=1e-8, atol=1e-8)


def test_nothing_cut_is_the_full_basis_bit_for_bit(generator):
    U, V = columns(OUT, OUT, generator), columns(IN, IN, generator)
    whole, full = KroneckerBasis.of_sides(U, V), KroneckerBasis(U, V)
    assert not whole.truncated
    k, W = rand(OUT, IN, g=generator).square(), rand(OUT, IN, g=generator)
    a, b = (Constraint(basis, k, torch.zeros_like(W)) for basis in (whole, full))
    assert torch.equal(a.basis.project(W), U.T @ (W @ V))
    assert torch.equal(a.basis.unproject(W), (U @ W) @ V.T)
    assert torch.equal(a.energy(W), b.energy(W))
    assert a.stiffness.shape == (OUT, IN)


def pull(c, W, metric, strength, state=None, shares=(1.0,) * TIERS):
    state = state or PullState()
    return correction(c, W, metric, strength=strength, state=state, shares=shares)


def diagonal_metric(g):
    return 10 ** (2 * torch.rand(OUT, IN, generator=g, dtype=torch.float64) - 2)


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e5])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_pull_against_the_dense_solve(generator, sides, strength, monkeypatch):
    monkeypatch.setattr("flatcl.core.pull._TOLERANCE", 1e-12)
    monkeypatch.setattr("flatcl.core.pull._ITERATIONS", 2000)
    c, W = constraint(generator, sides), rand(OUT, IN, g=generator)
    close(pull(c, W, 0.3, strength), pull_reference(c, W, 0.3, strength=strength))
    D = diagonal_metric(generator)
    expected = pull_reference(c, W, D, strength=strength)
    close(pull(c, W, D, strength), expected, rtol=1e-6, atol=1e-8)
    free = Constraint(c.basis, torch.zeros_like(c.stiffness), c.anchor)
    for metric in (0.3, D):
        assert torch.equal(W - pull(free, W, metric, strength), W)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_energy_never_rises_however_few_iterations(generator, sides, iterations, monkeypatch):
    monkeypatch.setattr("flatcl.core.pull._ITERATIONS", iterations)
    c, D = constraint(generator, sides), diagonal_metric(generator)
    state = PullState()
    for number in range(6):
        W = c.anchor + rand(OUT, IN, g=generator)
        y = pull(c, W, D, 30.0, state, [1.0] * (TIERS if number % 2 == 0 else 2))
        assert float(c.energy(W - y)) <= float(c.energy(W)) * (1 + 1e-12)
        objective = 0.5 * float((y * y / D).sum()) + 30.0 * float(c.energy(W - y))
        assert objective <= 30.0 * float(c.energy(W)) * (1 + 1e-12)


@pytest.mark.parametrize("pooled", [1e-6, 1.0], ids=["flat rest", "stiff rest"])
def test_the_pooled_direction_waits_for_its_tier_and_makes_up_for_it(generator, pooled):
    c = constraint(generator, (OUT, 3))
    k = torch.tensor([2.0, 0.5, 0.01, pooled], dtype=torch.float64).expand(OUT, 4).contiguous()
    c = Constraint(c.basis, k, c.anchor)
    W, state = rand(OUT, IN, g=generator), PullState()
    shares = [1.0, 2.0, 4.0, 8.0, 16.0]
    y = pull(c, W, 1.0, 1.0, state, shares)
    # Columns with r above ½ come at every pull, and all before a stiff remainder with it.
    assert state.ends[:2] == ([1, 2] if pooled < 1 else [4, 4])
    assert state.ends[-1] == 4
    tier = [next(j for j, end in enumerate(state.ends) if i < end) for i in range(4)]
    r = k * torch.tensor([shares[j] for j in tier], dtype=torch.float64)
    x = W - c.anchor
    whole = Constraint(c.basis, r / (1 + r), c.anchor)
    close(y, whole.apply(x))
    quick = pull(c, W, 1.0, 1.0, state, [1.0])
    r = torch.where(torch.tensor([j == 0 for j in tier]), k, 0.0)
    close(quick, Constraint(c.basis, r / (1 + r), c.anchor).apply(x))


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_new_rows_are_free(generator, sides):
    c = constraint(generator, sides)
    W = torch.cat([c.anchor, rand(3, IN, g=generator)])
    grown = c.grown_to(W)
    moved = W.clone()
    moved[OUT:] += 1.0
    assert float(grown.energy(moved)) == pytest.approx(0.0, abs=1e-18)
    moved[:OUT] += rand(OUT, IN, g=generator)
    assert float(grown.energy(moved)) == pytest.approx(float(c.energy(moved[:OUT])), rel=1e-10)
    close(dense(grown).trace(), dense(c).trace())
    with pytest.raises(StateError, match="only new output rows"):
        c.grown_to(rand(OUT, IN + 1, g=generator))


def test_the_sketch_is_exact_while_its_rows_span_what_was_added(generator):
    d, r = 400, 10
    basis = columns(d, 100, generator)  # more rows than are kept, of a rank that is not
    sketch, S = RowSketch(d, r, basis), torch.zeros(d, d, dtype=torch.float64)
    scales = torch.logspace(0, -3, 100, dtype=torch.float64)
    for n in (7, 300, 1, 500):
        X = (rand(n, 100, g=generator) * scales) @ basis.T
        sketch.add(X)
        S += X.T @ X
    old = columns(d, 4, generator), torch.tensor([90.0, 9.0, 3.0, 2.0, 0.5], dtype=torch.float64)
    sketch.add_spectrum(*old)
    S += (old[0] * old[1][:4]) @ old[0].T
    S += 0.5 * (torch.eye(d, dtype=torch.float64) - old[0] @ old[0].T)
    close(sketch.trace, S.trace())
    close(sketch.directions(), eigenvectors(S)[:, :r], rtol=1e-7, atol=1e-8)
    half = sketch.scaled(0.5)
    close(half.trace, 0.5 * S.trace())
    close(half.directions(), sketch.directions(), rtol=1e-7, atol=1e-8)


def test_a_sketch_of_more_than_it_keeps_is_near_and_one_of_less_is_filled_up(generator):
    d, r = 600, 10
    X = rand(3000, d, g=generator) * torch.arange(1, d + 1, dtype=torch.float64) ** -1.0
    sketch = RowSketch(d, r, X)
    for part in X.split(100):
        sketch.add(part)
    found, best = sketch.directions(), eigenvectors(X.T @ X)[:, :r]
    assert float((X @ found).square().sum() / (X @ best).square().sum()) > 1 - 1e-4
    close(sketch.trace, X.square().sum())
    few = RowSketch(d, r, X)
    few.add(X[:3])
    U = few.directions()
    close(U.T @ U, torch.eye(r, dtype=torch.float64))
    close(U[:, :3] @ (U[:, :3].T @ X[:3].T), X[:3].T)
    few.add(torch.full((1, d), float("nan"), dtype=torch.float64))
    with pytest.raises(NonFiniteError, match="not finite"):
        few.directions()


def batches(g, n=30, kind="independent"):
    left = torch.linspace(2.0, 0.1, OUT, dtype=torch.float64)
    right = torch.linspace(3.0, 0.05, IN, dtype=torch.float64)
    for _ in range(n):
        product = OuterProduct(
            rand(4, OUT, g=g) * left, rand(4, IN, g=g) * right, kind == "independent"
        )
        yield product.dense() if kind == "dense" else product


@pytest.mark.parametrize("kind", ["independent", "factors", "dense"])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_both_passes_find_the_full_one_s_leading_part(generator, sides, kind):
    seed = generator.get_state()
    like = torch.zeros(OUT, IN, dtype=torch.float64)
    ranks = Ranks(*(r if r < d else None for r, d in zip(sides, (OUT, IN), strict=True)))
    moments = {True: KroneckerMoments.zeros(like, ranks), False: KroneckerMoments.zeros(like)}
    bases = {}
    for truncated, sums in moments.items():
        generator.set_state(seed)
        for G in batches(generator, kind=kind):
            sums.add(G)
        bases[truncated] = merged_basis(None, sums, damping=0.3)
    few, full = bases[True], bases[False]
    assert few.coordinates == tuple(r + (r < d) for r, d in zip(sides, (OUT, IN), strict=True))
    close(few.U_out, full.U_out[:, : sides[0]], rtol=1e-7, atol=1e-8)
    close(few.U_in, full.U_in[:, : sides[1]], rtol=1e-7, atol=1e-8)
    found = {}
    for truncated, basis in bases.items():
        generator.set_state(seed)
        second = EigenMoments.zeros(basis, like)
        for G in batches(generator, kind=kind):
            second.add(G, weight=2.0)
        found[truncated] = second
    k, whole = (stiffness_from_probe(found[t], 30) for t in (True, False))
    close(k[: sides[0], : sides[1]], whole[: sides[0], : sides[1]], rtol=1e-6, atol=1e-8)
    expected = spectrum_in(Constraint(full, whole, like), few)
    close(k, expected, rtol=1e-6, atol=1e-8)
    damped = damp(k, 0.3, few)
    close(damped, spectrum_in(Constraint(full, damp(whole, 0.3), like), few), rtol=1e-6, atol=1e-8)
    if kind != "independent":
        k, whole = (stiffness_from_training(found[t]) for t in (True, False))
        close(k, spectrum_in(Constraint(full, whole, like), few), rtol=1e-6, atol=1e-8)


def test_entry_by_entry_rows_of_their_own_are_squared_one_by_one(generator):
    (G,) = batches(generator, n=1)
    moments = EigenMoments.zeros(None, torch.zeros(OUT, IN, dtype=torch.float64))
    moments.add(G)
    expected = sum(torch.outer(d, a).square() for d, a in zip(G.D, G.A, strict=True))
    close(stiffness_from_probe(moments, 1), expected)


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_the_shared_basis_counts_the_earlier_tasks_and_damping_as_the_dense_traces_do(
    generator, sides
):
    old = constraint(generator, sides, ordered=True)
    like = torch.zeros(OUT, IN, dtype=torch.float64)
    ranks = Ranks(*(r if r < d else None for r, d in zip(sides, (OUT, IN), strict=True)))
    sums, full = KroneckerMoments.zeros(like, ranks), KroneckerMoments.zeros(like)
    for G in batches(generator, n=5):
        sums.add(G)
        full.add(G)
    found = merged_basis(old, sums, damping=0.6)
    M_out, M_in = full.means()
    P, Q = old.partial_traces()
    P = P + M_out + 0.6 * M_out.trace() / OUT * torch.eye(OUT, dtype=torch.float64)
    Q = Q + 1.6 * M_in
    close(found.U_out, eigenvectors(P)[:, : sides[0]], rtol=1e-6, atol=1e-7)
    close(found.U_in, eigenvectors(Q)[:, : sides[1]], rtol=1e-6, atol=1e-7)
