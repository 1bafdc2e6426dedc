"""The energy of dual moves in a constraint."""

from __future__ import annotations

import pytest
import torch

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.duality import constraint as module
from flatcl.duality import dual_energies, dual_moves
from flatcl.errors import DataError


def a_constraint(kind: str) -> Constraint:
    torch.manual_seed(0)
    anchor = torch.randn(4, 6, dtype=torch.float64)
    if kind == "entries":
        return Constraint(None, torch.rand(4, 6, dtype=torch.float64), anchor)
    drawn = [torch.randn(n, n, dtype=torch.float64) for n in (4, 6)]
    sides = [torch.linalg.qr(matrix).Q.contiguous() for matrix in drawn]
    if kind == "truncated":
        sides[1] = sides[1][:, :3].contiguous()
    basis = KroneckerBasis.of_sides(*sides)
    return Constraint(basis, torch.rand(basis.coordinates, dtype=torch.float64), anchor)


@pytest.mark.parametrize("kind", ["complete", "truncated", "entries"])
def test_it_is_the_dense_quadratic_form(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENTRIES", 50)  # in parts
    held = a_constraint(kind)
    a, b = torch.randn(2, 9, 6, dtype=torch.float64)
    a[3] = 0.0
    moves = dual_moves(held.anchor, a, b)
    found = dual_energies(moves, held)
    dense = moves.dense()
    wanted = 0.5 * torch.einsum("kp,pq,kq->k", dense, held.to_dense(), dense)
    assert torch.allclose(found[moves.kept], wanted[moves.kept], rtol=1e-12, atol=1e-12)
    assert found.isnan().tolist() == (~moves.kept).tolist()


def test_a_constraint_of_another_layer_is_refused() -> None:
    moves = dual_moves(torch.ones(2, 3), torch.ones(5, 3), torch.zeros(5, 3))
    with pytest.raises(DataError, match=r"\(4, 6\)"):
        dual_energies(moves, a_constraint("complete"))
