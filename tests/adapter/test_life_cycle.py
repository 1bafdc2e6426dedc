"""LDC in Avalanche on online streams, beside other strategies, and on several processes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from processes import PROCESSES, join_group, run_processes
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flatcl.avalanche import LDC, LDCPlugin

from avalanche.benchmarks.scenarios.online import split_online_stream  # isort: skip
from avalanche.training import Cumulative, LwF, Replay  # isort: skip
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, ReplayPlugin  # isort: skip
from test_avalanche import SAMPLES, Growing, mlp, settings, stream, weights  # isort: skip


def pieces(benchmark, size, *, told=True, drop_last=False):
    return list(
        split_online_stream(
            benchmark.train_stream,
            experience_size=size,
            access_task_boundaries=told,
            drop_last=drop_last,
            seed=1,
        )
    )


def online(model=None, plugins=(), **options):
    plugin = LDCPlugin(interval=2, probe_inputs=40, **options)
    base = settings(model or mlp(), plugins=[*plugins, plugin])
    strategy = LwF(alpha=0.0, temperature=1.0, **{**base, "train_epochs": 1})
    return strategy, plugin


# 64 inputs a task: pieces that fill it, that do not, that are a task each, and of one batch.
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [16, 24, 64, 8])
def test_the_pieces_of_a_told_stream_are_one_task(size, drop_last):
    strategy, plugin = online()
    seen = []
    for experience in pieces(stream(3), size, drop_last=drop_last):
        strategy.train(experience, eval_streams=[])
        seen.append((plugin.landscape.tasks_ended, plugin.landscape.task is None))
    whole = SAMPLES // size if drop_last else -(-SAMPLES // size)
    assert len(seen) == 3 * whole
    # A task ends with its last piece and not before.
    assert seen == [((i + 1) // whole, (i + 1) % whole == 0) for i in range(3 * whole)]
    assert plugin._seen == []


def test_the_probe_draws_from_all_pieces_of_the_task():
    strategy, plugin = online()
    drawn = []
    original = plugin._forward
    plugin.landscape = None

    def watched(batch):
        drawn.append(batch[0].detach().clone())
        return original(batch)

    plugin._forward = watched
    parts = pieces(stream(1), 16)
    for experience in parts:
        strategy.train(experience, eval_streams=[])
    rows = torch.cat(drawn)
    for experience in parts:
        inputs = torch.stack([experience.dataset[i][0] for i in range(len(experience.dataset))])
        assert any(bool((rows == row).all(1).any()) for row in inputs)


@pytest.mark.parametrize("source", ["probe", "sgd"])
def test_a_growing_head_on_a_told_stream(source):
    torch.manual_seed(0)
    strategy, plugin = online(Growing(), source=source)
    for experience in pieces(stream(3, growing=True), 4):
        strategy.train(experience, eval_streams=[])
    assert plugin.landscape.tasks_ended == 3
    assert plugin.landscape.constraints["head.classifier.weight"].stiffness.shape[0] == 6


def test_a_stream_that_hides_its_boundaries_is_named():
    strategy, plugin = online()
    first, *_ = pieces(stream(1), 16, told=False)
    with pytest.warns(UserWarning, match="access_task_boundaries=True"):
        strategy.train(first, eval_streams=[])
    assert plugin.landscape.tasks_ended == 1


@pytest.mark.parametrize("source", ["probe", "sgd"])
def test_beside_cumulative_training_and_replay(source):
    """Joint data need no constraint, but LDC must neither break nor spoil the training."""
    benchmark = stream(3)
    for host, own in ((Cumulative, {}), (Replay, {"mem_size": 24})):
        model = mlp()
        plugin = LDCPlugin(source=source, interval=4)
        strategy = host(**own, **settings(model, plugins=[plugin], train_epochs=4))
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            for experience in benchmark.train_stream:
                strategy.train(experience, eval_streams=[])
        assert plugin.landscape.tasks_ended == 3
        assert torch.isfinite(weights(model)).all()
        assert accuracy(model, benchmark) > 0.75


def accuracy(model, benchmark):
    right = total = 0
    for experience in benchmark.test_stream:
        data = experience.dataset
        x = torch.stack([data[i][0] for i in range(len(data))])
        y = torch.tensor([int(data[i][1]) for i in range(len(data))])
        right += int((model(x).argmax(1) == y).sum())
        total += len(y)
    return right / total


@pytest.mark.parametrize("source", ["probe", "sgd"])
def test_a_task_that_early_stopping_ends(source):
    benchmark = stream(2)
    stop = EarlyStoppingPlugin(patience=1, val_stream_name="train_stream")
    model = mlp()
    plugin = LDCPlugin(source=source, interval=4)
    buffer = ReplayPlugin(mem_size=16)
    strategy = LDC(strength=0.0, **settings(model, plugins=[buffer], train_epochs=9))
    strategy.plugins = [stop, *strategy.plugins, plugin]
    stop.before_training_epoch = lambda s, **kw: (
        s.stop_training() if s.clock.train_exp_epochs > 2 else 0
    )
    stop.before_training = stop.after_eval = lambda s, **kw: None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
    assert plugin.landscape.tasks_ended == 2


def work(rank, folder):
    """Trains LDC on three experiences in each process, on its own order of the data."""
    join_group(rank, folder)
    found = {}
    for source in ("probe", "sgd"):
        model = DistributedDataParallel(mlp())
        strategy = LDC(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            train_epochs=4,
            evaluator=EvaluationPlugin(),  # loggers are the main process's alone
            source=source,
            interval=3,
        )
        torch.manual_seed(rank)
        first = next(model.parameters()).detach().clone()
        for experience in stream(3).train_stream:
            strategy.train(experience, eval_streams=[])
        assert not torch.equal(first, next(model.parameters()))
        assert strategy._check_distributed_training_compatibility()
        landscape = strategy.ldc.landscape
        assert landscape.peers.size == PROCESSES
        constraints = landscape.state_dict()["constraints"]
        found[source] = {"model": model.module.state_dict(), "constraints": constraints}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # imports Avalanche in two more processes
def test_processes_that_read_the_data_in_their_own_order_agree(tmp_path):
    first, second = run_processes(Path(__file__), tmp_path, seconds=150)
    for source, parts in first.items():
        for name, weight in parts["model"].items():
            assert torch.equal(weight, second[source]["model"][name]), name
        assert "0.weight" in parts["constraints"]  # not "module.0.weight": loads in one process
        for name, constraint in parts["constraints"].items():
            for key, tensor in constraint.items():
                other = second[source]["constraints"][name][key]
                assert torch.equal(tensor, other), (name, key)


def test_a_task_without_a_step_is_left_alone():
    strategy, plugin = online()
    strategy.train(next(iter(stream(1).train_stream)), eval_streams=[])
    before = weights(strategy.model)
    plugin.landscape.begin_task()
    plugin.landscape.end_task()
    assert torch.equal(weights(strategy.model), before)
    assert plugin.landscape.tasks_ended == 1
