"""Autocast, bfloat16 weights, clipping, accumulation, and a gradient scaler that skips steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions

STEPS, BATCH = 60, 16


def data(task):
    g = torch.Generator().manual_seed(40 + task)
    y = torch.randint(0, 3, (300,), generator=g)
    shared = 3.0 * torch.eye(3, 6)[(y + task) % 3]  # the tasks contradict each other here
    return torch.randn(300, 6, generator=g) + shared + 2.0 * torch.randn(3, 6, generator=g)[y], y


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)


def weights(model):
    return torch.cat([p.detach().float().reshape(-1) for p in model.parameters()])


def loss_of(model, task):
    x, y = data(task)
    with torch.no_grad():
        return float(F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y))


def train(model, optimizer, landscape, *, tasks=2, update=None, around=None):
    dtype = next(model.parameters()).dtype
    order = torch.Generator().manual_seed(1)
    for task in range(tasks):
        x, y = data(task)
        x = x.to(dtype)
        landscape.begin_task(STEPS)
        for _ in range(STEPS):
            chosen = torch.randint(0, len(x), (BATCH,), generator=order)
            optimizer.zero_grad()
            if update:
                update(model, optimizer, landscape, x[chosen], y[chosen])
                continue
            F.cross_entropy(model(x[chosen]).float(), y[chosen]).backward()
            optimizer.step()
            landscape.step(BATCH)
        landscape.end_task([x])


def two_tasks(dtype=torch.float32, make=None, update=None, **options):
    model = network(dtype)
    optimizer = (make or (lambda p: torch.optim.SGD(p, lr=0.05)))(model.parameters())
    landscape = Landscape(model, optimizer, options=LDCOptions(**{"interval": 5, **options}))
    train(model, optimizer, landscape, update=update)
    return model, landscape


def identity_constraint(rows, columns, stiffness):
    basis = KroneckerBasis(torch.eye(rows), torch.eye(columns))
    anchor = torch.zeros(rows, columns)
    return Constraint(basis, torch.full((rows, columns), stiffness), anchor)


@pytest.mark.parametrize("adam", [False, True])
def test_pulls_too_small_for_bfloat16_add_up(adam):
    """Each pull is 0.1 % of a weight, half a spacing is 0.2-0.4 %: alone they round to nothing."""
    layer = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2.0, 32).reshape(4, 8))
    layer.bfloat16()
    optimizer = (
        torch.optim.Adam(layer.parameters(), lr=0.0)
        if adam
        else torch.optim.SGD(layer.parameters(), lr=0.0)
    )
    landscape = Landscape(layer, optimizer, options=LDCOptions(strength=1.0, interval=1))
    landscape.constraints["weight"] = identity_constraint(4, 8, 1.0)
    landscape.begin_task()
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-3
    start = layer.weight.detach().float().clone()
    with torch.no_grad():
        assert torch.equal(layer.weight - (1e-3 * layer.weight), layer.weight)
    pulls = 2000
    for done in range(1, pulls + 1):
        landscape.step()
        if done in (100, pulls):
            # Within a spacing of bfloat16 and what the rarest tier waits for, 15 pulls.
            exact = start * (1.0 + 1e-3) ** -done
            found = layer.weight.detach().float()
            torch.testing.assert_close(found, exact, rtol=0.04, atol=0.0)


def test_no_stiffness_changes_no_bit_of_narrow_weights():
    layer = nn.Linear(8, 4, bias=False, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    landscape = Landscape(layer, optimizer, options=LDCOptions(interval=1))
    landscape.constraints["weight"] = identity_constraint(4, 8, 0.0)
    landscape.begin_task()
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.ones_like(layer.weight)
    for _ in range(5):
        landscape.step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("source", ["probe", "sgd"])
@pytest.mark.parametrize("adam", [False, True])
def test_bfloat16_weights_are_held_as_those_in_float32(source, adam):
    make = (lambda p: torch.optim.Adam(p, lr=1e-2)) if adam else None
    wide, _ = two_tasks(make=make, source=source)
    narrow, landscape = two_tasks(torch.bfloat16, make=make, source=source)
    free, _ = two_tasks(torch.bfloat16, make=make, source=source, strength=0.0)
    assert all(p.dtype == torch.bfloat16 for p in narrow.parameters())
    for constraint in landscape.constraints.values():
        held = (constraint.stiffness, constraint.anchor, constraint.basis.U_in)
        assert {tensor.dtype for tensor in held} == {torch.float32}
    assert loss_of(narrow, 0) < 0.7 * loss_of(free, 0)
    assert loss_of(narrow, 0) < 1.3 * loss_of(wide, 0) + 0.05


def test_a_saved_task_of_bfloat16_weights_keeps_what_rounding_left():
    model = network(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    landscape = Landscape(model, optimizer, options=LDCOptions(interval=3))
    train(model, optimizer, landscape, tasks=1)
    x, y = (part[:BATCH] for part in data(1))
    x = x.bfloat16()

    def go_on(model, optimizer, landscape, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x).float(), y).backward()
            optimizer.step()
            landscape.step(BATCH)

    landscape.begin_task()
    go_on(model, optimizer, landscape, 11)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), landscape.state_dict()))
    left = saved[2]["task"]["schedule"]["units"]["0.weight"]["left"]
    assert 0 < float(left.abs().max()) < 0.01
    go_on(model, optimizer, landscape, 20)
    twin = network(torch.bfloat16)
    other = torch.optim.SGD(twin.parameters(), lr=0.01)
    restored = Landscape(twin, other, options=LDCOptions(interval=3))
    for part, state in zip((twin, other, restored), saved, strict=True):
        part.load_state_dict(state)
    go_on(twin, other, restored, 20)
    assert torch.equal(weights(twin), weights(model))


@pytest.mark.parametrize("source", ["probe", "sgd"])
def test_autocast_around_the_whole_loop_leaves_the_algebra_in_float32(source):
    plain, held = two_tasks(source=source)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = LDCOptions(interval=5, source=source)
    landscape = Landscape(model, optimizer, options=options)
    seen = []
    model[2].register_forward_hook(lambda *call: seen.append(call[2].dtype))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        train(model, optimizer, landscape)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.bfloat16}  # the probe's passes too
    for name, constraint in landscape.constraints.items():
        for side in (constraint.basis.U_in, constraint.basis.U_out):
            gram = side.T @ side
            torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
        ratio = constraint.stiffness.sum() / held.constraints[name].stiffness.sum()
        assert 0.8 < float(ratio) < 1.25
    assert loss_of(model, 0) == pytest.approx(loss_of(plain, 0), abs=0.1)


def test_pull_under_autocast_is_the_pull_without():
    results = []
    for enabled in (False, True):
        layer = nn.Linear(8, 4, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2.0, 32).reshape(4, 8))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        landscape = Landscape(layer, optimizer, options=LDCOptions(interval=1))
        g = torch.Generator().manual_seed(0)
        root = torch.randn(8, 8, generator=g)
        basis = KroneckerBasis.from_moments(torch.eye(4), root @ root.T)
        k = torch.rand(4, 8, generator=g)
        landscape.constraints["weight"] = Constraint(basis, k, torch.zeros(4, 8))
        landscape.begin_task()
        layer.weight.grad = torch.zeros_like(layer.weight)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            landscape.step()
        results.append(layer.weight.detach().clone())
    assert torch.equal(*results)


def _accumulated(model, optimizer, landscape, x, y):
    for part in range(4):
        mine = slice(4 * part, 4 * part + 4)
        (F.cross_entropy(model(x[mine]), y[mine]) / 4).backward()
    optimizer.step()
    landscape.step(BATCH)


def _clipped(model, optimizer, landscape, x, y):
    F.cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    landscape.step(BATCH)


@pytest.mark.parametrize("source", ["probe", "sgd"])
def test_accumulated_batches_are_one_step_of_the_whole_batch(source):
    whole, held = two_tasks(source=source)
    parts, also = two_tasks(source=source, update=_accumulated)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-3, atol=1e-4)
    for name, constraint in held.constraints.items():
        found = also.constraints[name].stiffness.sum() / constraint.stiffness.sum()
        assert float(found) == pytest.approx(1.0, abs=1e-3)


def test_clipped_gradients_hold_the_earlier_task():
    held, _ = two_tasks(update=_clipped)
    free, _ = two_tasks(update=_clipped, strength=0.0)
    assert loss_of(held, 0) < 0.7 * loss_of(free, 0)


def test_a_scaler_that_skips_a_step():
    """The scaler's skipped steps are not steps: the loop tells by its scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
    calls = []

    def update(model, optimizer, landscape, x, y):
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if len(calls) % 20 == 7:
            model[0].weight.grad[0, 0] = float("inf")
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        calls.append(scaler.get_scale() < before)
        if not calls[-1]:
            landscape.step(BATCH)

    model, landscape = two_tasks(update=update, source="sgd")
    free, _ = two_tasks(strength=0.0)
    assert sum(calls) == 6
    assert torch.isfinite(weights(model)).all()
    assert all(torch.isfinite(c.stiffness).all() for c in landscape.constraints.values())
    assert loss_of(model, 0) < 0.7 * loss_of(free, 0)


