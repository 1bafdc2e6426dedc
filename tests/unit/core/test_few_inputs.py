"""Tasks of a few inputs, and last parts of a batch that are no task labels: nothing is kept of one.

Gaussians are of at least ``LEAST_INPUTS`` inputs; what is fewer leaves its task to the constraint.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.engine import Landscape
from flatcl.core.gaussians import InputGaussians
from flatcl.core.options import LDCOptions
from flatcl.core.sample import LEAST_INPUTS, OTHERS, Sample

WEIGHTS = 10**6
FEW = "will not be rehearsed.*16 inputs of a task label at least"


def inputs(n, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def sample(n, *labels, classes=0, seed=0):
    """Return n inputs with a target and, if any are given, task labels."""
    parts = [inputs(n, seed), torch.zeros(n, dtype=torch.long), *labels]
    return Sample.grouped(parts, torch.full((n,), classes))


@pytest.mark.parametrize("n", [1, 5, LEAST_INPUTS - 1])
def test_fewer_inputs_than_a_group_needs_make_none(n):
    found = InputGaussians()
    with pytest.warns(UserWarning, match=rf"{n} inputs with task label 0 .*{FEW}"):
        found.take_in(sample(n), WEIGHTS)
    assert not found.groups
    assert found.bytes_held() == 0
    found.take_in(sample(n, seed=1), WEIGHTS)  # it is said once
    found.take_in(sample(LEAST_INPUTS, seed=2), WEIGHTS)
    found.take_in(sample(n, classes=3), WEIGHTS)  # there is a group to join now
    assert [group.count for group in found.groups.values()] == [LEAST_INPUTS + n]


def test_a_task_label_of_a_few_joins_no_other_label():
    labels = torch.tensor([0] * 20 + [1] * 5 + [2] * 16)
    found = InputGaussians()
    with pytest.warns(UserWarning, match="5 inputs with task label 1"):
        found.take_in(sample(41, labels), WEIGHTS)
    assert {key: group.count for key, group in found.groups.items()} == {(0, 0): 20, (0, 2): 16}
    expected = inputs(41)[:20].mean(0)
    torch.testing.assert_close(found.groups[0, 0].mean, expected)


def test_groups_are_limited_whatever_the_number_of_task_labels():
    found = InputGaussians()
    for label in range(32):
        found.take_in(sample(20, torch.full((20,), label)), weights=1)
    # 16 of classes, 16 of all others of a task label, and no more.
    with pytest.warns(UserWarning, match="label 32 .*16 groups of further task labels at most"):
        found.take_in(sample(20, torch.full((20,), 32)), weights=1)
    found.take_in(sample(20, torch.full((20,), 33)), weights=1)
    assert list(found.groups) == [(0, n) for n in range(16)] + [(OTHERS, n) for n in range(16, 32)]
    found.take_in(sample(20, torch.full((20,), 3)), weights=1)  # groups that there are go on
    found.take_in(sample(20, torch.full((20,), 20)), weights=1)
    assert found.groups[0, 3].count == found.groups[OTHERS, 20].count == 40


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (torch.arange(40), "40 different values"),
        (torch.arange(40).flip(0)[:, None] % 30 + 7.0, "30 different values"),
        (torch.linspace(0, 1, 40), "values that are no whole numbers"),
        (torch.full((40,), float("nan")), "values that are no whole numbers"),
    ],
    ids=["index", "floats", "weight", "nan"],
)
def test_an_index_or_a_weight_is_no_task_label(last, message):
    with pytest.warns(UserWarning, match=f"3 parts counts as task labels.*40 inputs has {message}"):
        found = sample(40, last)
    assert list(found.groups) == [(0, 0)]
    assert len(found.groups[0, 0]) == 40


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_whole_numbers_that_inputs_share_are_task_labels(dtype):
    found = sample(40, (torch.arange(40) % 2).to(dtype))
    assert {key: len(places) for key, places in found.groups.items()} == {(0, 0): 20, (0, 1): 20}


def landscape_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = LDCOptions(interval=4, probe_inputs=40, witnesses=16)
    return Landscape(model, optimizer, options=options)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(landscape, n, seed, last=None):
    """Train a task of n inputs in all; ``last`` is the batches' third part."""
    x, y = inputs(n, seed), torch.arange(n) % 3
    model, optimizer = landscape.model, landscape.metric.optimizer
    model.train()
    landscape.begin_task()
    for _ in range(10):
        optimizer.zero_grad()
        with landscape.joining():
            outputs = model(x)
        (F.cross_entropy(outputs, y) + landscape.rehearsal()).backward()
        optimizer.step()
        landscape.step()
    landscape.end_task([(x, y) if last is None else (x, y, last)])


def test_a_task_of_a_few_inputs_is_held_and_what_follows_goes_on():
    landscape = landscape_of(network())
    with pytest.warns(UserWarning, match=FEW):
        train(landscape, 5, seed=0)
    assert not landscape.inputs.groups
    assert landscape.history.witnesses == [None]
    assert landscape.constraints
    assert "Gaussians" not in str(landscape.describe())
    state = landscape.state_dict()
    other = landscape_of(network())
    other.model.load_state_dict(landscape.model.state_dict())
    other.load_state_dict(state)
    for one in (landscape, other):
        one.begin_task()
        assert one.task.rehearsal is None
        assert one.rehearsal().item() == 0.0
        assert one.forecast([(inputs(5),)]).rises[0] >= 0.0
        one.abandon_task()
        train(one, 40, seed=1)
        assert one.inputs.groups
        assert one.history.witnesses[0] is None
        one.begin_task()
        assert one.task.rehearsal is not None
        one.abandon_task()
    for a, b in zip(landscape.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(group.count >= LEAST_INPUTS for group in landscape.inputs.groups.values())


def test_an_index_beside_the_inputs_makes_memory_no_larger():
    held = []
    landscape = landscape_of(network())
    for task in range(3):
        with pytest.warns(UserWarning, match="40 different values"):
            train(landscape, 40, task, last=torch.arange(40) + 40 * task)
        held.append(landscape.inputs.bytes_held())
    assert max(held) <= 4 * 4 * (1 + 8) * 4  # one group a class and one of the others, d = 4


def test_groups_of_a_few_in_a_state_of_an_earlier_version_are_left_out():
    found = InputGaussians()
    found.take_in(sample(20, torch.full((20,), 1)), WEIGHTS)
    state = found.state_dict()
    few = {**state["groups"][0], "key": [0, 2], "count": 3}
    state["groups"] = [few, *state["groups"]]
    with pytest.warns(UserWarning, match=rf"3 inputs with task label 2 .*{FEW}"):
        read = InputGaussians.from_state(state, torch.device("cpu"))
    assert list(read.groups) == [(0, 1)]
