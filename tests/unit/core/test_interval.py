"""How far apart pulls are: the share of directions that one takes back, and what follows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.matrix_cells import TRAININGS, Cell, train
from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.core.pull import TIERS, PullState, correction, taken_back

OUT, IN = 4, 6
FACTORS = (1.0, 0.5, 0.125)


def orthonormal(n, kept, generator):
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return q[:, :kept].contiguous()


@pytest.mark.parametrize("metric", ["number", "tensor"])
@pytest.mark.parametrize("kept", [(OUT, IN), (2, IN), (OUT, 3), (2, 3), None])
def test_directions_taken_back_are_those_of_the_dense_pull(kept, metric, generator):
    """Σ r / (1 + r) is the trace of 1 − (1 + γ sD K)⁻¹."""
    basis, shape = None, (OUT, IN)
    if kept is not None:
        sides = orthonormal(OUT, kept[0], generator), orthonormal(IN, kept[1], generator)
        basis = KroneckerBasis.of_sides(*sides)
        shape = basis.coordinates
    k = 10 ** (4 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 2)
    constraint = Constraint(basis, k, torch.zeros(OUT, IN, dtype=torch.float64))
    # A metric that is the same everywhere, in either form; an entry-by-entry one may be any.
    D = torch.full((OUT, IN), 0.3, dtype=torch.float64)
    if basis is None and metric == "tensor":
        D = torch.rand(OUT, IN, generator=generator, dtype=torch.float64)
    given, state = (0.3 if metric == "number" else D), PullState()
    weight = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    correction(constraint, weight, given, strength=2.0, state=state, shares=[1.0] * TIERS)
    found, directions = taken_back(constraint, given, 2.0, state, FACTORS)
    assert directions == OUT * IN
    K, one = constraint.to_dense(), torch.eye(OUT * IN, dtype=torch.float64)
    for factor, number in zip(FACTORS, found, strict=True):
        M = 2.0 * factor * D.reshape(-1, 1) * K
        expected = (one - torch.linalg.inv(one + M)).trace()
        torch.testing.assert_close(number, expected, rtol=1e-9, atol=0)


def quadratic_task(rate, steps, **options):
    """A linear layer under a constraint with r = ``rate`` a step in a half of its directions."""
    layer = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    landscape = Landscape(layer, optimizer, options=LDCOptions(strength=1.0, **options))
    k = torch.zeros(4, 4, dtype=torch.float64)
    k[:, :2] = 1.0
    one = torch.eye(4, dtype=torch.float64)
    constraint = Constraint(KroneckerBasis(one, one), k, torch.zeros_like(k))
    landscape.constraints["weight"] = constraint
    landscape.begin_task()
    pulls = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        layer.weight.sum().backward()
        optimizer.step()
        landscape.step()
        if landscape.task.schedule.waiting == 0:
            pulls.append(step)
    return pulls


@pytest.mark.parametrize(
    ("share_at_20", "interval"),  # 0.5 · r / (1 + r) of directions; r falls with the interval
    [(0.059, 20), (0.08, 10), (0.15, 5), (0.35, 1), (0.49, 1)],
)
def test_pulls_come_as_often_as_they_would_take_back_too_much(share_at_20, interval):
    r = share_at_20 / (0.5 - share_at_20)
    pulls = quadratic_task(r / 20, 60)
    assert pulls == [20, *range(20 + interval, 61, interval)]
    chosen = r * interval / 20
    assert 0.5 * chosen / (1 + chosen) <= 0.06 or interval == 1
    if interval < 20:
        longer = 2 * chosen
        assert 0.5 * longer / (1 + longer) > 0.06


def test_a_shorter_interval_that_was_asked_for_is_the_longest():
    assert quadratic_task(1e-6, 30, interval=7) == [7, 14, 21, 28]
    assert quadratic_task(10.0, 12, interval=7) == [7, 8, 9, 10, 11, 12]


def test_a_rate_that_falls_lets_pulls_be_rare_again():
    layer = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    landscape = Landscape(layer, optimizer, options=LDCOptions(strength=1.0))
    one = torch.eye(4, dtype=torch.float64)
    landscape.constraints["weight"] = Constraint(KroneckerBasis(one, one), one + 1, one)
    landscape.begin_task()
    seen = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1.0 if step < 100 else 1e-5
        optimizer.zero_grad()
        layer.weight.sum().backward()
        optimizer.step()
        landscape.step()
        seen.append(landscape.task.schedule.interval)
    assert seen[19:100] == [1] * 81
    assert seen[-1] == 20


def test_at_low_rates_nothing_is_changed(monkeypatch):
    def weights():
        training = replace(TRAININGS["mlp"], epochs=2, lr=1e-4)
        run = train(Cell("mlp", "single head", "SGD"), training, LDCOptions())
        return torch.cat([p.detach().reshape(-1) for p in run.network.parameters()])

    found = weights()
    monkeypatch.setattr("flatcl.core.schedule._SHARE", math.inf)
    assert torch.equal(found, weights())


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_at_high_rates_the_new_task_is_learned(network, monkeypatch):
    """Pulls that are too far apart take it back; those at every step do not."""

    def accuracies(interval=20):
        training = replace(TRAININGS[network], lr=0.05)
        options = LDCOptions(interval=interval)
        run = train(Cell(network, "single head", "SGD"), training, options)
        return run.test(0)["accuracy"], run.test(1)["accuracy"]

    old, new = accuracies()
    assert old > 97
    assert new > accuracies(1)[1] - 4
    monkeypatch.setattr("flatcl.core.schedule._SHARE", math.inf)
    assert new > accuracies()[1] + 10


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_head_that_is_first_used_in_mid_task_is_pulled(optimizer):
    torch.manual_seed(0)
    body, heads = nn.Linear(6, 8), nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
    model = nn.ModuleDict({"body": body, "heads": heads})
    made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    opt = made(model.parameters(), lr=0.01)
    second = False

    def forward(batch):
        z = torch.relu(body(batch[0]))
        return heads[0](z) + (heads[1](z) if second else 0.0)

    landscape = Landscape(model, opt, forward=forward)
    x = torch.randn(64, 6)
    y = x[:, :3].argmax(1)
    for task in range(2):
        landscape.begin_task()
        before = heads[1].weight.detach().clone()
        for step in range(60):
            second = task == 0 or step >= 30
            opt.zero_grad()
            (F.cross_entropy(forward([x]), y) + landscape.rehearsal()).backward()
            opt.step()
            landscape.step()
        if task:
            assert landscape.task.schedule.states["heads.1.weight"].ends
            assert not torch.equal(heads[1].weight, before)
        landscape.end_task([x])
