"""What earlier tasks are not held in is told, and no forecast of it is trusted."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.core.unheld import doubt_of, unreached
from flatcl.errors import DataError, StateError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def of(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = LDCOptions(**{"interval": 4, "pseudo_inputs": 0, **options})
    return Landscape(model, optimizer, options=options)


def batch(task):
    g = torch.Generator().manual_seed(task)
    return torch.randn(80, 6, generator=g), torch.randint(3, (80,), generator=g)


def train(landscape, task, *, end=True):
    x, y = batch(task)
    landscape.begin_task()
    for i in range(0, 80, 8):
        landscape.metric.optimizer.zero_grad()
        F.cross_entropy(landscape.model(x[i : i + 8]), y[i : i + 8]).backward()
        landscape.metric.optimizer.step()
        landscape.step()
    if end:
        landscape.end_task([(x, y)])


def again(landscape, model):
    """The same landscape, saved and loaded over another model object."""
    file = io.BytesIO()
    torch.save(landscape.state_dict(), file)
    file.seek(0)
    found = of(model)
    found.load_state_dict(torch.load(file, weights_only=True))
    return found


def test_a_layer_that_was_frozen_when_a_task_ended_is_told_once_it_is_trained():
    landscape = of(network())
    layer = landscape.model[0]
    layer.requires_grad_(False)
    train(landscape, 0)
    train(landscape, 1)  # frozen still: nothing to tell
    assert landscape.forecast().trusted
    layer.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"0\.weight \(and 1 more\) was frozen .*\(2 had ended"):
        train(landscape, 2)
    for found in (landscape, again(landscape, landscape.model)):
        forecast = found.forecast()
        assert ["0.weight" in reason for reason in forecast.reasons] == [True, True, False]
        assert "not held for the first 2 tasks" in str(found.describe())


def test_a_layer_frozen_after_it_was_held_is_no_reason_while_it_stays_frozen():
    landscape = of(network())
    train(landscape, 0)
    landscape.model[0].requires_grad_(False)
    train(landscape, 1)
    reasons = landscape.forecast().reasons
    assert "0.weight" not in reasons[0] or "0.weight" in reasons[1]
    found = again(landscape, landscape.model)  # its constraint is kept
    assert found.constraints.keys() == landscape.constraints.keys()
    landscape.model[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"0\.weight"):
        landscape.begin_task()


class Wrapped(nn.Module):
    """A layer held fast, with a low-rank adapter added to it."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_layers_wrapped_or_renamed_after_a_task_are_told():
    landscape = of(network())
    train(landscape, 0)
    model = landscape.model
    model[0] = Wrapped(model[0])
    landscape.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match=r"no longer has 0\.weight, which earlier tasks"):
        train(landscape, 1, end=False)
    forecast = landscape.forecast([batch(1)])
    assert not forecast.trusted
    assert "0.weight" in forecast.reason
    assert "held, but no longer in the model" in str(landscape.describe())


def test_new_heads_are_no_reason():
    assert unreached(network(), [], {}) == {}
    assert unreached(network(), ["0.weight", "2.weight[a]"], {}) == {}
    assert doubt_of({"w": 2}, 1) != "" == doubt_of({"w": 2}, 2)


def test_weights_moved_between_tasks_are_in_the_forecast():
    landscape = of(network())
    train(landscape, 0)
    assert landscape.forecast().rises == (0.0,)
    with torch.no_grad():
        landscape.model[0].weight.add_(0.05)
    energy = float(landscape.energy())
    assert energy > 0
    found = landscape.forecast()
    assert found.rises == (pytest.approx(energy),)
    assert not found.trusted  # how linear the network is there was not asked
    growth = landscape.forecast([batch(0)]).spent[-1].growth
    assert landscape.forecast([batch(0)]).rises == (pytest.approx(energy * growth),)
    train(landscape, 1, end=False)
    landscape.abandon_task()
    assert landscape.forecast().rises == (pytest.approx(float(landscape.energy())),)


@pytest.mark.parametrize("witnesses", [0, 32])
def test_a_forecast_of_weights_that_are_not_finite_is_not_trusted(witnesses):
    landscape = of(network(), witnesses=witnesses)
    train(landscape, 0)
    with torch.no_grad():
        landscape.model[0].weight[0, 0] = float("nan")
    found = landscape.forecast()
    assert not found.trusted
    assert found.reason


def test_outputs_of_another_model_or_without_gradients_are_refused():
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    landscape = Landscape(model, optimizer, forward=lambda parts: other(parts[0]))
    with pytest.raises(DataError, match="depend on none of the model's parameters"):
        landscape.fit([batch(0)])

    @torch.no_grad()
    def blind(parts):
        return model(parts[0])

    with pytest.raises(DataError, match="have no gradient"):
        Landscape(model, optimizer, forward=blind).fit([batch(0)])
    assert landscape.tasks_ended == 0


def test_a_data_set_in_place_of_batches_is_refused():
    data = torch.utils.data.TensorDataset(*batch(0))
    with pytest.raises(DataError, match=r"shapes \(6,\), \(\), not of one length; pass a DataL"):
        of(network()).fit(data)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_moved_to_another_dtype_goes_on(dtype):
    landscape = of(network(), pseudo_inputs=8, witnesses=32)
    train(landscape, 0)
    landscape.model.to(dtype)
    landscape.begin_task()
    assert landscape.rehearsal().item() == pytest.approx(0.0, abs=1e-2)
    assert len(landscape.forecast().rises) == 1


def test_riders_of_an_earlier_step_are_not_used():
    landscape = of(network(), pseudo_inputs=8)
    train(landscape, 0)
    landscape.begin_task()
    x, _ = batch(1)
    with landscape.joining():
        landscape.model(x[:8])
    with torch.no_grad():
        landscape.model[0].weight.add_(0.1)
    for p in landscape.model.parameters():
        p.grad = torch.zeros_like(p)
    landscape.step()
    late = landscape.rehearsal()
    assert late.item() == landscape.rehearsal().item() > 0


def test_a_saved_constraint_of_what_the_model_lacks_is_refused():
    landscape = of(network())
    train(landscape, 0)
    with pytest.raises(StateError, match="which the model does not have"):
        of(nn.Sequential(nn.Linear(6, 8))).load_state_dict(landscape.state_dict())
