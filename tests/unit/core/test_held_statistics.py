"""Running statistics are held from the second task on, and only while a task runs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatcl import LDCOptions
from flatcl.core.engine import Landscape
from flatcl.core.rehearsal import Rehearsal
from flatcl.core.statistics import HeldStatistics

N, INPUTS, CLASSES = 64, 6, 3


def data(shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(int(10 * shift))
    x = torch.randn(N, INPUTS, generator=generator)
    return (1.0 + shift) * x + shift, x[:, :CLASSES].argmax(1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def made(model: nn.Module, lr: float = 0.1, **options) -> Landscape:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Landscape(model, optimizer, options=LDCOptions(probe_inputs=N, interval=5, **options))


def steps(landscape: Landscape, shift: float, number: int = 10, through=None) -> None:
    """Train as a loop does that sets the training mode before each step."""
    x, y = data(shift)
    for _ in range(number):
        landscape.model.train()
        landscape.metric.optimizer.zero_grad()
        loss = cross_entropy((through or landscape.model)(x), y) + landscape.rehearsal()
        loss.backward()
        landscape.metric.optimizer.step()
        landscape.step()


def first_task(landscape: Landscape) -> None:
    landscape.begin_task()
    steps(landscape, 0.0)
    landscape.end_task([data(0.0)[0]])


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in model.named_buffers()}


def moved(model: nn.Module, since: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(b, since[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("hold", [True, False])
def test_where_no_weight_moves_old_outputs_stay_as_they_are(hold):
    model = network()
    landscape = made(model, hold_statistics=hold)
    first_task(landscape)
    landscape.metric.optimizer.param_groups[0]["lr"] = 0.0
    before, weights = model.eval()(data(0.0)[0]), copy.deepcopy(dict(model.named_parameters()))
    landscape.begin_task()
    steps(landscape, 2.0)
    landscape.end_task([data(2.0)[0]])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, weights[name])  # but for rounding in the centre
    assert torch.allclose(model.eval()(data(0.0)[0]), before, atol=1e-5) is hold


def test_only_from_the_second_task_on_and_only_while_one_runs():
    model = network()
    landscape = made(model)
    fresh = statistics(model)
    landscape.begin_task()
    steps(landscape, 0.0)
    assert [m.training for m in model] == [True] * 5
    assert moved(model, fresh)
    landscape.end_task([data(0.0)[0]])
    for shift in (1.0, 2.0):
        kept = statistics(model)
        landscape.begin_task()
        steps(landscape, shift)
        assert [m.training for m in model] == [True, False, True, True, True]
        landscape.end_task([data(shift)[0]])
        assert not moved(model, kept)
        assert [m.training for m in model] == [True] * 5
    model.eval()
    assert not any(m.training for m in model.modules())
    model.train()
    model(data(0.0)[0])
    assert moved(model, kept)


@pytest.mark.parametrize(
    ("before", "within", "frozen", "after"),
    [
        (True, True, False, True),
        (False, True, False, True),
        (True, False, False, False),
        (True, True, True, False),  # a loop's own choice
    ],
)
def test_the_mode_after_a_task_is_the_network_s(before, within, frozen, after):
    model = network()
    landscape = made(model)
    first_task(landscape)
    model.train(before)
    if frozen:
        model[1].eval()
    landscape.begin_task()
    model.train(within)
    assert not model[1].training
    landscape.abandon_task()
    assert model[1].training is after


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ({"strength": 0}, False),
        ({"strength": 0, "witnesses": 8}, False),
        ({"strength": 0, "pseudo_inputs": 4}, True),
        ({"pseudo_inputs": 0}, True),
        ({"hold_statistics": False}, False),
    ],
)
def test_held_where_anything_of_the_later_tasks_training_is(options, held):
    model = network()
    landscape = made(model, **options)
    first_task(landscape)
    kept = statistics(model)
    landscape.begin_task()
    steps(landscape, 1.0)
    assert moved(model, kept) is not held


def test_a_layer_that_no_task_has_been_through_follows():
    model = network()
    landscape = made(model)
    first_task(landscape)
    model.add_module("5", nn.BatchNorm1d(CLASSES))
    landscape.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    old, new = statistics(model[1]), statistics(model[5])
    landscape.begin_task()
    steps(landscape, 1.0)
    assert not moved(model[1], old)
    assert moved(model[5], new)
    landscape.end_task([data(1.0)[0]])
    new = statistics(model[5])
    landscape.begin_task()
    steps(landscape, 2.0)
    assert not moved(model[5], new)


def test_fitted_weights_keep_the_statistics_they_came_with():
    model = network()
    model(data(0.0)[0])
    kept = statistics(model)
    landscape = made(model)
    landscape.fit([data(0.0)[0]])
    landscape.begin_task()
    steps(landscape, 1.0)
    assert not moved(model, kept)


def test_a_network_compiled_before_is_held_too():
    model = network()
    compiled = torch.compile(model, backend="eager")
    landscape = made(model)
    landscape.begin_task()
    steps(landscape, 0.0, through=compiled)  # compiled in training mode
    landscape.end_task([data(0.0)[0]])
    kept = statistics(model)
    landscape.begin_task()
    steps(landscape, 1.0, through=compiled)
    landscape.end_task([data(1.0)[0]])
    assert not moved(model, kept)
    model.train()
    compiled(data(0.0)[0])
    assert moved(model, kept)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_in_mid_task_is_held_and_stands_alone(copied):
    model = network()
    landscape = made(model)
    first_task(landscape)
    landscape.begin_task()
    model.train()
    other = copied(model)
    assert other[1].train.layer is other[1]
    landscape.abandon_task()
    kept = statistics(other)
    other.train()(data(1.0)[0])
    assert model[1].training
    assert not moved(other, kept)


def test_a_layer_of_any_class_with_layers_inside():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.ones(2))
            self.register_buffer("running_var", torch.ones(2))
            self.dropout = nn.Dropout()

    model = nn.Sequential(Norm(), nn.InstanceNorm1d(2, track_running_stats=True), nn.BatchNorm1d(2))
    model[1](torch.randn(3, 2, 5))
    held = HeldStatistics.seen(model)
    assert list(held.layers) == ["0", "1"]  # nothing has been through the last
    assert list(held.free(model)) == ["2.running_mean", "2.running_var"]
    model.eval()
    held.hold_(model)
    model.train()
    assert [m.training for m in model] == [False, False, True]
    assert model[0].dropout.training
    held.release_(model)
    held.release_(model)
    assert all(m.training for m in model.modules())


def test_a_state_is_taken_up_before_its_model_s():
    model = network()
    landscape = made(model)
    first_task(landscape)
    landscape.begin_task()
    steps(landscape, 1.0)
    other = network()
    resumed = made(other)
    resumed.load_state_dict(landscape.state_dict())
    other.load_state_dict(model.state_dict())
    kept = statistics(model)
    steps(resumed, 1.0)
    assert not moved(other, kept)
    older = landscape.state_dict()
    del older["task"]["statistics"]  # as before version 4, when they followed
    with pytest.raises(Exception, match=r"differ in 1\.running_mean"):  # no centre of them
        made(network()).load_state_dict(older)


@pytest.mark.parametrize("hold", [True, False])
def test_held_layers_let_pseudo_inputs_ride_along_and_are_told_of(hold):
    model = network()
    model[3].p = 0.0  # dropout would keep them off
    landscape = made(model, hold_statistics=hold)
    first_task(landscape)
    landscape.begin_task()
    assert landscape.task.rehearsal.free is hold
    (told,) = [h for h in landscape.describe().holdings if h.name == "running statistics"]
    assert told.held == ("from the second task on" if hold else "not held")
    assert (told.shape, told.bytes) == ((16,), 0)


def test_a_task_that_cannot_begin_leaves_the_modes(monkeypatch):
    model = network()
    landscape = made(model)
    first_task(landscape)
    monkeypatch.setattr(Rehearsal, "begun", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        landscape.begin_task()
    assert landscape.task is None
    assert [m.training for m in model] == [True] * 5
