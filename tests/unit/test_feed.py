"""The feed: whole batches equal samples one by one, whatever Avalanche did to the data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from flatcl.data import load_images
from flatcl.errors import OptionError
from flatcl.streams import ExperienceData, FastFeed, Stream, StreamOptions, fast, make_stream
from flatcl.views import TaskImages

# After the streams, which make Avalanche importable.
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels  # isort: skip
from avalanche.benchmarks.utils import DataAttribute  # isort: skip
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset  # isort: skip
from avalanche.benchmarks.utils.data_attribute import TaskLabels  # isort: skip
from avalanche.training import MAS, EWC, JointTraining, Naive, Replay  # isort: skip
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

DIGITS = load_images("digits")


def stream(scenario: Any = "permuted", *, cache_bytes: int = 2**30, **options: Any) -> Stream:
    wanted = StreamOptions(scenario, **({"tasks": 2, "train_size": 50} | options))
    return make_stream(DIGITS, wanted, seed=0, cache_bytes=cache_bytes)


def model(outputs: int = 10) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, outputs))


def strategy(kind: Any, net: nn.Module, **options: Any) -> Any:
    return kind(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(),
        **({"train_mb_size": 16, "train_epochs": 2, "eval_mb_size": 16} | options),
    )


class Recorder(SupervisedPlugin):  # type: ignore[misc]
    """Keeps a copy of each minibatch trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Tensor]] = []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.batches.append([tensor.clone() for tensor in strategy.mbatch])


def one_by_one(data: Any) -> list[Tensor]:
    x, y, t = zip(*(data[index] for index in range(len(data))), strict=True)
    return [torch.stack(x), torch.tensor(y), torch.tensor(t)]


def foreign(x: Tensor, y: Tensor) -> Any:
    """Avalanche's own kind of data set, from elsewhere."""
    labels = [DataAttribute(y.tolist(), "targets"), TaskLabels([0] * len(y))]
    pairs = torch.utils.data.TensorDataset(x, y)
    return TaskAwareSupervisedClassificationDataset([pairs], data_attributes=labels)


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


DERIVED: dict[str, Callable[[Any, Any], Any]] = {
    "whole": lambda a, b: a,
    "train and eval": lambda a, b: a.train().eval(),
    "subset": lambda a, b: a.subset([5, 3, 3, 40]),
    "concat": lambda a, b: a.concat(b),
    "plus": lambda a, b: b + a,
    "subsets joined": lambda a, b: a.subset([7, 1, 30]).concat(b.subset([0, 49, 2])),
    "subset of joined": lambda a, b: a.concat(b).subset([99, 0, 50, 49, 3, 77]),
    "with itself": lambda a, b: a.subset([1, 2]).concat(a.subset([2, 40])),
    "joined over and over": lambda a, b: a.concat(b).subset([60, 6]).concat(a).concat(b),
    "relabelled": lambda a, b: a.update_data_attribute("targets_task_labels", list(range(50))),
    "frozen": lambda a, b: a.freeze_transforms(),
}


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
@pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED.keys())
def test_batches_equal_samples_one_by_one(
    derive: Callable[[Any, Any], Any], cache_bytes: int
) -> None:
    first, second = stream("split-task", cache_bytes=cache_bytes).benchmark.train_stream
    data = derive(first.dataset, second.dataset)
    assert isinstance(data, ExperienceData)
    assert data.sources() is not None
    expected = one_by_one(data)
    assert equal(next(iter(data.feed(1000))), expected)
    indices = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:5]
    assert equal(data.batch(indices), [tensor[indices] for tensor in expected])
    assert equal(next(iter(DataLoader(data, 1000, collate_fn=data.collate_fn))), expected)
    assert equal(next(iter(DataLoader(data, 1000))), expected)  # torch's own collate
    assert expected[1].tolist() == list(data.targets)
    assert expected[2].tolist() == list(data.targets_task_labels)


def test_torch_s_own_subsets_and_concatenations_are_right() -> None:
    first, second = (e.dataset for e in stream("split-task").benchmark.train_stream)
    chosen = Subset(first, [4, 4, 9])
    assert equal(next(iter(DataLoader(chosen, 3))), one_by_one(first.subset([4, 4, 9])))
    both: ConcatDataset[Any] = ConcatDataset([first, second])
    for collate in (None, first.collate_fn):
        batch = next(iter(DataLoader(both, 100, collate_fn=collate)))
        assert equal(batch, one_by_one(first.concat(second)))


def test_tasks_mixed_beyond_the_cache_are_never_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (e.dataset for e in stream(cache_bytes=0).benchmark.train_stream)
    data = first.concat(second)
    expected = one_by_one(data)
    monkeypatch.setattr(TaskImages, "inputs", None)
    assert equal(data.batch(torch.arange(100)), expected)


def test_a_loader_indexes_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream().benchmark.train_stream[0].dataset
    sizes: list[int] = []
    select = TaskImages.select

    def counted(self: TaskImages, indices: Tensor, **options: Any) -> Tensor:
        sizes.append(len(indices))
        return select(self, indices, **options)

    monkeypatch.setattr(TaskImages, "select", counted)
    monkeypatch.setattr(TaskImages, "__getitem__", None)
    for _ in DataLoader(data, 16, collate_fn=data.collate_fn):
        pass
    assert sizes == [16, 16, 16, 2]


