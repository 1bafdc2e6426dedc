"""The metric of every optimiser: what a constant gradient moves, and where pulls then end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.engine import Landscape
from flatcl.core.layers import matrix_views
from flatcl.core.metric import StepMetric
from flatcl.core.options import LDCOptions
from flatcl.core.pull import TIERS, by_falling_stiffness
from flatcl.core.schedule import PullSchedule

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "centred": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
}


@pytest.mark.parametrize("steps", [1, 3, 400])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_metric_times_gradient_is_the_step(name, steps, generator, monkeypatch):
    """W moves by −D g in a step, g constant."""
    monkeypatch.setattr("flatcl.core.metric._FLOOR", 1e-9)
    if steps < 400 and name in ("momentum", "nesterov", "rmsprop", "nadam", "adadelta"):
        pytest.skip("its averages have not filled: D is what a gradient moves in the end")
    layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](layer.parameters())
    (unit,), parameters = matrix_views(layer), dict(layer.named_parameters())
    g = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    for _ in range(steps):
        noise = 1e-3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
        layer.weight.grad = g + (noise if name == "centred" else 0.0)
        before = layer.weight.detach().clone()
        optimizer.step()
    metric = StepMetric(optimizer)
    D = metric.read(unit, parameters, metric.rates())
    moved = before - layer.weight.detach()
    # Torch counts steps in float32; NAdam's weights still change a little after 400 steps, and so
    # do the averages of RMSprop and Adadelta, of which D holds the latest.
    loose = {"nadam": 1e-2, "rmsprop": 1e-3, "adadelta": 1e-2}.get(name, 2e-5)
    torch.testing.assert_close(moved, D * layer.weight.grad, rtol=loose, atol=0)


def test_changing_rate_and_momentum_count_as_they_were():
    """OneCycle moves both: the sum over the steps is what a constant gradient is moved by."""
    layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=20_000)
    metric, total = StepMetric(optimizer), 0.0
    before = layer.weight.detach().clone()
    for step in range(5_000):
        layer.weight.grad = torch.ones(3, 4, dtype=torch.float64)
        optimizer.step()
        total += metric.rates()[0]
        cycle.step()
        if step == 999:
            middle, before = total, layer.weight.detach().clone()
    moved = before - layer.weight.detach()
    torch.testing.assert_close(moved, torch.full_like(moved, total - middle), rtol=3e-3, atol=0)
    assert (
        abs((total - middle) / (4000 * metric.rates()[0]) - 1.0) > 0.1
    )  # neither stood still meanwhile


CASES = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8),
    "groups": lambda p: torch.optim.SGD([{"params": p[:1]}, {"params": p[1:], "lr": 0.05}], lr=0.1),
    "decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=3e-3, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.3),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2, betas=(0.9, 0.99)),
}
SCHEDULES = {
    "none": None,
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1000, eta_min=1e-5),
    "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=1000),
}


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("momentum", "onecycle"),
        ("groups", "cosine"),
        ("decay", "none"),
        ("rmsprop", "cosine"),
        ("adagrad", "none"),
        ("radam", "cosine"),
    ],
)
def test_every_optimiser_ends_at_the_minimiser_of_the_sum(name, schedule, generator, monkeypatch):
    """½‖A w − b‖² (+ ½ λ‖w‖²) and the constraint of an earlier task: the answer is known."""
    monkeypatch.setattr(PullSchedule, "due", lambda self: TIERS)
    monkeypatch.setattr("flatcl.core.pull._TOLERANCE", 1e-6)
    monkeypatch.setattr("flatcl.core.metric._FLOOR", 1e-9)
    layer = nn.Linear(3, 3, dtype=torch.float64)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    optimizer = CASES[name](list(layer.parameters()))
    scheduler = SCHEDULES[schedule](optimizer) if SCHEDULES[schedule] else None
    landscape = Landscape(layer, optimizer, options=LDCOptions(strength=2.0, interval=1))
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    out = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    basis = KroneckerBasis.from_moments(out @ out.T, root @ root.T)
    k = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    anchor = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    landscape.constraints["weight"] = by_falling_stiffness(Constraint(basis, k, anchor))
    K = landscape.constraints["weight"].to_dense()
    landscape.begin_task()
    for _ in range(1000):
        optimizer.zero_grad()
        (0.5 * (layer(x) - target).square().sum(1).mean()).backward()
        optimizer.step()
        landscape.step()
        if scheduler:
            scheduler.step()
    ones = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], dim=1)
    H = torch.kron(torch.eye(3, dtype=torch.float64), ones.T @ ones / 60)
    H = H + optimizer.param_groups[0].get("weight_decay", 0.0) * torch.eye(12)
    b = (target.T @ ones / 60).reshape(-1) + 2.0 * K @ anchor.reshape(-1)
    expected = torch.linalg.solve(H + 2.0 * K, b).reshape(3, 4)
    found = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    # Steps of the adaptive ones remain; under OneCycle the buffer lags behind the momentum.
    plain = isinstance(optimizer, torch.optim.SGD) and schedule != "onecycle"
    loose = 1e-5 if plain else 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=loose)
    alone = torch.linalg.solve(H, (target.T @ ones / 60).reshape(-1)).reshape(3, 4)
    assert float((expected - alone).abs().max()) > 0.1
