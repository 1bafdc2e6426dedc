"""A task's end happens as a whole or not at all; so do evaluations, and moves between devices."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flatcl.core.measure
import flatcl.core.record
import flatcl.core.witnesses
from flatcl.core.engine import Landscape
from flatcl.core.forecast import History
from flatcl.core.gaussians import InputGaussians, InputGroup
from flatcl.core.options import LDCOptions
from flatcl.core.rehearsal import Rehearsal
from flatcl.core.schedule import PullSchedule


def blobs(task):
    g = torch.Generator().manual_seed(task)
    y = torch.randint(0, 3, (160,), generator=g)
    return torch.randn(160, 6, generator=g) + 2.0 * torch.randn(3, 6, generator=g)[y], y


def steps(landscape, number, task):
    x, y = blobs(task)
    optimizer = landscape.metric.optimizer
    for i in range(number):
        chosen = torch.arange(i * 8, i * 8 + 8) % len(x)
        optimizer.zero_grad()
        (F.cross_entropy(landscape.model(x[chosen]), y[chosen]) + landscape.rehearsal()).backward()
        optimizer.step()
        landscape.step()


def learning(task, network=None, **options):
    """A landscape in the last step of a task; inputs 60, of which groups of 16 or more are kept."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = LDCOptions(**{"probe_inputs": 60, "interval": 5, "witnesses": 12, **options})
    landscape = Landscape(model, optimizer, options=options, network=network)
    for number in range(task + 1):
        if number:
            landscape.end_task([blobs(number - 1)])
        landscape.begin_task()
        steps(landscape, 12, number)
    return landscape


class Failing:
    """Lets the n-th call of a function fail, as memory or the user may."""

    def __init__(self, function, call, error):
        self.function, self.call, self.error = function, call, error

    def __call__(self, *args, **kwargs):
        self.call -= 1
        if self.call == 0:
            raise self.error
        return self.function(*args, **kwargs)


class Counting:
    """A constraint on all parameters that holds nothing, and counts the tasks."""

    def __init__(self):
        self.tasks = 0

    def begin_task(self, parameters, steps):
        pass

    watch = begin_task

    def energy(self, parameters):
        return torch.zeros(())

    def correction(self, parameters, metric):
        return {}

    def end_task(self, end):
        self.tasks += 1

    def state_dict(self):
        return {"tasks": self.tasks}

    def load_state_dict(self, state, parameters):
        self.tasks = state["tasks"]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


HELD = ("tasks_ended", "probe_scale", "generator", "constraints", "history", "inputs")
FAILURES = {
    "measuring": (flatcl.core.measure, "stiffness_from_probe", 2, MemoryError()),
    "merging": (flatcl.core.record, "combined", 2, KeyboardInterrupt()),
    "the history": (History, "record", 1, RuntimeError("out of memory")),
    "a second group": (InputGroup, "joined", 2, KeyboardInterrupt()),
    "witnesses": (flatcl.core.witnesses, "predictions_at", 1, RuntimeError("out of memory")),
}


def failing(patch, failure):
    owner, name, call, error = FAILURES[failure]
    wrapped = Failing(getattr(owner, name), call, error)
    patch.setattr(owner, name, lambda *args, **kwargs: wrapped(*args, **kwargs))
    return type(error)


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("failure", FAILURES)
def test_an_end_that_failed_leaves_nothing_and_can_be_repeated(failure, task, monkeypatch):
    undisturbed, landscape = learning(task), learning(task)
    batches = [blobs(task)]
    undisturbed.end_task(batches)
    before = landscape.state_dict()
    with monkeypatch.context() as patch, pytest.raises(failing(patch, failure)):
        landscape.end_task(batches)
    after = landscape.state_dict()
    assert all(equal(before[key], after[key]) for key in HELD)
    assert landscape.task is not None
    landscape.end_task(batches)
    assert equal(undisturbed.state_dict(), landscape.state_dict())
    ours, theirs = undisturbed.views(), landscape.views()
    assert equal(ours, theirs)