def test_transforms_and_further_fields_go_sample_by_sample() -> None:
    data = stream().benchmark.train_stream[0].dataset
    data.batch(torch.arange(3))  # what it remembers must not pass to changed copies
    relabelled = data.update_data_attribute("targets_task_labels", [4] * 50)
    assert relabelled.batch(torch.arange(3))[2].tolist() == [4, 4, 4]
    again = relabelled.update_data_attribute("targets_task_labels", [7] * 50)
    assert again.batch(torch.arange(3))[2].tolist() == [7, 7, 7]
    doubled = data.replace_current_transform_group(lambda x: 2 * x)
    assert doubled.sources() is None
    x, y, _ = next(iter(DataLoader(doubled, 50, collate_fn=doubled.collate_fn)))
    plain = next(iter(data.feed(50)))
    assert torch.equal(x, 2 * plain[0])
    assert torch.equal(y, plain[1])
    wrapped = ExperienceData([data], transform_groups={"train": lambda x: -x})
    for mixed, sign in ((wrapped.concat(data), -1), (data.concat(foreign(*plain[:2])), 1)):
        assert mixed.sources() is None
        x, y, t = mixed.batch(torch.tensor([3, 54]))
        assert torch.equal(x, torch.stack([sign * plain[0][3], plain[0][4]]))
        assert torch.equal(y, plain[1][3:5])
        assert torch.equal(t, torch.zeros(2, dtype=torch.int64))
    numbered = data.update_data_attribute(
        "number", DataAttribute(list(range(50)), "number", use_in_getitem=True)
    )
    assert numbered.sources() is None
    batch = next(iter(DataLoader(numbered, 7, collate_fn=numbered.collate_fn)))
    assert len(batch) == 4
    assert torch.equal(batch[3], torch.arange(7))


def test_fast_naive_equals_a_plain_loop_over_the_feed() -> None:
    experience = stream().benchmark.train_stream[0]
    net, twin = model(), model()
    trained = strategy(fast(Naive), net)
    trained.train(experience)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    feed = experience.dataset.feed(16, shuffle=True)
    for _ in range(2):
        for x, y, _ in feed:
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert equal(list(net.parameters()), list(twin.parameters()))


def test_all_methods_see_the_same_batches_with_evaluation_between() -> None:
    seen: list[list[list[Tensor]]] = []
    for kind, options in (
        (Naive, {}),
        (EWC, {"ewc_lambda": 1.0}),
        (Naive, {"eval_every": 1}),
    ):
        recorder = Recorder()
        trained = strategy(fast(kind), model(), plugins=[recorder], **options)
        torch.manual_seed(len(seen))  # global randomness must not matter
        for experience in stream().benchmark.train_stream:
            trained.train(experience)
        seen.append(recorder.batches)
    assert len(seen[0]) == 2 * 2 * 4
    for other in seen[1:]:
        assert all(map(equal, seen[0], other))


def test_the_dataloader_has_a_length_while_training() -> None:
    lengths: list[int] = []

    class Reader(SupervisedPlugin):  # type: ignore[misc]
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            lengths.append(len(strategy.dataloader))

    strategy(fast(Naive), model(), plugins=[Reader()]).train(stream().benchmark.train_stream)
    assert lengths == [4, 4]


def test_other_data_goes_through_avalanche_s_own_loaders() -> None:
    x, y = torch.randn(20, 64), torch.arange(20) % 10
    benchmark = with_task_labels(benchmark_from_datasets(train=[foreign(x, y)]))
    recorder = Recorder()
    trained = strategy(fast(Naive), model(), plugins=[recorder], train_epochs=1)
    trained.train(benchmark.train_stream[0])
    assert sum(len(batch[1]) for batch in recorder.batches) == 20
    trained.eval(benchmark.train_stream)


def test_fast_makes_one_class_a_strategy() -> None:
    assert fast(Naive) is fast(Naive)
    assert fast(fast(Naive)) is fast(Naive)
    assert issubclass(fast(Naive), FastFeed)
    assert fast(Naive).__name__ == "FastNaive"
    assert not issubclass(Naive, FastFeed)
    with pytest.raises(OptionError, match="dict is no Avalanche strategy"):
        fast(dict)


def test_ewc_finds_the_importances_of_a_plain_loop() -> None:
    experience = stream().benchmark.train_stream[0]
    net = model()
    trained = strategy(fast(EWC), net, ewc_lambda=1.0)
    trained.train(experience)
    importances = trained.plugins[0].importances[0]
    x, y, _ = one_by_one(experience.dataset)
    for name, weight in net.named_parameters():
        expected = torch.zeros_like(weight)
        for some in torch.arange(50).split(16):  # type: ignore[no-untyped-call]
            loss = nn.functional.cross_entropy(net(x[some]), y[some])
            expected += torch.autograd.grad(loss, weight)[0].square() / 4
        torch.testing.assert_close(importances[name].data, expected)


def test_mas_replay_and_joint_train_on_the_right_samples() -> None:
    made = stream("split-task")
    experiences = list(made.benchmark.train_stream)
    known = {
        (tuple(x.flatten().tolist()), y, t)
        for experience in experiences
        for x, y, t in (experience.dataset[n] for n in range(50))
    }
    strategy(fast(MAS), model(), lambda_reg=1.0, alpha=0.5).train(experiences)
    for kind, options in ((Replay, {"mem_size": 20}), (JointTraining, {"train_epochs": 1})):
        recorder = Recorder()
        strategy(fast(kind), model(), plugins=[recorder], **options).train(experiences)
        seen = [
            {(tuple(x.flatten().tolist()), int(y), int(t)) for x, y, t in zip(*b, strict=True)}
            for b in recorder.batches
        ]
        assert set().union(*seen) == known
        assert {t for _, _, t in seen[-1]} == {0, 1}  # the last batch mixes both tasks
