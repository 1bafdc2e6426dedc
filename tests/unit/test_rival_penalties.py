"""Importance and penalty of each regulariser, by hand.

Avalanche keeps importances in float32, hence tolerances of 1e-5 and not 1e-10.
"""

from __future__ import annotations

import pytest
import torch
from blobs import (
    BATCH,
    SAMPLES,
    build,
    data_of,
    in_second_task,
    network,
    plugged,
    train,
)
from torch import Tensor, nn
from torch.nn import functional

from flatcl.rivals import RepairedLwF, RepairedMAS, RepairedSI
from flatcl.streams import Stream


class TwoWeights(nn.Module):
    """Logits (0, w·x) of the first two inputs: logistic regression by two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x: Tensor) -> Tensor:
        score: Tensor = x[:, :2] @ self.w
        return torch.stack([torch.zeros_like(score), score], dim=1)


def logistic_gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the batch of (σ(w·x) − y) x, in float64."""
    x, w = x[:, :2].double(), w.double()
    return ((torch.sigmoid(x @ w) - y)[:, None] * x).mean(0)


@pytest.mark.parametrize("name", ["ewc", "ewc-online"])
def test_ewc_importance_and_penalty_by_hand(name: str, stream: Stream) -> None:
    model = TwoWeights()
    strategy = build(name, model, 7.0)
    train(strategy, stream, tasks=1)
    (plugin,) = [p for p in strategy.plugins if hasattr(p, "importances")]
    anchor = model.w.detach().double()
    x, y = data_of(stream)
    batches = zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)
    squares = [logistic_gradient(anchor, *batch).square() for batch in batches]
    importance = torch.stack(squares).mean(0)
    torch.testing.assert_close(
        plugin.importances[0]["w"].data.double(), importance, rtol=1e-5, atol=1e-9
    )
    move = torch.tensor([0.5, -0.25])
    with torch.no_grad():
        model.w.add_(move)
    second = in_second_task(model)
    plugin.before_backward(second)
    expected = 7.0 * float((importance * move.double().square()).sum())
    assert float(second.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert expected > 0


def test_online_ewc_sums_the_importances_of_all_tasks(stream: Stream) -> None:
    separate, online = (build(name, network(), 0.0) for name in ("ewc", "ewc-online"))
    totals = []
    for strategy in (separate, online):
        train(strategy, stream)
        (plugin,) = [p for p in strategy.plugins if hasattr(p, "importances")]
        totals.append(sum(task["0.weight"].data for task in plugin.importances.values()))
    torch.testing.assert_close(*totals)


def one_si_step(
    stream: Stream, lr: float, *, ascend: bool = False
) -> tuple[RepairedSI, TwoWeights]:
    model = TwoWeights()
    nn.init.zeros_(model.w)  # so that float32 resolves the smallest step
    plugin = RepairedSI(3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, maximize=ascend)
    strategy = plugged(plugin, model, optimizer=optimizer, train_mb_size=SAMPLES, train_epochs=1)
    train(strategy, stream, tasks=1)
    return plugin, model


def test_si_importance_and_penalty_of_one_step_by_hand(stream: Stream) -> None:
    lr = 1e-9  # below Avalanche's upper clamp: η g² / (η² g² + 1e-7) < 0.001
    plugin, model = one_si_step(stream, lr)
    gradient = logistic_gradient(torch.zeros(2), *data_of(stream))
    importance = lr * gradient.square() / ((lr * gradient).square() + 1e-7)
    assert 0 < float(importance.max()) < 1e-3
    torch.testing.assert_close(plugin.ewc_data[1]["w"].data.double(), importance, rtol=1e-5, atol=0)
    with torch.no_grad():
        model.w.add_(2.0)
    second = in_second_task(model)
    plugin.before_backward(second)
    assert float(second.loss.detach()) == pytest.approx(
        3.0 / 2 * 4.0 * float(importance.sum()), rel=1e-5
    )


def test_si_importance_of_an_ordinary_step_is_the_clamp(stream: Stream) -> None:
    plugin, _ = one_si_step(stream, 0.1)  # 1/η = 10, far above it
    assert plugin.ewc_data[1]["w"].data.tolist() == pytest.approx([1e-3, 1e-3])


def test_si_importance_of_an_ascent_is_zero_not_negative(stream: Stream) -> None:
    plugin, _ = one_si_step(stream, 0.1, ascend=True)
    assert plugin.syn_data["cum_trajectory"]["w"].data.gt(0).all()  # the path went uphill
    assert plugin.ewc_data[1]["w"].data.tolist() == [0.0, 0.0]


def test_mas_importance_and_penalty_by_hand(stream: Stream) -> None:
    model = TwoWeights()
    plugin = RepairedMAS(2.0)
    strategy = plugged(plugin, model)
    train(strategy, stream, tasks=1)
    anchor = model.w.detach().double()
    parts = [part[:, :2].double() for part in torch.split(data_of(stream)[0], BATCH)]
    gradients = [(2 * (part @ anchor)[:, None] * part).mean(0).abs() for part in parts]
    importance = torch.stack(gradients).mean(0)
    assert plugin.importance is not None
    torch.testing.assert_close(
        plugin.importance["w"].data.double(), importance, rtol=1e-5, atol=1e-9
    )
    with torch.no_grad():
        model.w.add_(0.5)
    second = in_second_task(model)
    plugin.before_backward(second)
    assert float(second.loss.detach()) == pytest.approx(
        2.0 * 0.25 * float(importance.sum()), rel=1e-5
    )


def test_lwf_penalty_by_hand(stream: Stream) -> None:
    model = network()
    plugin = RepairedLwF(5.0)
    train(plugged(plugin, model), stream, tasks=1)
    x, _ = data_of(stream, 1)
    teacher = functional.softmax(model(x) / 2, dim=1)
    with torch.no_grad():
        model.get_parameter("2.bias").add_(torch.tensor([1.0, -1.0]))
    out = model(x)
    student = functional.softmax(out / 2, dim=1)
    divergence = (teacher * (teacher / student).log()).sum(1).mean()
    second = in_second_task(model, mb_x=x, mb_output=out)
    plugin.before_backward(second)
    assert float(second.loss.detach()) == pytest.approx(5 * float(divergence.detach()), rel=1e-5)
