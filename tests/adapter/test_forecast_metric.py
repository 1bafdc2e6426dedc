"""The forecast, the budget and fit in Avalanche."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.avalanche import LDC, LDCPlugin
from flatcl.data import Images
from flatcl.errors import OptionError, StateError
from flatcl.forecast_metric import ForgettingForecast, forgetting_forecast_metrics
from flatcl.streams import StreamOptions, fast, make_stream

from avalanche.logging import BaseLogger  # isort: skip
from avalanche.training import Naive  # isort: skip
from avalanche.training.plugins import EvaluationPlugin  # isort: skip


def benchmark(tasks=3):
    g = torch.Generator().manual_seed(1)
    y = torch.arange(200) % 2
    x = torch.randn(200, 6, generator=g) + y[:, None]
    images = Images("blobs", x, y, x[:20], y[:20], 2)
    return make_stream(images, StreamOptions(tasks=tasks, train_size=64), seed=0).benchmark


class Recorded(BaseLogger):  # type: ignore[misc]  # Avalanche ships no types
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_single_metric(self, name, value, x_plot):
        self.values.setdefault(name, []).append(value)


def strategy(metrics, cls: Any = LDC, model: nn.Module | None = None, **options):
    torch.manual_seed(0)
    net = model or nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    logger = Recorded()
    made = fast(cls)(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=3,
        evaluator=EvaluationPlugin(*metrics, loggers=[logger]),
        **options,
    )
    return made, logger.values


def train(made, stream):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the forecast of forgetting")
        for experience in stream:
            made.train(experience, eval_streams=[])


def test_values_and_names_after_experiences_and_epochs():
    made, values = strategy(forgetting_forecast_metrics(epoch=True, experience=True), interval=4)
    train(made, benchmark().train_stream)
    stem = "ForgettingForecast_Exp/train_phase/train_stream/Task000"
    after = {name: v for name, v in values.items() if name.startswith("ForgettingForecast_Exp")}
    assert set(after) == {f"{stem}/Exp000", f"{stem}/Exp001"}
    rises = made.ldc.landscape.forecast().rises
    assert [after[f"{stem}/Exp000"][-1], after[f"{stem}/Exp001"][-1]] == list(rises[:2])
    assert [len(v) for v in after.values()] == [2, 1]
    epochs = values["ForgettingForecast/train_phase/train_stream/Task000"]
    assert len(epochs) == 2 * 3
    assert min(epochs) > 0


def test_metrics_change_no_bit_of_the_training():
    ends = []
    for metrics in ([], forgetting_forecast_metrics(epoch=True, experience=True)):
        made, _ = strategy(metrics, interval=4)
        train(made, benchmark().train_stream)
        ends.append(torch.cat([p.detach().reshape(-1) for p in made.model.parameters()]))
    assert torch.equal(*ends)


def test_a_forecast_that_is_not_to_be_trusted_is_warned_of_once(monkeypatch):
    monkeypatch.setattr("flatcl.core.forecast.TRUSTED_GROWTH", 0.0)
    metric = ForgettingForecast()
    made, values = strategy([metric], interval=4)
    with pytest.warns(UserWarning, match="may be far off: on the present") as caught:
        made.train(benchmark().train_stream, eval_streams=[])
    assert len([w for w in caught if "far off" in str(w.message)]) == 1
    assert len(metric.forecasts) == 2
    assert metric.result() is metric.forecasts[-1]
    assert any(name.startswith("ForgettingForecast") for name in values)
    metric.reset()
    assert metric.result() is None


def test_nothing_is_emitted_without_a_constraint_and_ldc_is_needed():
    made, values = strategy(forgetting_forecast_metrics(experience=True), strength=0.0)
    train(made, benchmark().train_stream)
    assert not any(name.startswith("ForgettingForecast") for name in values)
    plain, _ = strategy([ForgettingForecast()], cls=Naive)
    with pytest.raises(StateError, match="use it with the LDC strategy"):
        plain.train(benchmark(1).train_stream[0], eval_streams=[])
    with pytest.raises(OptionError, match="emit_at is 'stream'"):
        ForgettingForecast(emit_at="stream")  # type: ignore[arg-type]


def test_a_crossed_budget_stops_the_experience_and_not_the_next():
    made, _ = strategy([], interval=4, strength=1e-3, budget=1e-5)
    made.train(benchmark().train_stream, eval_streams=[])
    landscape = made.ldc.landscape
    assert landscape.tasks_ended == 3
    iterations = made.clock.train_iterations
    assert 8 * 3 < iterations < 2 * 8 * 3  # the first whole, the others cut short
    assert not made._stop_training


def pretrain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y, _ = benchmark().train_stream[0].dataset.batch(torch.arange(64))
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x


def test_a_strategy_starts_from_a_fitted_model():
    model, x = pretrain()
    made, values = strategy(forgetting_forecast_metrics(experience=True), model=model, interval=4)
    made.ldc.fit(made.model, [x])
    anchor = {n: c.anchor.clone() for n, c in made.ldc.landscape.constraints.items()}
    landscape = made.ldc.landscape
    train(made, benchmark().train_stream[1:2])
    assert made.ldc.landscape is landscape
    assert landscape.metric.optimizer is made.optimizer
    assert landscape.tasks_ended == 2
    assert values["ForgettingForecast_Exp/train_phase/train_stream/Task000/Exp000"][0] > 0
    assert not torch.equal(landscape.constraints["0.weight"].anchor, anchor["0.weight"])
    with pytest.raises(StateError, match="before the first experience"):
        made.ldc.fit(made.model, [x])


def test_a_fitted_plugin_holds_as_a_fitted_landscape_does():
    ends = []
    for by_plugin in (True, False):
        model, x = pretrain()
        plugin = LDCPlugin(interval=4)
        made, _ = strategy([], cls=Naive, model=model, plugins=[plugin])
        if by_plugin:
            plugin.fit(model, [x])
        else:
            plugin.landscape = plugin._landscape(model, made.optimizer)
            plugin.landscape.fit([x])
        train(made, benchmark().train_stream[1:])
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.equal(*ends)
