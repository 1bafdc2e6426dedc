"""Landscape in a plain PyTorch loop: known answers, switches, windows, refusals."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.centre import TailMean
from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.engine import Landscape
from flatcl.core.gaussians import RANK
from flatcl.core.gradients import training_gradients
from flatcl.core.layers import matrix_views
from flatcl.core.options import LDCOptions
from flatcl.core.pull import TIERS, by_falling_stiffness
from flatcl.core.schedule import PullSchedule
from flatcl.errors import DataError, NonFiniteError, OptionError, StateError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0),
}


def blobs(seed, n=256, shift=0.0):
    """Two Gaussian clouds in six dimensions, told apart along a direction of the seed's."""
    g = torch.Generator().manual_seed(seed)
    direction = F.normalize(torch.randn(6, generator=g), dim=0)
    y = torch.randint(0, 2, (n,), generator=g)
    x = torch.randn(n, 6, generator=g) + 2.0 * (2 * y[:, None] - 1) * direction + shift
    return x, y


def network(seed=0, outputs=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))


def train(model, optimizer, landscape, x, y, *, epochs=4, batch=16, seed=0, steps="known"):
    g = torch.Generator().manual_seed(seed)
    if landscape:
        landscape.begin_task(epochs * math.ceil(len(x) / batch) if steps == "known" else None)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=g)
        for chosen in order.split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if landscape:
                landscape.step(len(chosen))
    if landscape:
        landscape.end_task([x])


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def two_tasks(optimizer="sgd", steps="known", **options):
    model = network()
    opt = OPTIMIZERS[optimizer](model.parameters())
    landscape = Landscape(model, opt, options=LDCOptions(**options))
    for task in (0, 1):
        train(model, opt, landscape, *blobs(task), seed=task, steps=steps)
    return model, landscape


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_two_quadratic_tasks_end_at_the_minimiser_of_their_sum(optimizer, monkeypatch):
    """Full-batch training on ½‖A w − b‖² with the first task's exact K: the answer is known."""
    monkeypatch.setattr(PullSchedule, "due", lambda self: TIERS)
    monkeypatch.setattr("flatcl.core.pull._TOLERANCE", 1e-6)
    # The floor on Adam's D⁻¹ moves the fixed point of entries whose gradient is far below the mean.
    monkeypatch.setattr("flatcl.core.metric._FLOOR", 1e-9)
    g = torch.Generator().manual_seed(3)
    layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    x = torch.randn(60, 4, generator=g, dtype=torch.float64)
    target = torch.randn(60, 3, generator=g, dtype=torch.float64)
    opt = {
        "sgd": torch.optim.SGD(layer.parameters(), lr=0.1),
        "momentum": torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9),
        "adam": torch.optim.Adam(layer.parameters(), lr=2e-3, betas=(0.9, 0.99)),
    }[optimizer]
    landscape = Landscape(layer, opt, options=LDCOptions(strength=2.0, interval=1))
    root = torch.randn(4, 4, generator=g, dtype=torch.float64)
    out = torch.randn(3, 3, generator=g, dtype=torch.float64)
    basis = KroneckerBasis.from_moments(out @ out.T, root @ root.T)
    k = torch.rand(3, 4, generator=g, dtype=torch.float64)
    anchor = torch.randn(3, 4, generator=g, dtype=torch.float64)
    landscape.constraints["weight"] = by_falling_stiffness(Constraint(basis, k, anchor))
    K = landscape.constraints["weight"].to_dense()
    landscape.begin_task()
    for i in range(3000):
        if optimizer == "adam" and i in (1500, 2300):
            opt.param_groups[0]["lr"] *= 0.1
        opt.zero_grad()
        (0.5 * (layer(x) - target).square().sum(1).mean()).backward()
        opt.step()
        landscape.step()
    H = torch.kron(torch.eye(3, dtype=torch.float64), x.T @ x / 60)
    b = (target.T @ x / 60).reshape(-1) + 2.0 * K @ anchor.reshape(-1)
    expected = torch.linalg.solve(H + 2.0 * K, b).reshape(3, 4)
    loose = 3e-3 if optimizer == "adam" else 1e-6  # Adam's steps do not vanish at constant η
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=loose, atol=loose)
    alone = torch.linalg.solve(H, (target.T @ x / 60).reshape(-1)).reshape(3, 4)
    assert float((expected - alone).norm()) > 0.2


