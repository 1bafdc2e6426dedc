"""A checkpointed strategy goes on at an experience boundary as if it had never stopped."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from flatcl.avalanche import LDC, LDCPlugin
from flatcl.checkpointing import maybe_load_checkpoint, save_checkpoint

from avalanche.benchmarks.scenarios.online import split_online_stream  # isort: skip
from avalanche.training import EWC, LwF, Naive, Replay  # isort: skip
from avalanche.training.plugins import LRSchedulerPlugin  # isort: skip
from test_avalanche import INPUTS, mlp, settings, stream, weights  # isort: skip

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
}


def build(kind=LDC, optimizer="sgd", plugins=(), seed=0, **own):
    model = mlp(seed=seed)
    opt = OPTIMIZERS[optimizer](model.parameters())
    return kind(**settings(model, opt, plugins=list(plugins)), **own)


def run(strategy, stream, path=None):
    for experience in stream:
        strategy.train(experience, eval_streams=[])
        if path is not None:
            save_checkpoint(strategy, path)
    return strategy


def assert_same(a, b, plugin=lambda s: s.ldc):
    assert torch.equal(weights(a.model), weights(b.model))
    mine, theirs = plugin(a).landscape, plugin(b).landscape
    assert mine.tasks_ended == theirs.tasks_ended
    for name, constraint in mine.constraints.items():
        assert torch.equal(constraint.anchor, theirs.constraints[name].anchor)
        assert torch.equal(constraint.stiffness, theirs.constraints[name].stiffness)


@pytest.mark.parametrize("source", ["probe", "sgd"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_ldc_resumes_and_equals_the_undisturbed_run(optimizer, source, tmp_path):
    path, tasks = tmp_path / "run.ckpt", list(stream(3).train_stream)
    torch.manual_seed(5)
    whole = run(build(optimizer=optimizer, source=source, interval=3), tasks)
    torch.manual_seed(5)
    _, start = maybe_load_checkpoint(build(optimizer=optimizer, source=source), path)
    assert start == 0
    run(build(optimizer=optimizer, source=source, interval=3), tasks[:2], path)
    torch.manual_seed(99)  # the checkpoint brings its own random state
    blank = build(optimizer=optimizer, source=source, interval=3, seed=7)
    resumed, start = maybe_load_checkpoint(blank, path)
    assert start == 2
    assert resumed is blank
    assert resumed.bytes_held() == whole.bytes_held()
    assert resumed.ldc in resumed.plugins
    assert resumed.ldc.landscape.model is resumed.model
    assert resumed.ldc.landscape.metric.optimizer is resumed.optimizer
    run(resumed, tasks[start:], path)
    assert_same(resumed, whole)
    again, start = maybe_load_checkpoint(build(), path)
    assert start == 3
    assert_same(again, whole)


def test_with_a_scheduler_and_another_method_s_plugin(tmp_path):
    def strategy():
        model = mlp()
        opt = OPTIMIZERS["sgd"](model.parameters())
        kept = {"reset_scheduler": False, "reset_lr": False}
        schedule = LRSchedulerPlugin(torch.optim.lr_scheduler.CosineAnnealingLR(opt, 50), **kept)
        plugin = LDCPlugin(interval=3)
        return Replay(mem_size=20, **settings(model, opt, plugins=[schedule, plugin]))

    def ldc(s):
        return next(p for p in s.plugins if isinstance(p, LDCPlugin))

    path, tasks = tmp_path / "run.ckpt", list(stream(3).train_stream)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.manual_seed(5)
        whole = run(strategy(), tasks)
        torch.manual_seed(5)
        run(strategy(), tasks[:1], path)
        torch.manual_seed(6)
        resumed, start = maybe_load_checkpoint(strategy(), path)
        run(resumed, tasks[start:])
    assert_same(resumed, whole, ldc)
    rates = [s.optimizer.param_groups[0]["lr"] for s in (resumed, whole)]
    assert rates[0] == rates[1] < 0.05


@pytest.mark.parametrize("kind", [Naive, EWC, LwF])
def test_other_strategies_resume_too(kind, tmp_path):
    own = {EWC: {"ewc_lambda": 1.0}, LwF: {"alpha": 1.0, "temperature": 2.0}}.get(kind, {})
    path, tasks = tmp_path / "run.ckpt", list(stream(3).train_stream)
    torch.manual_seed(5)
    whole = run(build(kind, **own), tasks)
    torch.manual_seed(5)
    run(build(kind, **own), tasks[:2], path)
    resumed, start = maybe_load_checkpoint(build(kind, seed=3, **own), path)
    run(resumed, tasks[start:])
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_between_the_pieces_of_a_task_that_comes_as_a_stream(tmp_path):
    benchmark = stream(2)
    pieces = list(
        split_online_stream(
            benchmark.train_stream, experience_size=16, access_task_boundaries=True, seed=1
        )
    )
    path = tmp_path / "run.ckpt"
    torch.manual_seed(5)
    whole = run(build(interval=1), pieces)
    torch.manual_seed(5)
    run(build(interval=1), pieces[:6], path)
    resumed, start = maybe_load_checkpoint(build(interval=1), path)
    assert start == 6
    assert resumed.ldc.landscape.task is not None
    run(resumed, pieces[start:])
    assert whole.ldc.landscape.tasks_ended == 2
    assert_same(resumed, whole)


def test_a_failed_save_leaves_the_checkpoint_before(tmp_path):
    path, tasks = tmp_path / "run.ckpt", list(stream(1).train_stream)
    strategy = run(build(), tasks, path)
    before = path.read_bytes()
    strategy.not_to_be_pickled = (i for i in range(3))
    with pytest.raises(TypeError, match="generator"):
        save_checkpoint(strategy, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


def test_a_plugin_not_used_yet_is_saved_and_serves_after_loading(tmp_path):
    path = tmp_path / "run.ckpt"
    save_checkpoint(build(), path)
    resumed, start = maybe_load_checkpoint(build(), path)
    assert start == 0
    assert resumed.bytes_held() == 0
    run(resumed, list(stream(1).train_stream))
    assert resumed.ldc.landscape.tasks_ended == 1
    assert isinstance(resumed.model, nn.Module)
    assert next(resumed.model.parameters()).shape[1] == INPUTS
