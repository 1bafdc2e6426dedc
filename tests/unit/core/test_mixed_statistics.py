"""BatchNorm's statistics are mixed over tasks from the second on, and only while a task runs."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatcl import LDCOptions
from flatcl.core.engine import Landscape
from flatcl.core.rehearsal import Rehearsal
from flatcl.core.statistics import MixedStatistics, running_statistics
from flatcl.errors import OptionError, StateError

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


def steps(
    landscape: Landscape, shift: float, number: int = 10, through=None, dtype=torch.float32
) -> None:
    """Train as a loop does that sets the training mode before each step."""
    x, y = data(shift)
    x = x.to(dtype)
    for _ in range(number):
        landscape.model.train()
        landscape.metric.optimizer.zero_grad()
        loss = cross_entropy((through or landscape.model)(x), y) + landscape.rehearsal()
        loss.backward()
        landscape.metric.optimizer.step()
        landscape.step()


def first_task(landscape: Landscape, dtype: torch.dtype = torch.float32) -> None:
    landscape.begin_task()
    steps(landscape, 0.0, dtype=dtype)
    landscape.end_task([data(0.0)[0].to(dtype)])


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in model.named_buffers()}


def moved(model: nn.Module, since: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(b, since[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (7, 3, 4, 2)])
def test_a_batch_is_normalised_as_if_the_earlier_inputs_were_in_it(shape):
    """Oracle: BatchNorm in training, old and new inputs in one batch, outputs and gradients."""
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    g = torch.Generator().manual_seed(0)
    old = 2.0 * torch.randn(3 * shape[0], *shape[1:], generator=g, dtype=torch.float64) + 5.0
    new = torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(shape, generator=g, dtype=torch.float64)
    oracle = kind(3).double()
    with torch.no_grad():
        oracle.weight.normal_(generator=g)
        oracle.bias.normal_(generator=g)
    layer = copy.deepcopy(oracle)
    dims = [d for d in range(len(shape)) if d != 1]
    layer.running_mean.copy_(old.mean(dims))
    layer.running_var.copy_(old.var(dims, correction=0))

    joint = oracle(torch.cat([old, new]))[len(old) :]
    (expected,) = torch.autograd.grad((weights * joint).sum(), new)

    model = nn.Sequential(layer)
    mixed = MixedStatistics.begun(model, share=0.75)
    mixed.mix_()
    kept = [t.clone() for t in running_statistics(model).values()]
    outputs = model(new)
    (found,) = torch.autograd.grad((weights * outputs).sum(), new)
    torch.testing.assert_close(outputs, joint)
    torch.testing.assert_close(found, expected)

    both = torch.cat([old, new.detach()])
    for _ in range(2):
        model(new)  # counts as one, the latest of a step
    assert all(map(torch.equal, kept, running_statistics(model).values()))
    mixed.follow_()
    mixed.follow_()
    torch.testing.assert_close(layer.running_mean, kept[0].lerp(both.mean(dims), 0.1))
    torch.testing.assert_close(layer.running_var, kept[1].lerp(both.var(dims, correction=0), 0.1))
    model.eval()
    evaluated = nn.functional.batch_norm(
        new, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
    )
    torch.testing.assert_close(model(new), evaluated)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_where_no_weight_moves_held_outputs_stay_as_they_are(share):
    model = network()
    landscape = made(model, hold_statistics=share)
    first_task(landscape)
    landscape.metric.optimizer.param_groups[0]["lr"] = 0.0
    before, weights = model.eval()(data(0.0)[0]), copy.deepcopy(dict(model.named_parameters()))
    landscape.begin_task()
    steps(landscape, 2.0, number=60)
    landscape.end_task([data(2.0)[0]])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, weights[name])  # but for rounding in the centre
    apart = float((model.eval()(data(0.0)[0]) - before).detach().abs().max())
    assert (apart < 1e-4) is (share == 1.0)


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
        assert torch.equal(model[1].num_batches_tracked, kept["1.num_batches_tracked"])
        assert [m.training for m in model] == [True] * 5
    kept = statistics(model)
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
    assert model[1].training is (frozen and within)
    if frozen:
        model[1].eval()  # as such a loop does
    landscape.abandon_task()
    assert model[1].training is after


@pytest.mark.parametrize(
    ("options", "mixed"),
    [
        ({"strength": 0}, False),
        ({"strength": 0, "witnesses": 8}, False),
        ({"strength": 0, "pseudo_inputs": 4}, True),
        ({"pseudo_inputs": 0}, True),
        ({"hold_statistics": 0}, False),
    ],
)
def test_mixed_where_anything_of_the_later_tasks_training_is(options, mixed):
    model = network()
    landscape = made(model, **options)
    first_task(landscape)
    landscape.begin_task()
    model.train()
    assert model[1].training is not mixed


def test_a_layer_that_no_task_has_been_through_follows():
    model = network()
    landscape = made(model)
    first_task(landscape)
    model.add_module("5", nn.BatchNorm1d(CLASSES))
    landscape.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    landscape.begin_task()
    steps(landscape, 1.0)
    assert [model[1].training, model[5].training] == [False, True]
    landscape.end_task([data(1.0)[0]])
    landscape.begin_task()
    assert [model[1].training, model[5].training] == [False, False]


def test_fitted_weights_keep_the_statistics_they_came_with():
    model = network()
    model(data(0.0)[0])
    kept = statistics(model)
    landscape = made(model, hold_statistics=1)
    landscape.fit([data(0.0)[0]])
    landscape.begin_task()
    steps(landscape, 1.0)
    assert not moved(model, kept)


def test_a_network_compiled_before_comes_out_the_same():
    ends = []
    for compiled in (False, True):
        model = network()
        model[3].p = 0.0  # its random numbers are drawn in another way
        through = torch.compile(model, backend="eager") if compiled else None
        landscape = made(model)
        for shift in (0.0, 1.0):
            landscape.begin_task()
            steps(landscape, shift, through=through)
            landscape.end_task([data(shift)[0]])
            model.eval()
            (through or model)(data(shift)[0])  # with gradients, as in training
        ends.append(statistics(model))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_in_mid_task_is_mixed_too_and_stands_alone(copied):
    model = network().double()
    landscape = made(model)
    first_task(landscape, dtype=torch.float64)
    landscape.begin_task()
    model.train()
    other = copied(model)
    assert other[1].train.layer is other[1]
    x = data(1.0)[0].double()
    torch.testing.assert_close(other[:2](x), model[:2](x))
    landscape.abandon_task()
    assert model[1].training
    assert not other.train()[1].training
    assert not torch.allclose(other[:2](x), model[:2](x))


def test_layers_inside_one_follow_the_mode_and_others_are_left_alone():
    class NormAct(nn.BatchNorm1d):
        def __init__(self):
            super().__init__(2)
            self.drop = nn.Dropout()

        def forward(self, x):
            return self.drop(super().forward(x)).relu()

    model = nn.Sequential(NormAct(), nn.InstanceNorm1d(2, track_running_stats=True))
    model(torch.randn(3, 2, 5))
    mixed = MixedStatistics.begun(model, 0.9)
    assert list(mixed.state_dict()["earlier"]) == ["0"]
    model.eval()
    mixed.mix_()
    model.train()
    assert [m.training for m in model] == [False, True]
    assert model[0].drop.training
    assert (model[0](torch.randn(3, 2, 5)) >= 0).all()  # its own forward
    mixed.release_()
    mixed.release_()
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_summed_in_float32(dtype):
    x = torch.full((4096, 2), 3.0) + torch.randn(4096, 2)
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].running_mean.fill_(2.0)
    MixedStatistics.begun(model, 0.5).mix_()
    narrow, exact = (model[0](t.to(dtype).to(as_)) for t, as_ in ((x, dtype), (x, torch.float32)))
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.float(), exact, rtol=0.02, atol=0.02)


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
    resumed.metric.optimizer.load_state_dict(landscape.metric.optimizer.state_dict())
    for each in (landscape, resumed):
        torch.manual_seed(1)
        steps(each, 1.0)
    assert not moved(other, statistics(model))
    older = landscape.state_dict()
    del older["task"]["statistics"]  # as before version 4, when they followed
    again = made(network())
    again.load_state_dict(older)
    assert again.model[1].training
    strange = landscape.state_dict()
    strange["task"]["statistics"]["earlier"]["0"] = strange["task"]["statistics"]["earlier"]["1"]
    with pytest.raises(StateError, match="'0', which is no BatchNorm"):
        made(network()).load_state_dict(strange)


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.9, "share 0.9, BatchNorm's, from the second task on"), (0, "not held")],
)
def test_describe_tells_of_them(share, told):
    landscape = made(network(), hold_statistics=share)
    (line,) = [h for h in landscape.describe().holdings if h.name == "running statistics"]
    assert (line.held, line.shape, line.bytes) == (told, (16,), 0)


@pytest.mark.parametrize("share", [-0.1, 1.1, "all", float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(OptionError, match=r"hold_statistics is .*a number, 0 to 1"):
        LDCOptions(hold_statistics=share)


def test_a_task_that_cannot_begin_leaves_the_modes(monkeypatch):
    model = network()
    landscape = made(model)
    first_task(landscape)
    monkeypatch.setattr(Rehearsal, "begun", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        landscape.begin_task()
    assert landscape.task is None
    assert [m.training for m in model] == [True] * 5


class Frozen(nn.Sequential):
    """Keeps its normalisation in evaluation mode, as a pretrained backbone does."""

    frozen = False

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self[1].eval()
        return self


@pytest.mark.parametrize("evaluated", [False, True])  # before the task, as between tasks
@pytest.mark.parametrize("by", ["network", "loop"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_that_the_user_keeps_in_evaluation_keeps_its_statistics(evaluated, by, compiled):
    model = Frozen(*network())
    landscape = made(model, pseudo_inputs=4)
    first_task(landscape)
    model.frozen = by == "network"
    model.train(not evaluated)
    if not evaluated:
        model[1].eval()
    kept = statistics(model)
    landscape.begin_task()
    through = torch.compile(model, backend="eager") if compiled else model
    x, y = data(1.0)
    for _ in range(3):
        model.train()
        if by == "loop":
            model[1].eval()
        cross_entropy(through(x), y).backward()
        landscape.step()
    assert not moved(model, kept)
    assert not model[1].training
    landscape.abandon_task()
    assert [m.training for m in model] == [True, False, True, True, True]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_that_the_user_lets_go_in_mid_task_is_mixed_again(compiled):
    model = network()
    landscape = made(model)
    first_task(landscape)
    landscape.begin_task()
    through = torch.compile(model, backend="eager") if compiled else model
    kept = statistics(model)
    for frozen in (True, False):
        model.train()
        model[1].train(not frozen)
        through(data(1.0)[0])
        model.eval()  # says nothing of the layer
        landscape.step()
        assert moved(model, kept) is not frozen
    landscape.abandon_task()
    assert not model.train()[1]._forward_pre_hooks


def test_a_landscape_that_is_dropped_in_mid_task_leaves_the_model_to_itself():
    model = network()
    landscape = made(model)
    first_task(landscape)
    landscape.begin_task()
    model.train()
    assert not model[1].training
    del landscape
    gc.collect()
    assert model[1].training
    assert not model[1]._forward_pre_hooks
    assert "train" not in vars(model[1])


def test_a_landscape_that_begins_takes_over_from_one_that_was_left_in_mid_task():
    model = network()
    left = made(model)
    first_task(left)
    left.begin_task()  # and never ended, but held by a traceback
    fresh = made(model)
    kept = statistics(model)
    fresh.begin_task()
    steps(fresh, 1.0)
    assert model[1].training
    assert moved(model, kept)
    fresh.end_task([data(1.0)[0]])
    fresh.begin_task()
    (hook,) = model[1]._forward_pre_hooks.values()
    for drop in (left.abandon_task, lambda: vars(left).clear(), gc.collect):
        drop()
        assert list(model[1]._forward_pre_hooks.values()) == [hook]
        assert not model.train()[1].training
    fresh.abandon_task()
    assert model[1].training


def test_a_copy_of_mid_task_is_taken_over_too():
    model = network()
    landscape = made(model)
    first_task(landscape)
    landscape.begin_task()
    other = copy.deepcopy(model)
    again = made(other)
    again.begin_task()
    assert other.train()[1].training
    assert not model.train()[1].training
    again.abandon_task()
    resumed = made(copy.deepcopy(model))
    resumed.load_state_dict(landscape.state_dict())
    assert len(resumed.model[1]._forward_pre_hooks) == 1
