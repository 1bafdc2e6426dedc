"""Records of an Avalanche strategy: one an experience, and LDC beside them undisturbed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatcl.avalanche import LDC
from flatcl.errors import StateError
from flatcl.fluctuations.record import Recorder, SketchRecorder, open_record
from flatcl.record_plugin import RecordPlugin

from avalanche.benchmarks import benchmark_from_datasets  # isort: skip
from avalanche.benchmarks.utils.classification_dataset import (  # isort: skip
    _make_taskaware_classification_dataset,
)
from avalanche.benchmarks import with_classes_timeline, with_task_labels  # isort: skip
from avalanche.core import BasePlugin  # isort: skip
from avalanche.logging import BaseLogger  # isort: skip
from avalanche.training import Naive  # isort: skip
from avalanche.training.plugins import EvaluationPlugin  # isort: skip

SAMPLES, BATCH, EPOCHS = 48, 8, 2
STEPS = EPOCHS * SAMPLES // BATCH


class Samples(torch.utils.data.Dataset):
    def __init__(self, seed):
        g = torch.Generator().manual_seed(seed)
        self.targets = [i % 2 for i in range(SAMPLES)]
        self.x = torch.randn(SAMPLES, 4, generator=g) + torch.tensor(self.targets)[:, None]

    def __getitem__(self, i):
        return self.x[i], self.targets[i]

    def __len__(self):
        return SAMPLES


class Keep(BasePlugin):
    """Weights after every step, by hand."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def after_update(self, strategy, **kwargs):
        self.rows.append(nn.utils.parameters_to_vector(strategy.model.parameters()).detach())


def stream(tasks=2):
    train = [
        _make_taskaware_classification_dataset(Samples(t), task_labels=0) for t in range(tasks)
    ]
    benchmark = benchmark_from_datasets(train=train, test=train)
    return with_task_labels(with_classes_timeline(benchmark)).train_stream


def strategy(kind, *plugins):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=EPOCHS,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
    )


def train(learner):
    torch.manual_seed(5)  # Avalanche's loaders shuffle by the global state
    for experience in stream():
        learner.train(experience, eval_streams=[])
    return learner


def test_each_experience_beside_ldc_has_its_record(tmp_path):
    seen = []

    def make(model, number):
        seen.append(number)
        return Recorder(model, tmp_path / str(number), quantities=("weights", "increments"))

    plugin, keep = RecordPlugin(make), Keep()
    learner = train(strategy(LDC, plugin, keep))
    assert seen == [0, 1]
    assert [recorder.snapshots for recorder in plugin.recorders] == [STEPS, STEPS]
    W = torch.stack(keep.rows)
    for number in seen:
        record = open_record(tmp_path / str(number))
        own = W[number * STEPS : (number + 1) * STEPS]
        assert torch.equal(record.weights(), own)
        assert torch.equal(record.increments()[1:], own.diff(dim=0))
    with pytest.raises(StateError, match="is closed"):
        plugin.recorders[0].step()
    alone = train(strategy(LDC))
    for ours, theirs in zip(learner.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_sketches_are_kept_to_be_read():
    plugin = RecordPlugin(lambda model, number: SketchRecorder(model, 3, parameters=model[2]))
    train(strategy(Naive, plugin))
    first, second = (recorder.directions() for recorder in plugin.recorders)
    assert first.snapshots == second.snapshots == STEPS
    assert first.directions.shape == (3, 14)
    assert not torch.equal(first.mean, second.mean)


class Stop(BasePlugin):
    def after_update(self, strategy, **kwargs):
        raise KeyboardInterrupt


def test_an_interrupted_experience_can_be_trained_again_with_resume(tmp_path):
    plugin = RecordPlugin(lambda model, _: Recorder(model, tmp_path / "r", resume=True))
    stop = Stop()
    learner = strategy(Naive, plugin, stop)
    experience = stream(1)[0]
    with pytest.raises(KeyboardInterrupt):
        learner.train(experience, eval_streams=[])
    learner.plugins.remove(stop)
    learner.train(experience, eval_streams=[])
    assert len(plugin.recorders) == 1
    assert open_record(tmp_path / "r").count == 1 + STEPS
