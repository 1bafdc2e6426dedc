"""LDC as published against closed forms and dense linear algebra, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flatcl.core.lowrank import LowRankConstraint, merge_low_rank
from flatcl.errors import OptionError, StateError
from flatcl.fluctuations import LossSurface, flatness

P = 12


def low_rank(k: int, seed: int, size: int = P) -> LowRankConstraint:
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(size, k, generator=g, dtype=torch.float64)).Q.T
    kappa = torch.rand(k, generator=g, dtype=torch.float64) + 0.1
    return LowRankConstraint(Q, kappa, torch.randn(size, generator=g, dtype=torch.float64))


def vector(seed: int, size: int = P) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_on_a_quadratic_with_all_directions_the_penalty_is_the_loss_in_hidden_units() -> None:
    """λ Σ θ²/F² = λ (L(w) − L₀) / (4 (e − 1) L₀)."""
    d, L0, strength = 5, 0.3, 2.0
    g = torch.Generator().manual_seed(0)
    A = torch.randn(d, d, generator=g, dtype=torch.float64)
    H = A @ A.T + 0.1 * torch.eye(d, dtype=torch.float64)

    class Quadratic(nn.Module):
        w1: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(vector(3, d))
            self.register_buffer("w1", self.w.detach().clone())

        def forward(self, x: Tensor) -> Tensor:
            z = self.w - self.w1
            return (L0 + 0.5 * z @ H @ z).expand(len(x))

    model = Quadratic()
    surface = LossSurface(
        model, torch.zeros(2, 1), torch.zeros(2), loss=lambda out, y: out, dtype=torch.float64
    )
    vectors = torch.linalg.eigh(H).eigenvectors.T
    width = flatness(surface, vectors, tolerance=1e-9, reach=100.0).width
    held = LowRankConstraint(vectors, 2.0 / width.square(), model.w.detach().clone())
    w = vector(4, d)
    z = w - model.w.detach()
    rise = float(0.5 * z @ H @ z)
    expected = strength * rise / (4.0 * (math.e - 1.0) * L0)
    assert strength * float(held.energy(w)) == pytest.approx(expected, rel=1e-7)


def test_energy_is_the_dense_quadratic() -> None:
    held, w = low_rank(4, 0), vector(1)
    x = w - held.anchor
    assert float(held.energy(w)) == pytest.approx(float(0.5 * x @ held.to_dense() @ x), rel=1e-12)


@pytest.mark.parametrize("metric", ["scalar", "diagonal", "some not stepped"])
def test_the_pull_is_the_dense_proximal_step(metric: str) -> None:
    held, w, strength = low_rank(4, 0), vector(1), 7.0
    D: float | Tensor = 0.3
    if metric != "scalar":
        D = vector(2).abs() + 0.01
        if metric == "some not stepped":
            D[::3] = 0.0
    x = w - held.anchor
    full = torch.as_tensor(D, dtype=torch.float64).expand(P)
    A = torch.eye(P, dtype=torch.float64) + strength * full[:, None] * held.to_dense()
    y = held.correction(w, D, strength=strength)
    torch.testing.assert_close(y, x - torch.linalg.solve(A, x), rtol=1e-10, atol=1e-12)


def test_strength_zero_corrects_nothing_and_a_huge_one_reaches_the_valley() -> None:
    held, w = low_rank(4, 0), vector(1)
    assert not held.correction(w, 0.3, strength=0.0).any()
    pulled = w - held.correction(w, vector(2).abs() + 0.01, strength=1e12)
    assert float(held.energy(pulled)) < 1e-20


def test_a_merge_is_the_sum_of_the_quadratics_up_to_a_constant() -> None:
    parts = [low_rank(3, 0), low_rank(4, 5), low_rank(2, 9)]
    merged = parts[0]
    for part in parts[1:]:
        merged, lost = merge_low_rank(merged, part, cap=9)
        assert lost < 1e-12
    torch.testing.assert_close(
        merged.to_dense(), sum((p.to_dense() for p in parts), torch.zeros(P, P).double())
    )
    Q = merged.directions
    torch.testing.assert_close(Q @ Q.T, torch.eye(len(Q), dtype=Q.dtype), rtol=0, atol=1e-10)
    points = [vector(s) for s in (20, 21, 22)]
    gaps = [sum(p.energy(w) for p in parts) - merged.energy(w) for w in points]
    torch.testing.assert_close(torch.stack(gaps), gaps[0].expand(3), rtol=1e-10, atol=1e-10)


def test_directions_that_two_tasks_share_are_held_once() -> None:
    a = low_rank(3, 0)
    b = LowRankConstraint(a.directions, 2.0 * a.stiffness, a.anchor + 1.0)
    merged, _ = merge_low_rank(a, b, cap=9)
    assert len(merged.stiffness) == 3
    torch.testing.assert_close(merged.to_dense(), 3.0 * a.to_dense())


def test_the_cap_keeps_the_stiffest_and_says_what_it_lost() -> None:
    a, b = low_rank(3, 0), low_rank(4, 5)
    merged, lost = merge_low_rank(a, b, cap=2)
    values = torch.linalg.eigvalsh(a.to_dense() + b.to_dense()).flip(0)
    torch.testing.assert_close(merged.stiffness, values[:2])
    assert lost == pytest.approx(float(values[2:].sum() / values.sum()), rel=1e-9)
    with pytest.raises(OptionError, match="cap"):
        merge_low_rank(a, b, cap=0)


def test_new_outputs_and_new_parameters_are_free() -> None:
    old = {"a": torch.Size([2, 3]), "b": torch.Size([2])}
    held = low_rank(3, 0, size=8)
    now = {"a": vector(1, 12).reshape(4, 3), "new": vector(2, 5), "b": vector(3, 4)}
    grown = held.grown_to(old, now)
    x = vector(7, 8)
    moved = {name: p.clone() for name, p in now.items()}
    moved["a"][:2] = (held.anchor + x)[:6].reshape(2, 3)
    moved["b"][:2] = (held.anchor + x)[6:]
    moved["a"][2:] += 5.0
    moved["new"] -= 3.0
    w = torch.cat([p.reshape(-1) for p in moved.values()])
    assert float(grown.energy(w)) == pytest.approx(float(held.energy(held.anchor + x)), rel=1e-12)
    with pytest.raises(StateError, match="'b'"):
        held.grown_to(old, {"a": now["a"]})