def test_an_end_that_failed_can_be_abandoned(monkeypatch):
    landscape = learning(1)
    before = landscape.state_dict()
    with monkeypatch.context() as patch, pytest.raises(failing(patch, "witnesses")):
        landscape.end_task([blobs(1)])
    landscape.abandon_task()
    after = landscape.state_dict()
    assert all(equal(before[key], after[key]) for key in HELD)
    assert after["task"] is None


def test_a_network_constraint_takes_up_a_task_once(monkeypatch):
    network = Counting()
    landscape = learning(0, network)
    with monkeypatch.context() as patch, pytest.raises(failing(patch, "witnesses")):
        landscape.end_task([blobs(0)])
    assert network.tasks == 0
    landscape.end_task([blobs(0)])
    assert network.tasks == landscape.tasks_ended == 1


def test_a_fit_that_failed_can_be_repeated(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    states = []
    for fails in (False, True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        landscape = Landscape(model, optimizer, options=LDCOptions(probe_inputs=60, witnesses=12))
        if fails:
            with monkeypatch.context() as patch, pytest.raises(failing(patch, "witnesses")):
                landscape.fit([blobs(0)])
        landscape.fit([blobs(0)])
        states.append(landscape.state_dict())
    assert equal(*states)


def test_contexts_of_pulled_weights_pull_once():
    landscape = learning(1, strength=0.3)  # in between two pulls
    own = {name: view.clone() for name, view in landscape.views().items()}
    outside = landscape.forecast([blobs(1)])
    with landscape.evaluating():
        pulled = {name: view.clone() for name, view in landscape.views().items()}
        assert landscape.forecast([blobs(1)]) == outside
        with landscape.evaluating():
            assert equal(landscape.views(), pulled)
        assert equal(landscape.views(), pulled)
    assert not equal(own, pulled)
    assert equal(landscape.views(), own)
    assert landscape.forecast([blobs(1)]) == outside


def test_a_pull_that_failed_in_an_evaluation_is_undone(monkeypatch):
    landscape = learning(1, strength=0.3)  # in between two pulls
    own = {name: view.clone() for name, view in landscape.views().items()}
    with monkeypatch.context() as patch:
        second = Failing(PullSchedule._pull_unit_, 2, MemoryError())
        patch.setattr(PullSchedule, "_pull_unit_", lambda *args: second(*args))
        with pytest.raises(MemoryError), landscape.evaluating():
            pass
    assert equal(landscape.views(), own)
    with landscape.evaluating():
        assert not equal(landscape.views(), own)


def test_what_is_held_follows_the_model_to_another_device(monkeypatch):
    """Device "meta" has shapes and no numbers, so that rehearsal and forecast go no further."""
    landscape = learning(1)
    landscape.end_task([blobs(1)])

    def devices():
        kept = [*landscape.inputs.tensors(), *landscape.history.witnesses[0].tensors()]
        kept += [part for group in landscape.inputs.groups.values() for part in group.rest]
        kept += [c.anchor for c in landscape.constraints.values()]
        return {t.device.type for t in kept}

    model, kept = landscape.model, landscape.state_dict()
    assert devices() == {"cpu"}
    model.to("meta")
    landscape.parameters = dict(model.named_parameters())  # "meta" alone replaces them
    monkeypatch.setattr(History, "forecast", lambda *args, **kwargs: None)
    landscape.forecast()
    assert devices() == {"meta"}
    landscape = Landscape(model, torch.optim.SGD(model.parameters(), lr=0.1))
    landscape.inputs = InputGaussians.from_state(kept["inputs"], torch.device("cpu"))
    landscape.history = History.from_state(kept["history"], torch.device("cpu"))
    assert devices() == {"cpu"}
    monkeypatch.setattr(Rehearsal, "begun", classmethod(lambda *args, **kwargs: None))
    landscape.tasks_ended = 2
    landscape.begin_task()
    assert devices() == {"meta"}
