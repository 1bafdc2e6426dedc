"""What a task is trained by, and what is trained in it: changes on the way are named."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.core.trained import PATIENCE
from flatcl.errors import StateError


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr)


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, outputs))


def blobs(task):
    g = torch.Generator().manual_seed(task)
    y = torch.randint(0, 3, (160,), generator=g)
    return torch.randn(160, 6, generator=g) + 2.0 * torch.randn(3, 6, generator=g)[y], y


def steps(model, optimizers, landscape, number, task=1):
    x, y = blobs(task)
    for i in range(number):
        chosen = torch.arange(i * 8, i * 8 + 8) % len(x)
        loss = F.cross_entropy(model(x[chosen])[:, :3], y[chosen]) + landscape.rehearsal()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        landscape.step()


def begun(optimizer=sgd, *, begin=True, **options):
    """A model in its second task, before the first step."""
    model = network()
    own = optimizer(model.parameters())
    options = {"probe_inputs": 60, "interval": 5, **options}
    landscape = Landscape(model, own, options=LDCOptions(**options))
    landscape.begin_task()
    steps(model, [own], landscape, 10, task=0)
    landscape.end_task([blobs(0)])
    if begin:
        landscape.begin_task()
    return model, own, landscape


def hooks(optimizer):
    return len(optimizer._optimizer_step_post_hooks)


def test_another_optimiser_that_steps_is_named_once_and_attach_takes_it_up():
    model, old, landscape = begun(begin=False)
    old.param_groups[0]["lr"] = 0.0
    new = sgd(model.parameters())
    landscape.begin_task()
    with pytest.warns(UserWarning, match=rf"none of the last {PATIENCE} steps.*attach\(") as seen:
        steps(model, [new], landscape, 3 * PATIENCE)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    landscape.end_task([blobs(1)])  # with nothing more to say
    landscape.attach(model, new)
    landscape.begin_task()
    steps(model, [new], landscape, PATIENCE + 1, task=2)
    landscape.end_task([blobs(2)])


def test_another_optimiser_in_a_short_task_is_named_at_its_end():
    model, _, landscape = begun()
    steps(model, [sgd(model.parameters())], landscape, 6)
    with pytest.warns(UserWarning, match="none of the task's 6 steps") as seen:
        landscape.end_task([blobs(1)])
    assert seen[0].filename == __file__


def test_a_short_task_in_which_nothing_moved_is_no_other_optimisers():
    _, _, landscape = begun()
    landscape.step()
    landscape.end_task([blobs(1)])


def test_steps_that_a_scaler_skips_are_no_other_optimisers():
    model, own, landscape = begun()
    for _ in range(2):  # it starts too high, and again after a while
        for _ in range(PATIENCE - 1):
            landscape.step()
        steps(model, [own], landscape, 1)
    landscape.end_task([blobs(1)])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.RAdam(p, lr=1e-2),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    ],
)
def test_the_optimiser_is_followed_while_there_is_something_to_pull(make):
    model, own, landscape = begun(make)
    assert hooks(own) == 1
    steps(model, [own], landscape, PATIENCE + 5)
    landscape.end_task([blobs(1)])
    assert hooks(own) == 0
    landscape.begin_task()
    assert hooks(own) == 1
    landscape.abandon_task()
    assert hooks(own) == 0
    state = landscape.state_dict()
    again = Landscape(model, own, options=landscape.options)
    again.begin_task()
    assert hooks(own) == 0  # the first task has nothing to pull
    again.abandon_task()
    again.load_state_dict(state)
    again.begin_task()
    assert hooks(own) == 1


@pytest.mark.parametrize("what", ["model", "optimiser"])
def test_attach_in_mid_task_is_refused_unless_it_changes_nothing(what):
    model, own, landscape = begun()
    other = copy.deepcopy(model) if what == "model" else model
    with pytest.raises(StateError, match=f"a task is running that began with another {what}"):
        landscape.attach(other, own if what == "model" else sgd(model.parameters()))
    landscape.attach(model, own)
    landscape.abandon_task()
    landscape.attach(other, own)
    assert landscape.model is other


def test_lbfgs_makes_one_step_of_several_evaluations():
    model, own, landscape = begun(begin=False)
    own = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)
    with pytest.warns(UserWarning, match="metric of LBFGS"):
        landscape.attach(model, own)
    landscape.begin_task()
    x, y = blobs(1)

    def closure():
        own.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(PATIENCE + 1):
        own.step(closure)
        landscape.step()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_made_in_mid_task_goes_on_as_the_original(way):
    model, own, landscape = begun(pseudo_inputs=0)
    steps(model, [own], landscape, 7)
    other = way(landscape)
    for one in (landscape, other):
        steps(one.model, [one.metric.optimizer], one, PATIENCE + 1)
        one.end_task([blobs(1)])
        assert hooks(one.metric.optimizer) == 0
    ours, theirs = (list(one.parameters.values()) for one in (landscape, other))
    assert all(a is not b and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_optimiser_without_hooks_is_not_followed():
    class SGD(torch.optim.SGD):
        def register_step_post_hook(self, hook):
            raise AttributeError

    model, own, landscape = begun(lambda p: SGD(p, lr=0.1))
    steps(model, [own], landscape, PATIENCE + 1)
    landscape.end_task([blobs(1)])


def test_held_parameters_in_none_of_the_optimisers_groups_are_named():
    model, _, landscape = begun(begin=False)
    body, head = sgd(model[0].parameters()), sgd(model[2].parameters())
    landscape.attach(model, head)
    with pytest.warns(UserWarning, match=r"0\.weight \(and 1 more\) in none of its groups") as seen:
        landscape.begin_task()
    assert seen[0].filename == __file__
    steps(model, [body, head], landscape, 6)
    landscape.end_task([blobs(1)])
    model[0].requires_grad_(False)
    landscape.begin_task()  # what is frozen need not be there


def test_layers_unfrozen_in_mid_task_are_refused_where_a_pull_is_due():
    model, own, landscape = begun(begin=False)
    model[0].requires_grad_(False)
    landscape.begin_task()
    steps(model, [own], landscape, 7)
    model[0].requires_grad_(True)
    with pytest.raises(StateError, match=r"0\.weight \(and 1 more\) is trained and was not"):
        steps(model, [own], landscape, 5)
    with pytest.raises(StateError, match="unfreeze layers before begin_task"):
        landscape.end_task([blobs(1)])
    model[0].requires_grad_(False)
    landscape.end_task([blobs(1)])
    assert landscape.tasks_ended == 2


def test_a_head_that_grows_after_begin_task_is_refused():
    model, own, landscape = begun(pseudo_inputs=0)
    model[2] = nn.Linear(10, 5)
    own.param_groups[0]["params"] = list(model.parameters())
    steps(model, [own], landscape, 2)
    with pytest.raises(StateError, match=r"2\.weight \(and 1 more\) is trained"):
        landscape.end_task([blobs(1)])
    landscape.abandon_task()
    landscape.begin_task()
    steps(model, [own], landscape, 6)
    landscape.end_task([blobs(1)])
    assert landscape.constraints["2.weight"].anchor.shape == (5, 11)


def test_a_parameter_of_another_shape_is_refused():
    model, _, landscape = begun()
    model[2].bias.data = torch.zeros(5)
    for _ in range(4):
        landscape.step()
    with pytest.raises(StateError, match=r"2\.bias has the shape \(5,\) and had \(3,\)"):
        landscape.step()


def test_layers_frozen_in_mid_task_are_refused_at_its_end_alone():
    model, own, landscape = begun()
    steps(model, [own], landscape, 3)
    model[0].requires_grad_(False)
    steps(model, [own], landscape, 9)
    with pytest.raises(StateError, match=r"0\.weight \(and 1 more\) is frozen and was not"):
        landscape.end_task([blobs(1)])
    model[0].requires_grad_(True)
    landscape.end_task([blobs(1)])
    assert landscape.tasks_ended == 2


def test_what_leaves_the_training_as_it_is_is_no_alarm():
    """Heads made in an evaluation for tasks to come, tensors swapped, a loss's own parameter."""
    model = network()
    model.heads = nn.ModuleDict()
    scale = nn.Parameter(torch.ones(()))
    own = sgd([*model.parameters(), scale])
    landscape = Landscape(model, own, options=LDCOptions(probe_inputs=60, interval=5))
    x, y = blobs(0)
    for task in range(2):
        landscape.begin_task()
        for i in range(12):
            own.zero_grad()
            hidden = model[1](model[0](x))
            (scale * F.cross_entropy(model[2](hidden), y)).backward()
            own.step()
            landscape.step()
            if i == 6:
                model.heads[str(task)] = nn.Linear(10, 3)
                model[0].weight.data = model[0].weight.detach().clone()
                model.to("cpu")
                scale.requires_grad_(False)
            elif i == 8:
                scale.requires_grad_(True)
        landscape.forward = lambda batch: model[2](model[1](model[0](batch[0])))
        landscape.end_task([x])
    assert landscape.tasks_ended == 2


def test_nothing_is_said_of_an_ordinary_task():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, own, landscape = begun()
        steps(model, [own], landscape, PATIENCE + 1)
        landscape.end_task([blobs(1)])
