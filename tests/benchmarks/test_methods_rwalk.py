"""RWalk against a plain loop of the paper's equations in float64, and Avalanche's own beside it."""

from __future__ import annotations

import pytest
import torch
from blobs import (
    BATCH,
    CLASSES,
    INPUTS,
    SAMPLES,
    common,
    data_of,
    flat,
    in_second_task,
    network,
    plugged,
    train,
    trained,
)
from digits import final_accuracy, naive_accuracy
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.methods import rwalk
from benchmarks.methods.rwalk import RIVALS, RWalk
from flatcl.rivals import bytes_held
from flatcl.streams import Stream

from avalanche.training.plugins import SupervisedPlugin  # isort: skip
from avalanche.training.templates import SupervisedTemplate  # isort: skip

ANEW, STOCK = RIVALS
LR = 0.1


class Wide(nn.Module):
    """Softmax regression in float64 on inputs in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(CLASSES, INPUTS, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.double() @ self.w.T


class Watch(SupervisedPlugin):  # type: ignore[misc]
    """Keeps the minibatches and the modes that training runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.modes: set[bool] = set()

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        self.batches.append((strategy.mb_x.clone(), strategy.mb_y.clone()))
        self.modes |= {module.training for module in strategy.model.modules()}


def gradient(w: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch[0].double(), batch[1]
    errors = functional.softmax(x @ w.T, dim=1) - functional.one_hot(y, CLASSES)
    return errors.T @ x / len(y)


def test_one_step_by_hand(stream: Stream) -> None:
    model, plugin = Wide(), RWalk(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    train(
        plugged(plugin, model, optimizer=optimizer, train_mb_size=SAMPLES, train_epochs=1),
        stream,
        tasks=1,
    )
    g = gradient(torch.zeros(CLASSES, INPUTS, dtype=torch.float64), data_of(stream)).flatten()
    fisher = g.square()
    # the step is −η g: the loss falls by η g², and F moves by ½ g² η² g²
    score = LR * fisher / (fisher * LR**2 * fisher / 2 + 1e-3)
    assert plugin.fisher is not None
    assert plugin.score is not None
    assert plugin.importance is not None
    torch.testing.assert_close(plugin.fisher, fisher, rtol=1e-10, atol=0)
    torch.testing.assert_close(plugin.score, score, rtol=1e-10, atol=0)
    expected = fisher / fisher.max() + score / score.max()
    torch.testing.assert_close(plugin.importance, expected, rtol=1e-10, atol=0)
    with torch.no_grad():
        model.w.add_(0.5)
    second = in_second_task(model)
    plugin.before_backward(second)
    assert float(second.loss.detach()) == pytest.approx(0.25 * float(expected.sum()), rel=1e-6)


def test_two_tasks_equal_a_plain_loop(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rwalk, "INTERVAL", 5)
    model, watch, plugin, strength = Wide(), Watch(), RWalk(0.3), 0.3
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    strategy = plugged(plugin, model, optimizer=optimizer, train_epochs=4)
    strategy.plugins.insert(0, watch)
    train(strategy, stream)
    per_task = 4 * SAMPLES // BATCH
    assert len(watch.batches) == 2 * per_task == 24  # intervals of 5, 5 and 2

    w = torch.zeros(CLASSES, INPUTS, dtype=torch.float64)
    fisher: Tensor | None = None
    score: Tensor | None = None
    importance, anchor = torch.zeros_like(w), w
    for task in range(2):
        batches = watch.batches[task * per_task : (task + 1) * per_task]
        summed = torch.zeros_like(w)
        for first in range(0, per_task, 5):
            start, fall, squares = w, torch.zeros_like(w), []
            for batch in batches[first : first + 5]:
                g = gradient(w, batch)
                step = -LR * (g + 2 * strength * importance * (w - anchor))
                w, fall = w + step, fall - g * step
                squares.append(g.square())
            mean = torch.stack(squares).mean(0)
            fisher = mean if fisher is None else fisher
            summed += fall.relu() / (fisher * (w - start).square() / 2 + 1e-3)
            fisher = mean if task == first == 0 else 0.1 * fisher + 0.9 * mean
        assert fisher is not None
        score = summed if score is None else (score + summed) / 2
        importance, anchor = fisher / fisher.max() + score / score.max(), w
    torch.testing.assert_close(model.w.detach(), w, rtol=1e-8, atol=1e-12)
    for found, expected in (
        (plugin.fisher, fisher),
        (plugin.score, score),
        (plugin.importance, importance),
        (plugin.anchor, anchor),
    ):
        assert found is not None
        torch.testing.assert_close(found.view(CLASSES, INPUTS), expected, rtol=1e-7, atol=1e-12)


def test_an_ascent_has_no_score(stream: Stream) -> None:
    model, plugin = network(), RWalk(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, maximize=True)
    train(plugged(plugin, model, optimizer=optimizer), stream, tasks=1)
    assert plugin.score is not None
    assert plugin.fisher is not None
    assert not plugin.score.any()
    assert plugin.fisher.any()


def test_no_penalty_is_naive_and_a_penalty_is_not(stream: Stream) -> None:
    naive = trained("naive", stream)
    for value, same in ((0.0, True), (1.0, False)):
        model = network()
        train(ANEW.build(value, **common(model)), stream)
        assert torch.equal(flat(model), naive) is same


def test_frozen_weights_are_left_out_and_work_vectors_let_go(stream: Stream) -> None:
    model = network()
    model.get_parameter("0.weight").requires_grad_(False)
    strategy = ANEW.build(1.0, **common(model))
    train(strategy, stream)
    assert bytes_held(strategy) == 4 * 4 * (5 + 10 + 2)  # F, s, their sum, the anchor


def test_training_mode_stays_on_and_the_stock_plugin_turns_it_off(stream: Stream) -> None:
    for rival, modes in ((ANEW, {True}), (STOCK, {False})):
        watch = Watch()
        train(rival.build(1.0, plugins=[watch], **common(network())), stream)
        assert watch.modes == modes  # if the second fails, Avalanche mended it: drop the stock


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_it_forgets_less_than_naive_on_permuted_digits(rival: rwalk.Rival) -> None:
    assert final_accuracy(rival, 0.3) > naive_accuracy() + 0.05
