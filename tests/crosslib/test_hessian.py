"""Hessian-vector products against curvlinops, which goes reverse over reverse on the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatcl.fluctuations.surface import LossSurface

curvlinops = pytest.importorskip("curvlinops", reason="comes with flatcl[crosslib]")

PERCEPTRON = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)]
CONVOLUTION = [nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Softplus()]


@pytest.mark.parametrize(
    ("layers", "block"),
    [
        (PERCEPTRON, "*"),
        (PERCEPTRON, "0.weight"),
        ([*CONVOLUTION, nn.Flatten(), nn.Linear(6, 4)], "*"),
    ],
)
@pytest.mark.parametrize("batch", [7, 500])
def test_hessian_vector_products(layers, block, batch, generator):
    torch.manual_seed(0)
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.arange(30) % 4
    model = nn.Sequential(*layers).double()
    model(2.0 * x + 1.0)  # running statistics other than the first
    model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    parameters = [p for name, p in model.named_parameters() if block in {"*", name}]
    data = [(x[:10], y[:10]), (x[10:], y[10:])]
    oracle = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, data)
    surface = LossSurface(model, x, y, parameters=block, batch=batch)
    vectors = torch.randn(4, surface.size, generator=generator, dtype=torch.float64)
    found = surface.hessian_products(surface.reference, vectors)
    expected = (oracle @ vectors.T).T
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
