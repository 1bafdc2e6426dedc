"""An Avalanche strategy goes on after Ctrl-C or an exception, in training, evaluation or a fit."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from flatcl.avalanche import LDC, LDCPlugin, PseudoRehearsal
from flatcl.errors import StateError

from avalanche.benchmarks.scenarios.online import split_online_stream  # isort: skip
from avalanche.core import SupervisedPlugin  # isort: skip
from avalanche.training.templates import SupervisedTemplate  # isort: skip
from test_avalanche import INPUTS, SAMPLES, mlp, settings, stream, train, weights  # isort: skip


class Interrupt(SupervisedPlugin):
    """Presses Ctrl-C once, at a hook, some iterations after it was armed."""

    def __init__(self, hook):
        super().__init__()
        self.left = None
        setattr(self, hook, self._press)

    def _press(self, strategy, **kwargs):
        if self.left is None or strategy.ldc.landscape.task is None:
            return
        self.left -= 1
        if self.left == 0:
            self.left = None
            raise KeyboardInterrupt


def interrupted(strategy, interrupt, experience, after=3, **options):
    interrupt.left = after
    with pytest.raises(KeyboardInterrupt):
        strategy.train(experience, **options)


def made(hook, model=None, **options):
    interrupt = Interrupt(hook)
    strategy = LDC(interval=5, **settings(model or mlp(), plugins=[interrupt], **options))
    return strategy, interrupt


@pytest.mark.parametrize("hook", ["after_forward", "after_backward", "after_training_iteration"])
def test_training_that_was_interrupted_blocks_nothing(hook):
    benchmark = stream(3)
    strategy, interrupt = made(hook)
    first, second, third = benchmark.train_stream
    strategy.train(first, eval_streams=[])
    interrupted(strategy, interrupt, second, eval_streams=[])
    with pytest.warns(UserWarning, match="training of task 1 was interrupted"):
        strategy.train(second, eval_streams=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy.train(third, eval_streams=[])
    assert strategy.ldc.landscape.tasks_ended == 3
    assert strategy.ldc.landscape.task is None
    assert not strategy.model._forward_hooks


def test_the_interrupted_task_leaves_no_trace_but_the_weights():
    benchmark = stream(2)
    ends = []
    for disturbed in (True, False):
        strategy, interrupt = made("after_training_iteration")
        first, second = benchmark.train_stream
        torch.manual_seed(5)
        strategy.train(first, eval_streams=[])
        kept = copy.deepcopy(strategy.model.state_dict())
        if disturbed:
            generator = strategy.ldc.landscape.generator.get_state()
            interrupted(strategy, interrupt, second, eval_streams=[])
            strategy.model.load_state_dict(kept)
            strategy.ldc.landscape.generator.set_state(generator)
        torch.manual_seed(6)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the training of task 1 was interrupted")
            strategy.train(second, eval_streams=[])
        ends.append(weights(strategy.model))
    assert torch.equal(*ends)


def test_a_further_piece_of_an_online_stream_goes_on_with_the_interrupted_task():
    strategy, interrupt = made("after_training_iteration", train_epochs=1)
    pieces = split_online_stream(
        stream(2).train_stream, experience_size=16, access_task_boundaries=True, seed=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, piece in enumerate(pieces):
            if i == 5:  # the second of the second task
                interrupted(strategy, interrupt, piece, after=1, eval_streams=[])
                steps = strategy.ldc.landscape.task.steps_made
            else:
                strategy.train(piece, eval_streams=[])
            if i == 6:
                assert strategy.ldc.landscape.task.steps_made == steps + 16 // 8
    assert i + 1 == 2 * SAMPLES // 16
    assert strategy.ldc.landscape.tasks_ended == 2


@pytest.mark.parametrize("again", ["eval", "train"])
def test_weights_loaded_after_an_evaluation_that_failed_stay(again, monkeypatch):
    benchmark = stream(2)
    strategy, interrupt = made("after_eval_iteration", eval_every=1, strength=0.1)
    first, second = benchmark.train_stream
    strategy.train(first, eval_streams=[])
    kept = weights(strategy.model)
    snapshot = copy.deepcopy(strategy.model.state_dict())
    interrupted(strategy, interrupt, second, after=2, eval_streams=[benchmark.test_stream[0:1]])
    assert any(strategy.ldc.landscape.task.schedule.since(0))  # pulled weights were shown
    strategy.model.load_state_dict(snapshot)
    if again == "eval":
        strategy.ldc.landscape.abandon_task()
        strategy.eval(benchmark.test_stream)
        assert torch.equal(weights(strategy.model), kept)
    else:
        begin, began = strategy.ldc.landscape.begin_task, []

        def begin_task(*args):
            began.append(weights(strategy.model))
            begin(*args)

        monkeypatch.setattr(strategy.ldc.landscape, "begin_task", begin_task)
        with pytest.warns(UserWarning, match="training of task 1 was interrupted"):
            strategy.train(second, eval_streams=[])
        assert torch.equal(began[0], kept)


def test_a_fit_that_failed_can_be_repeated():
    model = mlp()
    strategy = LDC(**settings(model))
    inputs = torch.randn(40, INPUTS, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        strategy.ldc.fit(model, [inputs[:, :2]])
    with pytest.raises(StateError, match="no task has begun"):
        strategy.describe()
    strategy.ldc.fit(model, [inputs])
    assert strategy.ldc.landscape.tasks_ended == 1
    with pytest.raises(StateError, match="fit comes once"):
        strategy.ldc.fit(model, [inputs])


@pytest.mark.parametrize("other", [PseudoRehearsal, LDCPlugin])
@pytest.mark.parametrize("normed", [False, True])
def test_two_of_its_plugins_serve_one_strategy(other, normed):
    torch.manual_seed(0)
    model = mlp()
    if normed:
        model.insert(1, nn.BatchNorm1d(12))
    plugins = [other(seed=3)]
    strategy = train(LDC(**settings(model, plugins=plugins)), stream(3))
    assert isinstance(strategy, SupervisedTemplate)
    assert strategy.ldc.landscape.tasks_ended == plugins[0].landscape.tasks_ended == 3
    assert torch.isfinite(weights(model)).all()
    assert not model._forward_hooks
    assert all(module.training for module in model.train().modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