@pytest.mark.parametrize(("tasks", "expected"), [(0, 3.0), (1, 3.0), (4, 1.5), (9, 1.0)])
def test_strength_is_shared_among_tasks_by_the_root_of_their_number(tasks, expected):
    assert LDCOptions(strength=3.0).strength_over(tasks) == pytest.approx(expected, rel=1e-15)
    model, landscape = two_tasks(strength=3.0, interval=5)
    landscape.tasks_ended = tasks
    landscape.begin_task()
    constraint = landscape.constraints["0.weight"]
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 0.1
        moved = torch.cat([model[0].weight, model[0].bias[:, None]], dim=1)
    for _ in range(5):  # the optimiser stands still: only the pull moves the weights
        landscape.step()
    factor = 5 * 0.05 * expected * constraint.stiffness
    z = constraint.basis.project(moved - constraint.anchor)
    pulled = constraint.anchor + constraint.basis.unproject(z / (1.0 + factor))
    torch.testing.assert_close(model[0].weight.detach(), pulled[:, :-1], rtol=1e-5, atol=1e-5)
    assert float((model[0].weight.detach() - before).abs().max()) < 0.1


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_strength_zero_equals_naive_bit_for_bit(optimizer):
    model, landscape = two_tasks(optimizer, strength=0.0)
    naive = network()
    opt = OPTIMIZERS[optimizer](naive.parameters())
    for task in (0, 1):
        train(naive, opt, None, *blobs(task), seed=task)
    assert torch.equal(weights(model), weights(naive))
    assert landscape.bytes_held() == 0


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_huge_strength_stops_old_outputs_and_nothing_diverges(optimizer):
    x, _ = blobs(0)
    moves = {}
    for strength in (1e6, 1e-6):
        model = network()
        opt = OPTIMIZERS[optimizer](model.parameters())
        landscape = Landscape(model, opt, options=LDCOptions(strength=strength, interval=5))
        train(model, opt, landscape, *blobs(0))
        old = model(x).detach().softmax(1)
        train(model, opt, landscape, *blobs(1))
        moves[strength] = float((model(x).softmax(1) - old).abs().mean().detach())
    assert math.isfinite(moves[1e6])
    assert moves[1e6] < 0.2 * moves[1e-6]
    assert moves[1e6] < 0.02


