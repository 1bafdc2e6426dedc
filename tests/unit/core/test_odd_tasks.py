"""Tasks unlike others: batches of several shapes, parts that do not learn, exceptions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flatcl.core.measure
from flatcl.core.budget import BudgetWatch
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.core.stiffness import label_directions
from flatcl.errors import NonFiniteError, StateError


def blobs(seed, n=160):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=g)
    return torch.randn(n, 6, generator=g) + 2.0 * torch.randn(3, 6, generator=g)[y], y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.LayerNorm(10), nn.Linear(10, 3))


def steps(model, optimizer, landscape, x, y, number, *, batch=16):
    for i in range(number):
        at = [(i * batch + j) % len(x) for j in range(batch)]
        optimizer.zero_grad()
        F.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
        landscape.step()


def learned(model, optimizer, tasks=1, number=40, **options):
    landscape = Landscape(model, optimizer, options=LDCOptions(probe_inputs=60, **options))
    for task in range(tasks):
        x, y = blobs(task)
        landscape.begin_task()
        steps(model, optimizer, landscape, x, y, number)
        landscape.end_task([(x, y)])
    return landscape


class Bag(nn.Module):
    """Embeddings of an input's tokens, averaged: inputs of any length."""

    def __init__(self):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(torch.tanh(self.body(self.words(tokens).mean(1))))


@pytest.mark.parametrize("witnesses", [0, 20])
def test_batches_padded_to_several_lengths_end_a_task_as_those_of_one(witnesses):
    """Padding repeats an input's tokens, so that lengths 4 and 8 are the same inputs."""
    tokens = torch.randint(0, 9, (64, 4), generator=torch.Generator().manual_seed(0))
    plain = [tokens[i : i + 8] for i in range(0, 64, 8)]
    mixed = [part if i % 3 else part.repeat(1, 2) for i, part in enumerate(plain)]
    held = []
    for batches in (plain, mixed):
        torch.manual_seed(0)
        model = Bag()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = LDCOptions(width=0.0, probe_batch=8, witnesses=witnesses)
        landscape = Landscape(model, optimizer, options=options)
        for task in range(2):
            landscape.begin_task()
            for part in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(part), part[:, 0] % 3).backward()
                optimizer.step()
                landscape.step()
            if task:
                assert landscape.forecast(batches).rises[0] >= 0
            landscape.end_task(batches)
        held.append(landscape.constraints)
    # Another grouping of the chunks draws other numbers: the trace is the same but for the draw.
    for name, constraint in held[0].items():
        trace = float(constraint.stiffness.sum())
        assert float(held[1][name].stiffness.sum()) == pytest.approx(trace, rel=0.5)


@pytest.mark.parametrize("keyword", ["mask", "temperature"])
def test_arguments_by_keyword_are_the_networks_own_affair(keyword):
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def forward(self, x, mask=None, temperature=1.0):
            x = x if mask is None else x * mask
            return self.layers(x) / temperature

    found = []
    for join in (False, True):
        model = Called()
        landscape = learned(model, torch.optim.SGD(model.parameters(), lr=0.05))
        x, _ = blobs(1)
        named = {"mask": {"mask": torch.ones(len(x), 6)}, "temperature": {"temperature": 2.0}}
        landscape.begin_task()
        with torch.no_grad():
            next(model.parameters()).add_(0.1)  # away from where rehearsal is 0
        model.train()
        if join:
            with landscape.joining():
                outputs = model(x, **named[keyword])
        else:
            outputs = model(x, **named[keyword])
        assert outputs.shape == (len(x), 3)
        found.append(landscape.rehearsal().item())
    assert found[0] > 0
    assert found[1] == found[0]


