"""Accuracy: known answers, foreign data, and a model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatcl.data import load_images
from flatcl.errors import DataError, NonFiniteError
from flatcl.evaluation import accuracy_row, judge
from flatcl.streams import StreamOptions, make_stream

# After the streams, which make Avalanche importable.
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels  # isort: skip
from avalanche.benchmarks.utils import DataAttribute  # isort: skip
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset  # isort: skip
from avalanche.benchmarks.utils.data_attribute import TaskLabels  # isort: skip
from avalanche.models import MultiTaskModule  # isort: skip


class Fixed(nn.Module):
    """Answers every input with the same outputs."""

    def __init__(self, outputs: list[float]) -> None:
        super().__init__()
        self.outputs = torch.tensor(outputs)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.outputs.expand(len(x), -1)


def foreign(x: Tensor, y: Tensor) -> Any:
    labels = [DataAttribute(y.tolist(), "targets"), TaskLabels([0] * len(y))]
    pairs = torch.utils.data.TensorDataset(x, y)
    data = TaskAwareSupervisedClassificationDataset([pairs], data_attributes=labels)
    return with_task_labels(benchmark_from_datasets(test=[data])).test_stream


def test_a_constant_answer_scores_the_share_of_its_class() -> None:
    options = StreamOptions("split-class", tasks=2)
    stream = make_stream(load_images("digits"), options, seed=0)
    counts = torch.bincount(load_images("digits").y_test)
    expected = [float(counts[3] / counts[:5].sum()), 0.0]
    model = Fixed([0, 0, 0, 1, 0, 0, 0, 0, 0, -torch.inf])  # −inf masks a class
    for size in (1, 7, 1024):
        row = accuracy_row(model, stream.benchmark.test_stream, device="cpu", batch_size=size)
        assert row == pytest.approx(expected)


def test_the_row_agrees_with_a_plain_loop_on_both_kinds_of_data() -> None:
    stream = make_stream(load_images("digits"), StreamOptions(tasks=2), seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y, _ = next(iter(stream.benchmark.test_stream[1].dataset.feed(1000)))
    expected = float((model(x).argmax(1) == y).double().mean())
    row = accuracy_row(model, stream.benchmark.test_stream, device="cpu", batch_size=100)
    assert row[1] == pytest.approx(expected)
    assert accuracy_row(model, foreign(x, y), device="cpu", batch_size=100) == [row[1]]


def test_models_that_take_task_labels_get_them() -> None:
    class Told(MultiTaskModule):  # type: ignore[misc]
        def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
            return nn.functional.one_hot(task_labels, 2).float()

    stream = make_stream(load_images("digits"), StreamOptions("split-task", tasks=5), seed=0)
    experiences = list(stream.benchmark.test_stream)[:2]
    y = [next(iter(e.dataset.feed(1000)))[1] for e in experiences]
    expected = [float((y[number] == number).double().mean()) for number in range(2)]
    assert accuracy_row(Told(), experiences, device="cpu") == pytest.approx(expected)


def test_each_module_keeps_its_mode_and_its_buffers() -> None:
    stream = make_stream(load_images("digits"), StreamOptions(tasks=1), seed=0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, 10))
    model[1].eval()  # a frozen BatchNorm stays frozen
    model[3].train()
    before = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    accuracy_row(model, stream.benchmark.test_stream, device="cpu")
    assert [module.training for module in model.modules()] == before
    assert all(map(torch.equal, buffers, model.buffers()))
    with pytest.raises(RuntimeError):
        accuracy_row(
            nn.Sequential(model, nn.Linear(3, 3)), stream.benchmark.test_stream, device="cpu"
        )
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_outputs_without_a_largest_finite_one_are_refused(bad: float) -> None:
    stream = make_stream(load_images("digits"), StreamOptions(tasks=1), seed=0)
    with pytest.raises(NonFiniteError, match="outputs on experience 0 are NaN or infinite"):
        accuracy_row(Fixed([bad, 0.0]), stream.benchmark.test_stream, device="cpu")


def test_an_empty_experience_is_refused() -> None:
    class Empty:
        dataset: tuple[()] = ()

    with pytest.raises(DataError, match="experience 0 has no samples"):
        accuracy_row(Fixed([0.0]), [Empty()], device="cpu")


def test_the_loss_is_the_mean_cross_entropy_and_infinite_without_an_output() -> None:
    stream = make_stream(load_images("digits"), StreamOptions(tasks=1), seed=0)
    x, y, *_ = next(iter(stream.benchmark.test_stream[0].dataset.feed(10**6)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    (found,) = judge(model, stream.benchmark.test_stream, device="cpu", batch_size=50)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(x), y)
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert found.accuracy == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    (grown,) = judge(small, stream.benchmark.test_stream, device="cpu")
    assert grown.loss == float("inf")