@pytest.mark.parametrize("source", ["probe", "sgd"])
@pytest.mark.parametrize("steps", ["known", "unknown"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_forgets_less_than_naive(optimizer, steps, source):
    model, landscape = two_tasks(optimizer, steps, source=source, interval=5)
    naive = network()
    opt = OPTIMIZERS[optimizer](naive.parameters())
    for task in (0, 1):
        train(naive, opt, None, *blobs(task), seed=task)
    x, y = blobs(0)
    assert F.cross_entropy(model(x), y) < F.cross_entropy(naive(x), y)
    assert landscape.tasks_ended == 2


def test_seeds_reproduce_bit_for_bit_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    first, _ = two_tasks(interval=5)
    torch.set_rng_state(state)
    second, _ = two_tasks(interval=5)
    assert torch.equal(weights(first), weights(second))
    other, _ = two_tasks(interval=5, seed=1)
    assert not torch.equal(weights(first), weights(other))
    model = network()
    landscape = Landscape(model, OPTIMIZERS["sgd"](model.parameters()))
    x, _ = blobs(0)
    state = torch.get_rng_state()
    landscape.begin_task()
    landscape.step()
    landscape.end_task([x])
    assert torch.equal(torch.get_rng_state(), state)


def test_centre_is_the_mean_over_post_pull_instants_of_the_last_tenth():
    layer = nn.Linear(2, 1, bias=False)
    opt = torch.optim.SGD(layer.parameters(), lr=1.0)
    landscape = Landscape(layer, opt, options=LDCOptions(strength=1e-9, interval=5))
    landscape.begin_task()
    for step in range(1, 101):
        layer.weight.grad = torch.zeros_like(layer.weight)
        with torch.no_grad():
            layer.weight.fill_(float(step))
        landscape.step()
    landscape.end_task([torch.ones(16, 2)])
    # Steps 91..100 are the last tenth; pulls are due at 95 and 100.
    torch.testing.assert_close(layer.weight.detach(), torch.full((1, 2), 97.5))


@pytest.mark.parametrize("steps", [100, 103, 3])
def test_centre_never_sees_the_run_off_between_pulls(steps):
    """Every step throws the weight to 1; every pull brings it back to the anchor, 0."""
    layer = nn.Linear(2, 1, bias=False)
    opt = torch.optim.SGD(layer.parameters(), lr=1.0)
    landscape = Landscape(layer, opt, options=LDCOptions(strength=1e9, interval=5))
    basis = KroneckerBasis(torch.eye(1), torch.eye(2))
    landscape.constraints["weight"] = Constraint(basis, torch.ones(1, 2), torch.zeros(1, 2))
    landscape.begin_task()
    for _ in range(steps):
        layer.weight.grad = torch.zeros_like(layer.weight)
        with torch.no_grad():
            layer.weight.fill_(1.0)
        landscape.step()
    landscape.end_task([torch.ones(16, 2)])
    assert float(layer.weight.detach().abs().max()) < 1e-6


def test_task_shorter_than_the_interval_is_pulled_once_and_that_instant_is_the_centre():
    _, landscape = two_tasks(strength=1e5, interval=10**6)
    anchored = landscape.constraints["0.weight"].anchor
    pulled = network()
    opt = OPTIMIZERS["sgd"](pulled.parameters())
    free = Landscape(pulled, opt, options=LDCOptions(strength=1e-12, interval=10**6))
    for task in (0, 1):
        train(pulled, opt, free, *blobs(task), seed=task)
    moved = float((anchored - free.constraints["0.weight"].anchor).norm())
    assert moved > 0.05  # without the last pull the two would agree
    assert landscape.tasks_ended == 2


@pytest.mark.parametrize("length", [1, 7, 40, 399, 1000])
def test_tail_mean_covers_the_last_tenth_of_an_unknown_length(length):
    tail = TailMean(0.1)
    for step in range(1, length + 1):
        tail.add(step, [torch.tensor([float(step)])])
    (mean,) = tail.mean(length)
    window = max(1, length // 10)
    exact = length - (window - 1) / 2
    assert float(mean) == pytest.approx(exact, abs=max(0.0, 0.15 * window))
    assert len(tail.segments) <= 9
    assert TailMean().mean(10) is None


def test_evaluation_in_mid_task_sees_pulled_weights_and_leaves_training_alone():
    def run(look):
        model = network()
        opt = OPTIMIZERS["adam"](model.parameters())
        landscape = Landscape(model, opt, options=LDCOptions(interval=7, strength=100.0))
        train(model, opt, landscape, *blobs(0))
        x, y = blobs(1)
        landscape.begin_task()
        seen = []
        for i, chosen in enumerate(torch.arange(len(x)).split(8)):
            opt.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            opt.step()
            landscape.step()
            if look and i % 3 == 0:
                before, energy = weights(model), float(landscape.energy())
                with landscape.evaluating():
                    seen.append((energy, float(landscape.energy())))
                assert torch.equal(weights(model), before)
        landscape.end_task([x])
        return weights(model), seen

    watched, seen = run(look=True)
    unwatched, _ = run(look=False)
    assert torch.equal(watched, unwatched)
    assert any(after < 0.9 * before for before, after in seen)
    assert all(after <= before * (1 + 1e-6) for before, after in seen)


def test_bytes_held_do_not_grow_with_tasks():
    model = network()
    opt = OPTIMIZERS["sgd"](model.parameters())
    landscape = Landscape(model, opt)
    held = []
    for task in range(4):
        train(model, opt, landscape, *blobs(task), epochs=1)
        held.append(landscape.bytes_held())
    assert len(set(held)) == 1
    P = sum(p.numel() for p in model.parameters())
    sides = 16**2 + 7**2 + 2**2 + 17**2
    gaussians = 4 * 2 * (1 + RANK) * 6  # of two classes: a mean and directions of six numbers
    assert held[0] == 4 * (sides + 2 * P) + gaussians


def test_batchnorm_frozen_parts_modes_and_grad_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model[0].weight.requires_grad_(False)
    model[1].eval()
    frozen = model[0].weight.clone()
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    opt = OPTIMIZERS["sgd"]([p for p in model.parameters() if p.requires_grad])
    landscape = Landscape(model, opt, options=LDCOptions(interval=5))
    train(model, opt, landscape, *blobs(0))
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    landscape.begin_task()
    landscape.step()
    landscape.end_task([blobs(0)[0]])
    for p, g in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None and g is None) or torch.equal(p.grad, g)
    assert torch.equal(model[0].weight, frozen)
    assert "0.weight" not in landscape.constraints
    assert [m.training for m in model] == [True, False, True, True]
    for name, buffer in model.named_buffers():  # the layer was in evaluation mode throughout
        torch.testing.assert_close(buffer, statistics[name])


def test_running_statistics_become_their_mean_over_the_centre_s_instants():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    opt = OPTIMIZERS["sgd"](model.parameters())
    landscape = Landscape(model, opt, options=LDCOptions(interval=4))
    x, y = blobs(0)
    landscape.begin_task()
    seen = []
    for step in range(1, 81):
        opt.zero_grad()
        F.cross_entropy(model(x[step : step + 16]), y[step : step + 16]).backward()
        opt.step()
        landscape.step()
        if step in (76, 80):
            seen.append(model[1].running_var.clone())
    landscape.end_task([x])
    torch.testing.assert_close(model[1].running_var, torch.stack(seen).mean(0))


def test_centre_alone_is_a_control():
    centred, landscape = two_tasks(strength=0.0, centre=True, interval=5)
    naive, _ = two_tasks(strength=0.0)
    assert not torch.equal(weights(centred), weights(naive))
    assert landscape.bytes_held() == 0


def test_state_dict_is_plain_and_goes_on_bit_for_bit():
    model, landscape = two_tasks(interval=5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "ldc": landscape.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    twin = network(seed=9)
    twin.load_state_dict(state["model"])
    opt, twin_opt = (OPTIMIZERS["sgd"](m.parameters()) for m in (model, twin))
    restored = Landscape(twin, twin_opt, options=LDCOptions(interval=5))
    restored.load_state_dict(state["ldc"])
    landscape.metric.optimizer = opt
    for m, o, ls in ((model, opt, landscape), (twin, twin_opt, restored)):
        train(m, o, ls, *blobs(2), seed=2)
    assert torch.equal(weights(model), weights(twin))


def test_bad_states_are_refused_and_changed_options_named():
    _, landscape = two_tasks(interval=5)
    state = landscape.state_dict()
    model = network()
    fresh = Landscape(model, OPTIMIZERS["sgd"](model.parameters()))
    with pytest.warns(UserWarning, match=r"interval=5 \(now "):
        fresh.load_state_dict(state)
    with pytest.raises(StateError, match="version 99"):
        fresh.load_state_dict({**state, "version": 99})
    stranger = nn.Linear(6, 2)
    other = Landscape(stranger, OPTIMIZERS["sgd"](stranger.parameters()))
    with pytest.raises(StateError, match="does not have"):
        other.load_state_dict(state)
    broken = {n: dict(c) for n, c in state["constraints"].items()}
    broken["0.weight"]["anchor"] = torch.zeros(3, 3)
    with pytest.raises(StateError, match="shapes that do not fit"):
        fresh.load_state_dict({**state, "constraints": broken})
    del broken["0.weight"]["anchor"]
    with pytest.raises(StateError, match="lacks"):
        fresh.load_state_dict({**state, "constraints": broken})
    fresh.begin_task()
    with pytest.raises(StateError, match="between tasks"):
        fresh.load_state_dict(state)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("strength", -1.0),
        ("strength", float("nan")),
        ("strength", float("inf")),
        ("damping", -0.1),
        ("width", float("inf")),
        ("interval", 0),
        ("interval", 2.5),
        ("probe_inputs", 0),
        ("source", "hessian"),
        ("seed", "x"),
        ("seed", 1.5),
        ("centre", "no"),
    ],
)
def test_bad_options_name_the_value(option, value):
    with pytest.raises(OptionError, match=f"{option} is "):
        LDCOptions(**{option: value})


def test_order_of_calls_and_missing_needs_are_refused():
    model = network()
    opt = OPTIMIZERS["sgd"](model.parameters())
    landscape = Landscape(model, opt)
    with pytest.raises(StateError, match="begin_task first"):
        landscape.step()
    with pytest.raises(StateError, match="begin_task first"):
        landscape.end_task()
    landscape.begin_task()
    with pytest.raises(StateError, match="already running"):
        landscape.begin_task()
    landscape.step()
    with pytest.raises(StateError, match=r"end_task\(batches\)"):
        landscape.end_task()
    with pytest.raises(DataError, match="empty"):
        landscape.end_task([])
    with pytest.raises(DataError, match="not of tensors alone"):
        landscape.end_task(["text"])
    landscape.end_task([blobs(0)[0]])
    with pytest.raises(OptionError, match="no trainable parameter"):
        Landscape(nn.ReLU(), opt)
    fluctuating = Landscape(model, opt, options=LDCOptions(source="sgd"))
    fluctuating.begin_task()
    with pytest.raises(StateError, match="batch_size"):
        fluctuating.step()


def test_a_task_too_short_for_the_sgd_source_says_so():
    model = network()
    landscape = Landscape(
        model, OPTIMIZERS["sgd"](model.parameters()), options=LDCOptions(source="sgd")
    )
    landscape.begin_task(100)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    landscape.step(4)
    with pytest.raises(StateError, match="said to last 100 steps"):
        landscape.end_task()


def test_diverged_weights_are_refused_by_name_of_the_cause():
    model = network()
    landscape = Landscape(model, OPTIMIZERS["sgd"](model.parameters()))
    landscape.begin_task()
    landscape.step()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="diverged"):
        landscape.end_task([blobs(0)[0]])


