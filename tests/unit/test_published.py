"""LDC as published in a plain loop: directions, flatness, pulls, growth, saved states."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flatcl import Landscape, LDCOptions
from flatcl.errors import OptionError, StateError
from flatcl.fluctuations import LossSurface, flatness
from flatcl.published import PublishedLandscape, PublishedLDC, PublishedOptions
from flatcl.published.snapshots import TailSnapshots

SMALL = PublishedOptions(directions=4, snapshots=10, inputs=32, strength=5.0)


def task(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 4, generator=g)
    return x, (x @ torch.randn(4, generator=g) > 0).long()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def optimizer_of(model: nn.Module, kind: str = "sgd") -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam(model.parameters(), lr=0.01)
    return torch.optim.SGD(model.parameters(), lr=0.2)


def train(
    landscape: Landscape, seed: int, *, steps: int = 60, told: bool = True, end: bool = True
) -> None:
    x, y = task(seed)
    order = torch.Generator().manual_seed(seed)
    optimizer = landscape.metric.optimizer
    landscape.begin_task(steps if told else None)
    for _ in range(steps):
        part = torch.randint(64, (16,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(landscape.model(x[part]), y[part]).backward()
        optimizer.step()
        landscape.step(16)
    if end:
        landscape.end_task([(x, y)])


def published(
    model: nn.Module, kind: str = "sgd", options: PublishedOptions = SMALL
) -> tuple[PublishedLandscape, PublishedLDC]:
    landscape = PublishedLandscape(model, optimizer_of(model, kind), options=options)
    assert isinstance(landscape.network, PublishedLDC)
    return landscape, landscape.network


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_a_task_is_held_along_its_directions_by_its_flatness() -> None:
    model = network()
    landscape, ldc = published(model, options=replace(SMALL, tolerance=1e-3))
    train(landscape, 0)
    assert ldc.held is not None
    assert ldc.measured is not None
    found, _ = ldc.measured
    x, y = task(0)
    surface = LossSurface(model, x[:32], y[:32])
    width = flatness(surface, found.directions, tolerance=1e-6).width
    kept = width.isfinite()
    assert kept.any()
    P = found.directions.double()[kept]
    K = (P.T * (2.0 / width[kept].square())) @ P
    torch.testing.assert_close(
        ldc.held.to_dense().double(), K, rtol=1e-2, atol=1e-2 * float(K.max())
    )
    assert float(landscape.energy()) == pytest.approx(0.0, abs=1e-9)


def test_directions_that_are_never_as_high_as_e_times_the_loss_are_free() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.3, 3.0]))

        def forward(self, x: Tensor) -> Tensor:
            bounded, steep = 0.5 * torch.tanh(self.w[0]) ** 2, (self.w[1] - 3.0) ** 2
            return 1.0 + bounded + steep + 0.0 * x[:, 0]

    model = Bounded()
    ldc = PublishedLDC(PublishedOptions(directions=2, window=1.0), loss=lambda out, _: out)
    landscape = Landscape(model, optimizer_of(model), options=SMALL.of_landscape(), network=ldc)
    landscape.begin_task()
    for step in range(8):  # along either weight in turn, so that both are principal
        with torch.no_grad():
            model.w.copy_(torch.tensor([0.3, 3.0]))
            model.w[step % 2] += (0.02, 0.01)[step % 2] * (-1) ** (step // 2)
        landscape.step()
    landscape.end_task([(torch.zeros(4, 1), torch.zeros(4))])
    assert ldc.measured is not None
    assert ldc.held is not None
    found, F = ldc.measured
    torch.testing.assert_close(found.directions.abs(), torch.eye(2), rtol=0, atol=1e-3)
    assert F.censored.any(1).tolist() == [True, False]
    assert len(ldc.held.stiffness) == 1
    assert float(ldc.held.directions[0, 1]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_pulls_hold_the_next_task_near_along_held_directions_alone(kind: str) -> None:
    energies = []
    for strength in (1e-9, 1e4):
        model = network()
        options = PublishedOptions(directions=4, snapshots=10, inputs=32, strength=strength)
        landscape, ldc = published(model, kind, options)
        train(landscape, 0)
        held = ldc.held
        assert held is not None
        train(landscape, 1, end=False)
        with landscape.evaluating():
            energies.append(float(held.energy(vector(model))))
    assert energies[1] < 1e-3 * energies[0]


def test_strength_zero_changes_no_bit() -> None:
    plain, held = network(), network()
    for model, strength in ((plain, None), (held, 0.0)):
        optimizer = optimizer_of(model)
        landscape = (
            Landscape(model, optimizer, options=LDCOptions(strength=0.0))
            if strength is None
            else PublishedLandscape(model, optimizer, options=PublishedOptions(strength=0.0))
        )
        for seed in (0, 1):
            train(landscape, seed)
        assert landscape.bytes_held() == 0
    assert torch.equal(vector(plain), vector(held))


def test_it_stands_beside_the_units_own_constraints() -> None:
    model = network()
    options = LDCOptions(strength=1.0, interval=5, probe_inputs=64)
    landscape = Landscape(model, optimizer_of(model), options=options, network=PublishedLDC(SMALL))
    batches = iter([task(0)])  # can be read once only
    train(landscape, 0, end=False)
    landscape.end_task(batches)
    assert set(landscape.constraints) == {"0.weight", "2.weight"}
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    both = float(landscape.energy())
    assert landscape.network is not None
    whole = float(landscape.network.energy(dict(model.named_parameters())))
    landscape.network = None
    units = float(landscape.energy())
    assert both == pytest.approx(units + whole, rel=1e-6)
    assert min(units, whole) > 0


def test_memory_stays_within_the_cap() -> None:
    model = network()
    options = PublishedOptions(directions=4, snapshots=10, inputs=32, cap=6)
    landscape, ldc = published(model, options=options)
    for seed in range(4):
        train(landscape, seed)
    assert ldc.held is not None
    assert len(ldc.held.stiffness) == 6
    P = len(vector(model))
    assert landscape.bytes_held() == 4 * (6 * P + 6 + P)


def test_saved_and_loaded_is_never_stopped() -> None:
    model = network()
    landscape, _ = published(model)
    train(landscape, 0)
    twin = network()
    twin.load_state_dict(model.state_dict())
    restored, _ = published(twin)
    restored.load_state_dict(landscape.state_dict())
    for one in (landscape, restored):
        train(one, 1)
    assert torch.equal(vector(model), vector(twin))
    with pytest.raises(StateError, match="network constraint"):
        Landscape(twin, optimizer_of(twin)).load_state_dict(landscape.state_dict())
    broken = landscape.state_dict()
    broken["network"] = {**broken["network"], "anchor": torch.zeros(3)}
    with pytest.raises(StateError, match="do not fit"):
        restored.load_state_dict(broken)


def test_a_head_that_grows_is_free_where_it_is_new() -> None:
    model = network()
    landscape, ldc = published(model)
    train(landscape, 0)
    assert ldc.held is not None
    rank = len(ldc.held.stiffness)
    head = nn.Linear(5, 3)
    with torch.no_grad():
        for new, old in zip(head.parameters(), model[2].parameters(), strict=True):
            new[:2] = old
    model[2] = head
    landscape.metric.optimizer.param_groups[0]["params"] = list(model.parameters())
    train(landscape, 1)
    assert ldc.held.directions.shape[1] == len(vector(model))
    assert len(ldc.held.stiffness) > rank


def test_it_says_what_it_needs() -> None:
    landscape, _ = published(network())
    train(landscape, 0, end=False)
    with pytest.raises(StateError, match="inputs, targets"):
        landscape.end_task()
    ragged = [(torch.zeros(8, n), torch.zeros(8, dtype=torch.long)) for n in (4, 5)]
    with pytest.raises(StateError, match="pad them alike"):
        landscape.end_task(ragged)
    landscape.end_task([task(0)])  # nothing was lost
    assert landscape.bytes_held() > 0
    assert landscape.describe().total == landscape.bytes_held()
    assert "network constraint" in str(landscape.describe())
    landscape, _ = published(network())
    with pytest.raises(StateError, match="on a training"):
        landscape.fit([task(0)])
    train(landscape, 0, end=False, steps=1)
    with pytest.raises(StateError, match="1 snapshots"):
        landscape.end_task([task(0)])
    for bad in (
        {"strength": -1.0}, {"strength": "a"}, {"window": 0.0}, {"directions": 0},
        {"directions": 2.5}, {"inputs": 0}, {"interval": 0}, {"snapshots": 1}, {"seed": "x"},
    ):  # fmt: skip
        with pytest.raises(OptionError, match=next(iter(bad))):
            PublishedOptions(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("steps", [3, 20, 97, 500])
def test_snapshots_cover_the_last_share_evenly_in_bounded_number(steps: int, told: bool) -> None:
    options = PublishedOptions(snapshots=8)
    tail = TailSnapshots(options, steps if told else None)
    for step in range(1, steps + 1):
        tail.offer(step, {"w": torch.tensor([float(step)])})
        assert len(tail.rows) <= 2 * options.snapshots
    seen = [int(row) for row in tail.snapshots()]
    start = steps - max(2, math.ceil(options.window * steps))
    strides = {b - a for a, b in itertools.pairwise(seen)}
    assert len(strides) == 1
    stride = strides.pop()
    assert start < seen[0] <= start + stride
    assert steps - stride < seen[-1]
    assert len(seen) >= min(options.snapshots // 2, steps - start)
