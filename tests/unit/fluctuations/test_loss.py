"""The cross-entropy of a sample: torch's where that has digits, else the closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.nn import functional

from flatcl.fluctuations.flatness import flatness
from flatcl.fluctuations.loss import cross_entropy
from flatcl.fluctuations.surface import LossSurface


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_it_is_torch_s_with_gradient_and_hessian(scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    z = (scale * torch.randn(6, 4, generator=g, dtype=torch.float64)).requires_grad_()
    y = torch.arange(6) % 4
    ours, theirs = cross_entropy(z, y), functional.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    got, wanted = (torch.autograd.grad(one.sum(), z)[0] for one in (ours, theirs))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    got = hessian(lambda z: cross_entropy(z, y).sum(), z)
    wanted = hessian(lambda z: functional.cross_entropy(z, y, reduction="sum"), z)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("margin", [20.0, 41.0, 300.0, 700.0])
def test_a_small_loss_keeps_its_digits(margin: float) -> None:
    z = torch.tensor([[margin, 0.0, 0.0], [5.0, margin + 5.0, 5.0]], dtype=torch.float64)
    z.requires_grad_()
    loss = cross_entropy(z, torch.tensor([0, 1]))
    wanted = math.log1p(2.0 * math.exp(-margin))
    assert loss.tolist() == pytest.approx([wanted, wanted], rel=1e-12)
    (slope,) = torch.autograd.grad(loss.sum(), z)
    assert slope[0].tolist() == pytest.approx([-wanted, wanted / 2, wanted / 2], rel=1e-8)


@pytest.mark.parametrize("margin", [-41.0, -300.0])
def test_a_large_loss_is_the_margin(margin: float) -> None:
    z = torch.tensor([[margin, 0.0]], dtype=torch.float64)
    assert cross_entropy(z, torch.tensor([0])).item() == pytest.approx(-margin, rel=1e-15)


def test_what_is_learned_to_the_last_bit_still_has_a_flatness() -> None:
    """L = ln(1 + e^−w) at w = 60 is e times as high at w = 59."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[60.0], [0.0]]))
    surface = LossSurface(model, torch.ones(3, 1), torch.zeros(3, dtype=torch.long))
    found = flatness(surface, torch.tensor([[1.0, 0.0]], dtype=torch.float64), tolerance=1e-9)
    assert found.left.item() == pytest.approx(1.0, rel=1e-6)
    assert found.censored.tolist() == [[False, True]]
