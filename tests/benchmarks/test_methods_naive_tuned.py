"""Rates that decay from task to task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from blobs import build, common, flat, network, train
from forgetting import accuracies, forgetful_stream, perceptron
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from benchmarks.methods.naive_tuned import RIVAL
from flatcl.rivals import RIVALS
from flatcl.streams import Stream

from avalanche.training.plugins import SupervisedPlugin  # isort: skip
from avalanche.training.templates import SupervisedTemplate  # isort: skip


class Rates(SupervisedPlugin):  # type: ignore[misc]
    """Keeps the rates of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []

    def before_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        self.seen.append([group["lr"] for group in strategy.optimizer.param_groups])


def decayed(model: nn.Module, value: float, **options: Any) -> Any:
    return RIVAL.build(value, **common(model, **options))


def adam(weights: Iterable[Tensor]) -> Optimizer:
    return Adam(weights, lr=0.01)


def sgd(weights: Iterable[Tensor]) -> Optimizer:
    return SGD(weights, lr=0.2, momentum=0.9)


@pytest.mark.parametrize(("make", "first"), [(adam, 0.01), (sgd, 0.2)])
def test_rate_of_each_task(make: Callable[[Iterable[Tensor]], Optimizer], first: float) -> None:
    model, rates = perceptron(), Rates()
    optimizer = make(model.parameters())
    train(decayed(model, 3.0, optimizer=optimizer, plugins=[rates]), forgetful_stream(tasks=3), 3)
    steps = len(rates.seen) // 3
    for task, begin in enumerate(range(0, 3 * steps, steps)):
        expected = [pytest.approx(first / 4**task, rel=1e-12)]
        assert rates.seen[begin : begin + steps] == [expected] * steps
    assert optimizer.param_groups[0]["lr"] == pytest.approx(first / 16, rel=1e-12)  # it stays


def test_each_group_decays_from_its_own_rate(stream: Stream) -> None:
    model, rates = network(), Rates()
    weights = list(model.parameters())
    groups: list[dict[str, Any]] = [{"params": weights[:2], "lr": 0.4}, {"params": weights[2:]}]
    train(decayed(model, 1.0, optimizer=SGD(groups, lr=0.1), plugins=[rates]), stream)
    assert rates.seen[0] == [0.4, 0.1]
    assert rates.seen[-1] == pytest.approx([0.2, 0.05], rel=1e-12)


def test_no_decay_is_naive_bit_for_bit_and_decay_is_not(stream: Stream) -> None:
    results = {}
    for value in (0.0, 1.0):
        model = network()
        train(decayed(model, value), stream)
        results[value] = flat(model)
    plain = network()
    train(build("naive", plain), stream)
    assert torch.equal(results[0.0], flat(plain))
    assert not torch.allclose(results[1.0], flat(plain), rtol=0, atol=1e-4)


def test_a_run_starts_anew_with_each_build(stream: Stream) -> None:
    first, second = network(), network()
    for model in (first, second):
        train(decayed(model, 3.0), stream)
    assert torch.equal(flat(first), flat(second))


def test_it_forgets_less_than_naive() -> None:
    stream = forgetful_stream()
    learned, kept, new = accuracies(RIVAL, 3.0, stream)
    plain = accuracies(RIVALS["naive"], None, stream)
    assert min(learned, new, plain[0], plain[2]) > 0.95
    assert kept > plain[1] + 0.1