def test_an_empty_task_changes_nothing():
    model = network()
    landscape = Landscape(model, OPTIMIZERS["sgd"](model.parameters()))
    before = weights(model)
    landscape.begin_task()
    landscape.end_task()
    assert torch.equal(weights(model), before)
    assert landscape.constraints == {}


def test_every_trainable_parameter_is_held_once():
    torch.manual_seed(0)
    shared = nn.Linear(5, 5)
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "norm": nn.LayerNorm(5),
            "a": shared,
            "b": shared,
            "plain": nn.Linear(5, 2, bias=False),
        }
    )
    model["plain"].weight.requires_grad_(True)
    units = matrix_views(model)
    names = {name for unit in units for name in unit.names}
    assert names == {n for n, _ in model.named_parameters()}
    kinds = {unit.name: (unit.matrix, unit.bias and unit.bias.parameter) for unit in units}
    assert kinds["conv.weight"] == (True, "conv.bias")
    assert kinds["grouped.weight[0]"] == kinds["grouped.weight[1]"] == (True, "grouped.bias")
    assert kinds["norm.weight"] == (False, None)
    assert kinds["plain.weight"] == (True, None)
    parameters = dict(model.named_parameters())
    conv = next(unit for unit in units if unit.name == "conv.weight")
    view = conv.gather(parameters).detach().clone()
    assert view.shape == (4, 28)
    assert torch.equal(view[:, -1], parameters["conv.bias"])
    conv.subtract_(parameters, torch.ones_like(view))
    torch.testing.assert_close(conv.gather(parameters).detach(), view - 1.0)
    conv.write_(parameters, view)
    assert torch.equal(conv.gather(parameters).detach(), view)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_convolutions_and_one_row_matrices_train(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 3), nn.Flatten(), nn.Linear(12, 1))
    opt = OPTIMIZERS[optimizer](model.parameters())
    landscape = Landscape(model, opt, options=LDCOptions(interval=3))
    for task in (0, 1):
        x, y = blobs(task)
        landscape.begin_task()
        for chosen in torch.arange(len(x)).split(16):
            opt.zero_grad()
            logits = model(x[chosen, None])[:, 0]
            F.binary_cross_entropy_with_logits(logits, y[chosen].float()).backward()
            opt.step()
            landscape.step()
        landscape.end_task([x[:, None]])
    assert landscape.constraints["2.weight"].stiffness.shape == (1, 13)
    assert float(landscape.constraints["2.weight"].stiffness.sum()) > 0
    assert torch.isfinite(weights(model)).all()


def test_the_watched_gradient_is_the_increment_of_plain_sgd():
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.25)
    units, parameters = matrix_views(model), dict(model.named_parameters())
    x, y = blobs(0)
    before = [unit.gather(parameters).detach().clone() for unit in units]
    F.cross_entropy(model(x), y).backward()
    opt.step()
    for unit, old, G in zip(units, before, training_gradients(units, parameters), strict=True):
        torch.testing.assert_close(G, (old - unit.gather(parameters).detach()) / 0.25)


def test_unknown_optimiser_is_named_once_and_a_known_one_is_not(recwarn):
    model = network()
    Landscape(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert len(recwarn) == 0
    with pytest.warns(UserWarning, match="metric of Rprop is not known"):
        Landscape(model, torch.optim.Rprop(model.parameters()))
