"""The rivals' repairs against Avalanche's stock, and the registry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from blobs import (
    BATCH,
    CLASSES,
    INPUTS,
    SAMPLES,
    TASKS,
    build,
    flat,
    in_second_task,
    network,
    plugged,
    train,
    trained,
)
from torch import nn

from flatcl.errors import OptionError
from flatcl.rivals import RIVALS, RepairedLwF, RepairedMAS, bytes_held
from flatcl.streams import Stream

from avalanche.training.plugins import MASPlugin, SupervisedPlugin, SynapticIntelligencePlugin  # isort: skip
from avalanche.training.templates import SupervisedTemplate  # isort: skip

REGULARISERS = ["ewc", "ewc-online", "si", "mas", "lwf"]


def test_stock_si_is_naive_on_the_cpu_and_the_repaired_one_is_not(stream: Stream) -> None:
    naive = trained("naive", stream)
    model = network()
    stock = SynapticIntelligencePlugin(si_lambda=1e4)
    train(plugged(stock, model), stream)
    assert torch.equal(flat(model), naive)  # if this fails, Avalanche mended it: drop the repair
    assert not torch.equal(trained("si", stream, 1e4), naive)


def test_a_loss_of_zero_is_a_loss(stream: Stream) -> None:
    model = network()
    stock, repaired = MASPlugin(), RepairedMAS(1.0)
    for plugin in (stock, repaired):
        train(plugged(plugin, model), stream, tasks=1)
    with pytest.raises(ValueError, match="Loss is not available"):
        stock.before_backward(in_second_task(model))
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1.0)
    second = in_second_task(model)
    repaired.before_backward(second)
    assert float(second.loss.detach()) > 0


def with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(INPUTS, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, CLASSES)
    return nn.Sequential(*layers)


def test_mas_measures_in_evaluation_mode_and_leaves_modes_as_they_were(stream: Stream) -> None:
    model = with_norm()
    plugin = RepairedMAS(1.0)
    strategy = plugged(plugin, model)
    strategy.experience = stream.benchmark.train_stream[0]
    model[1].eval()  # the caller froze its statistics, and that alone
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    plugin.after_training_exp(strategy)
    first = plugin.importance
    plugin.after_training_exp(strategy)
    assert torch.equal(first["0.weight"].data, plugin.importance["0.weight"].data)  # no dropout
    assert torch.equal(model.get_buffer("1.running_mean"), torch.zeros(5))
    assert [module.training for module in model.modules()] == before


def test_mas_leaves_running_statistics_alone(stream: Stream) -> None:
    model = with_norm()
    train(build("mas", model, 1.0), stream, tasks=1)
    plain = with_norm()
    train(build("naive", plain), stream, tasks=1)
    assert int(model.get_buffer("1.num_batches_tracked")) == 2 * SAMPLES // BATCH
    assert torch.equal(model.get_buffer("1.running_mean"), plain.get_buffer("1.running_mean"))


def test_lwf_teacher_is_in_evaluation_mode_and_does_not_drift(stream: Stream) -> None:
    strategy = build("lwf", with_norm(), 1.0)
    (plugin,) = [p for p in strategy.plugins if isinstance(p, RepairedLwF)]
    train(strategy, stream, tasks=1)
    teacher = plugin.lwf.prev_model
    held = {name: value.clone() for name, value in teacher.state_dict().items()}
    strategy.train(stream.benchmark.train_stream[1], eval_streams=[])
    assert plugin.lwf.prev_model is not teacher
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(held[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", REGULARISERS)
def test_a_penalty_changes_training_and_its_absence_does_not(name: str, stream: Stream) -> None:
    naive = trained("naive", stream)
    torch.testing.assert_close(trained(name, stream, 0.0), naive, rtol=0, atol=1e-6)
    assert not torch.allclose(trained(name, stream, 10.0), naive, rtol=0, atol=1e-5)


def test_grids_are_logarithmic_of_one_length() -> None:
    for rival in RIVALS.values():
        assert bool(rival.grid) == (rival.hyperparameter is not None)
        if rival.grid:
            steps = np.diff(np.log10(rival.grid))
            assert len(rival.grid) == 5
            np.testing.assert_allclose(steps, steps[0], atol=0.05)  # 3, 10, 30, … count
    assert {name for name, rival in RIVALS.items() if rival.stores_data} == {"replay", "joint"}
    assert all(name == rival.name for name, rival in RIVALS.items())


def test_the_callers_plugins_come_first_and_their_list_is_kept() -> None:
    mine = SupervisedPlugin()
    plugins = [mine]
    strategy = build("ewc", network(), 1.0, plugins=plugins)
    assert plugins == [mine]
    assert strategy.plugins[0] is mine


@pytest.mark.parametrize("value", [None, -1.0, math.nan, math.inf])
def test_a_bad_hyperparameter_is_refused(value: float | None) -> None:
    with pytest.raises(OptionError, match=rf"^si_lambda is {value}: give a finite number ≥ 0$"):
        build("si", network(), value)


def test_a_bad_memory_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^memory is 0 samples: give at least 1$"):
        build("replay", network(), None, memory=0)


def test_replay_keeps_its_memory_full_with_every_task(stream: Stream) -> None:
    strategy = build("replay", network(), None, memory=10)
    train(strategy, stream)
    (plugin,) = [p for p in strategy.plugins if hasattr(p, "storage_policy")]
    assert len(plugin.storage_policy.buffer) == 10
    assert bytes_held(strategy) == 10 * (4 * INPUTS + 8)


def test_joint_trains_on_the_union(stream: Stream) -> None:
    class Count(SupervisedPlugin):  # type: ignore[misc]
        samples = 0

        def after_training_iteration(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
            self.samples += len(strategy.mb_x)

    count = Count()
    strategy = build("joint", network(), None, plugins=[count])
    strategy.train(stream.benchmark.train_stream, eval_streams=[])
    assert count.samples == 2 * TASKS * SAMPLES  # two epochs
    assert bytes_held(strategy) == TASKS * SAMPLES * (4 * INPUTS + 8)