def test_what_is_held_entry_by_entry_is_pulled_once_for_each_step():
    """After a pull nothing waits there, whatever the slower tiers of matrices still owe."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    landscape = learned(model, optimizer, interval=5, centre=False, pseudo_inputs=0)
    x, y = blobs(1)
    landscape.begin_task()
    steps(model, optimizer, landscape, x, y, 75)  # the last step is a pull's
    norm = model[2]
    before = [p.detach().clone() for p in norm.parameters()]
    assert float(landscape.constraints["2.weight"].stiffness.sum()) > 0
    landscape.end_task([(x, y)])
    for p, kept in zip(norm.parameters(), before, strict=True):
        assert torch.equal(p.detach(), kept)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_group_without_a_learning_rate_leaves_the_rest_held(optimizer):
    energies = []
    for rate in (1e-3, 0.0):
        model = network()
        biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
        others = [p for n, p in model.named_parameters() if not n.endswith("bias")]
        groups = [{"params": others, "lr": 0.01}, {"params": biases, "lr": rate}]
        landscape = learned(model, optimizer(groups), pseudo_inputs=0, centre=False)
        x, y = blobs(1)
        landscape.begin_task()
        steps(model, landscape.metric.optimizer, landscape, x, y, 40)
        energies.append(float(landscape.energy()))
    assert energies[1] == pytest.approx(energies[0], rel=0.05)


def test_a_parameter_group_that_comes_in_mid_task_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    landscape = learned(model, optimizer)
    landscape.begin_task()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(StateError, match="2 parameter groups and had 1"):
        landscape.step()


@pytest.mark.parametrize("earlier", [1, 2])
def test_the_unit_of_the_losss_gradients_is_no_matter_to_directions(monkeypatch, earlier):
    """``directions="fisher"`` takes a basis from them, and the stiffness from the probe."""
    held = []
    for factor in (1.0, 100.0):
        monkeypatch.setattr(
            flatcl.core.measure,
            "label_directions",
            lambda *args, factor=factor: factor * label_directions(*args),
        )
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        found = learned(
            model, optimizer, 1 + earlier, directions="fisher", strength=1e-9, pseudo_inputs=0
        )
        held.append(found.constraints["0.weight"])
    torch.testing.assert_close(*(c.to_dense() for c in held), rtol=1e-3, atol=1e-3)


def test_a_task_that_diverged_is_forgotten_and_the_next_may_begin():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    landscape = learned(model, optimizer)
    saved, weights = landscape.state_dict(), [p.detach().clone() for p in model.parameters()]
    x, y = blobs(1)
    landscape.begin_task()
    steps(model, optimizer, landscape, x, y, 3)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        landscape.end_task([(x, y)])
    landscape.load_state_dict(saved)
    with torch.no_grad():
        for p, kept in zip(model.parameters(), weights, strict=True):
            p.copy_(kept)
    landscape.begin_task()
    steps(model, optimizer, landscape, x, y, 3)
    landscape.end_task([(x, y)])
    assert landscape.tasks_ended == 2


def test_a_task_can_be_abandoned():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    landscape = learned(model, optimizer)
    landscape.begin_task()
    with pytest.raises(StateError, match="abandon_task"):
        landscape.begin_task()
    x, y = blobs(1)
    steps(model, optimizer, landscape, x, y, 3)
    weights = [p.detach().clone() for p in model.parameters()]
    landscape.abandon_task()
    landscape.abandon_task()
    assert landscape.tasks_ended == 1
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), weights, strict=True))
    landscape.begin_task()


def test_witnesses_kept_from_some_task_on_serve_the_tasks_from_there():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    saved = learned(model, optimizer, 2).state_dict()
    options = LDCOptions(probe_inputs=60, witnesses=60)
    landscape = Landscape(model, optimizer, options=options)
    with pytest.warns(UserWarning, match="witnesses"):
        landscape.load_state_dict(saved)
    x, y = blobs(2)
    landscape.begin_task()
    steps(model, optimizer, landscape, x, y, 20)
    landscape.end_task([(x, y)])
    assert [w is None for w in landscape.history.witnesses] == [True, True, False]
    forecast = landscape.forecast()
    assert forecast.rises[2] == pytest.approx(0.0, abs=1e-6)
    assert forecast.rises[:2] == forecast.quadratic[:2]


def test_what_is_held_besides_constraints_is_described():
    model = network()
    landscape = learned(model, torch.optim.SGD(model.parameters(), lr=0.05), 2, witnesses=30)
    described = landscape.describe()
    assert described.total == landscape.bytes_held()
    (line,) = [h for h in described.holdings if h.name == "witnesses"]
    assert line.shape == (30,)
    assert "witnesses" in str(described)


def test_a_budget_is_judged_in_full_precision_whatever_is_around_the_loop():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    landscape = learned(model, optimizer)
    landscape.begin_task()
    steps(model, optimizer, landscape, *blobs(1), 30)
    assert landscape.task is not None
    energy = landscape.energy().item()
    for limit, crossed in ((energy * 1.0001, False), (energy * 0.9999, True)):
        watch = BudgetWatch(limit, "stop")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            watch.check_(landscape.task.schedule)
        assert watch.crossed is crossed