def test_a_constraint_follows_the_model_to_its_device():
    basis = KroneckerBasis(torch.eye(2), torch.eye(3))
    there = Constraint(basis, torch.ones(2, 3), torch.zeros(2, 3)).to(torch.device("meta"))
    tensors = (there.basis.U_out, there.basis.U_in, there.stiffness, there.anchor)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    layer = nn.Linear(3, 2, bias=False)
    landscape = Landscape(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    landscape.constraints["weight"] = identity_constraint(2, 3, 1.0)
    layer.to("meta")
    landscape.begin_task()
    held = landscape.constraints["weight"]
    assert held.anchor.device.type == held.basis.U_in.device.type == "meta"


def test_gradients_cleared_too_early_are_named():
    layer = nn.Linear(3, 2, bias=False)
    landscape = Landscape(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    landscape.constraints["weight"] = identity_constraint(2, 3, 1.0)
    landscape.begin_task()
    for _ in range(19):
        landscape.step()
    with pytest.warns(UserWarning, match="before zero_grad"):
        landscape.step()


def test_gradients_cleared_before_a_task_s_end_do_not_cost_its_last_pull():
    results = []
    for clear in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        landscape = Landscape(model, optimizer, options=LDCOptions(interval=7))
        train(model, optimizer, landscape, tasks=1)
        landscape.begin_task()
        x, y = data(1)
        for step in range(5):
            chosen = slice(step * BATCH, (step + 1) * BATCH)
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            landscape.step(BATCH)
            if clear or step < 4:
                optimizer.zero_grad()
        landscape.end_task([x])
        results.append(weights(model))
    assert torch.equal(*results)
