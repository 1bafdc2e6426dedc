"""Training at the edge of numbers: weights stay finite where plain training's do, or it is said."""

from __future__ import annotations

import warnings
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatcl.cells import run_cell
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.errors import NonFiniteError, OptionError
from flatcl.protocol import CompareOptions
from flatcl.records import Cell
from flatcl.scores import scores

STEPS, CLASSES, FEATURES = 30, 4, 8


@dataclass(frozen=True)
class Setting:
    """What is out of the ordinary in three tasks of a small network."""

    inputs: int = 64
    batch: int = 16
    size: float = 1.0
    constant: bool = False
    one_class: bool = False
    dead: bool = False
    normalised: bool = False
    dtype: torch.dtype = torch.float32
    adam: bool = False
    lr: float = 0.1
    spoilt: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


def network(setting: Setting) -> nn.Sequential:
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(16)] if setting.normalised else []
    first = nn.Linear(FEATURES, 16)
    if setting.dead:
        nn.init.constant_(first.bias, -1e6)
    rest = nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)
    return nn.Sequential(first, *norm, *rest).to(setting.dtype)


def tasks(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """Classes are Gaussian clouds, shifted from task to task."""
    draw, found = torch.Generator().manual_seed(1), []
    centres = 3 * torch.randn(CLASSES, FEATURES, generator=draw)
    for shift in range(3):
        y = torch.randint(CLASSES, (setting.inputs,), generator=draw)
        y = torch.full_like(y, 2) if setting.one_class else y
        x = centres[y] + torch.randn(len(y), FEATURES, generator=draw) + shift
        x = torch.full_like(x, shift) if setting.constant else x
        found.append(((setting.size * x).to(setting.dtype), y))
    return found


def trained(setting: Setting, *, held: bool) -> tuple[nn.Sequential, float]:
    """The network after all tasks, and its accuracy on the last one."""
    model, draw = network(setting), torch.Generator().manual_seed(2)
    optimizer: torch.optim.Optimizer
    if setting.adam:
        optimizer = torch.optim.Adam(model.parameters(), setting.lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), setting.lr)
    landscape = None
    if held:
        options = LDCOptions(**{"interval": 5, **setting.options})
        landscape = Landscape(model, optimizer, options=options)
    for x, y in tasks(setting):
        if landscape is not None:
            landscape.begin_task()
        for step in range(STEPS):
            rows = torch.randint(len(x), (min(setting.batch, len(x)),), generator=draw)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]).float(), y[rows])
            if setting.spoilt is not None and step == STEPS // 2:
                loss = loss * setting.spoilt
            if landscape is not None:
                loss = loss + landscape.rehearsal()
            loss.backward()
            optimizer.step()
            if landscape is not None:
                landscape.step(len(rows))
        if landscape is not None:
            landscape.end_task([x])
    with torch.no_grad():
        return model, float((model.eval()(x).argmax(1) == y).float().mean())


def finite(model: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())


ODD = {
    "one sample": {"inputs": 1},
    "two samples": {"inputs": 2},
    "batches of one": {"batch": 1},
    "one class": {"one_class": True},
    "inputs without variance": {"constant": True},
    "dead units": {"dead": True},
    "inputs of 1e-30": {"size": 1e-30},
    "inputs of 1e4": {"size": 1e4, "lr": 1e-10},
    "inputs of 1e15": {"size": 1e15, "adam": True, "lr": 1e-3},
    "batch statistics": {"normalised": True},
    "half precision": {"dtype": torch.float16, "lr": 0.01},
    "bfloat16": {"dtype": torch.bfloat16},
    "double precision": {"dtype": torch.float64},
}
WAYS = {
    "default": {},
    "fisher": {"source": "fisher"},
    "sgd": {"source": "sgd"},
    "diagonal": {"basis": "diagonal"},
    "low-rank": {"basis": "low-rank", "rank": 2},
    "witnesses": {"witnesses": 16},
    "strengthened": {"budget": 1e-3, "on_budget": "strengthen"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("odd", ODD)
def test_weights_stay_finite_where_plain_training_s_do(odd: str, way: str) -> None:
    setting = Setting(**ODD[odd], options=WAYS[way])  # type: ignore[arg-type]
    assert finite(trained(setting, held=False)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert finite(trained(setting, held=True)[0])


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("strength", [1e6, 1e12, 1e20])
def test_no_strength_is_too_large(strength: float, adam: bool) -> None:
    setting = Setting(adam=adam, lr=1e-3 if adam else 0.1, options={"strength": strength})
    assert finite(trained(setting, held=True)[0])


def test_a_strength_that_would_leave_the_numbers_is_refused() -> None:
    with pytest.raises(OptionError, match=r"1e\+300; it must be a number, 0 to 1e\+20"):
        LDCOptions(strength=1e300)


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("lr", [10.0**n for n in range(-2, 20)])
def test_a_learning_rate_that_plain_training_learns_at_is_safe_and_others_are_named(
    lr: float, adam: bool
) -> None:
    """Beyond the edge of stability plain training is often saved by the death of its units."""
    setting = Setting(lr=lr, adam=adam)
    plain, accuracy = trained(setting, held=False)
    largest = max(float(p.detach().abs().max()) for p in plain.parameters())
    # Gradients grow as products of weights, and their squares have to fit float32.
    learns = finite(plain) and accuracy > 0.5 and largest < 1e9
    refused = nullcontext() if learns else suppress(NonFiniteError)
    with refused:
        assert finite(trained(setting, held=True)[0])


@pytest.mark.parametrize(
    ("scenario", "lr", "least"), [("permuted", 0.4, 0.9), ("split-class", 0.2, 0.85)]
)
def test_rehearsal_does_not_run_away_at_rates_that_plain_training_learns_at(
    scenario: Any, lr: float, least: float
) -> None:
    """The steps after a pull meet large gradients of task and rehearsal together."""
    options = CompareOptions(scenario=scenario, lr=lr)
    plain, held = (run_cell(options, Cell(name, None, 0, "test")) for name in ("naive", "ldc"))
    assert (scores(plain.accuracy).learning or 0.0) > 0.9
    assert scores(held.accuracy).acc > least


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize("source", ["probe", "sgd"])
def test_a_loss_that_is_no_number_is_named_at_the_task_s_end(spoilt: float, source: str) -> None:
    setting = Setting(spoilt=spoilt, options={"source": source})
    assert not finite(trained(setting, held=False)[0])
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        trained(setting, held=True)


def test_a_task_without_a_step_is_no_task() -> None:
    model = network(Setting())
    landscape = Landscape(model, torch.optim.SGD(model.parameters(), 0.1))
    before = landscape.state_dict()
    landscape.begin_task()
    landscape.end_task([])
    assert landscape.tasks_ended == 0
    assert landscape.state_dict().keys() == before.keys()
    assert not landscape.constraints
