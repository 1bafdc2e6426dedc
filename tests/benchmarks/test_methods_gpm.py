"""GPM against dense linear algebra, and what its projection promises."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blobs import CLASSES, INPUTS, flat, network, plugged, train
from blobs import trained as naive_weights
from digit_streams import digits, network_for, run
from torch import Tensor, nn

from benchmarks.methods._layers import input_rows, layers_of, to_matrix
from benchmarks.methods.gpm import RIVALS as GPM
from benchmarks.methods.gpm import GradientProjection, extended
from flatcl.errors import OptionError
from flatcl.footprint import bytes_held
from flatcl.models import TaskSlice
from flatcl.rivals import RIVALS, Rival
from flatcl.streams import Stream


def linear(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, CLASSES, bias=bias))


def steep_rows(generator: torch.Generator, n: int, d: int) -> Tensor:
    """Return n random rows whose energy falls off along the directions."""
    scales = torch.logspace(0, -2, d, dtype=torch.float64)
    return torch.randn(n, d, dtype=torch.float64, generator=generator) * scales


def projector(basis: Tensor) -> Tensor:
    return basis @ basis.T


@pytest.mark.parametrize("n", [5, 40])  # fewer rows than columns, and more
@pytest.mark.parametrize("residual", [0.3, 0.03, 1e-3])
def test_the_first_basis_is_the_shortest_svd_that_holds_enough(
    n: int, residual: float, generator: torch.Generator
) -> None:
    rows = steep_rows(generator, n, 8)
    basis = extended(torch.empty(8, 0, dtype=torch.float64), rows, residual)
    _, singular, vectors = torch.linalg.svd(rows)
    shares = singular.square().cumsum(0) / singular.square().sum()
    rank = 1 + int((shares < 1 - residual).sum())
    assert 1 <= rank < 8
    torch.testing.assert_close(projector(basis), projector(vectors[:rank].T), rtol=0, atol=1e-10)


def test_a_later_task_adds_the_fewest_directions_and_keeps_the_old_ones(
    generator: torch.Generator,
) -> None:
    old = extended(torch.empty(9, 0, dtype=torch.float64), steep_rows(generator, 40, 9), 0.05)
    mixing = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=generator))[0]
    rows = steep_rows(generator, 40, 9) @ mixing
    joint = extended(old, rows, 0.02)
    outside = rows @ (torch.eye(9, dtype=torch.float64) - projector(old))
    _, _, vectors = torch.linalg.svd(outside)
    total = rows.square().sum()
    for rank in range(9):  # the paper's criterion, rank by rank
        candidate = torch.cat([old, vectors[:rank].T], 1)
        if (rows @ candidate).square().sum() >= 0.98 * total:
            break
    assert 0 < rank < 9 - old.shape[1]
    torch.testing.assert_close(projector(joint), projector(candidate), rtol=0, atol=1e-10)
    torch.testing.assert_close(joint.T @ joint, torch.eye(joint.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("bias", [True, False])
def test_steps_of_sgd_leave_the_outputs_at_stored_inputs(
    bias: bool, generator: torch.Generator
) -> None:
    x = torch.randn(20, 3, generator=generator) @ torch.randn(3, INPUTS, generator=generator)
    model, stored = linear(bias), torch.randn(20, INPUTS, generator=generator)
    rows = input_rows(layers_of(model)["0"], x).flatten(0, 1).double()
    basis = extended(rows.new_empty(INPUTS + bias, 0), rows, 0.0)
    assert basis.shape == (INPUTS + bias, 3 + bias)
    plugin = GradientProjection(0.0)
    plugin.bases["0"] = basis.float()
    before, start = model(x).detach(), flat(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        model(stored).square().mean().backward()
        plugin.before_update(SimpleNamespace(model=model, optimizer=optimizer))
        optimizer.step()
    gradient = to_matrix([p.grad for p in model.parameters() if p.grad is not None])
    assert gradient.norm() > 1e-2
    assert (gradient @ plugin.bases["0"]).abs().max() < 1e-6
    assert (flat(model) - start).norm() > 0.1
    torch.testing.assert_close(model(x).detach(), before, rtol=0, atol=1e-5)


def test_a_convolution_keeps_its_outputs_at_stored_images(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1))
    x = torch.randn(1, 2, 2, 2, generator=generator)  # four patches of 18 + 1 values
    plugin = GradientProjection(0.0)
    rows = input_rows(layers_of(model)["0"], x).flatten(0, 1).double()
    plugin.bases["0"] = extended(rows.new_empty(19, 0), rows, 0.0).float()
    before, start = model(x).detach(), flat(model)
    model(torch.randn(4, 2, 5, 5, generator=generator)).square().mean().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    plugin.before_update(SimpleNamespace(model=model, optimizer=optimizer))
    optimizer.step()
    assert (flat(model) - start).norm() > 0.1
    torch.testing.assert_close(model(x).detach(), before, rtol=0, atol=1e-5)


OPTIMISERS = [
    lambda weights: torch.optim.Adam(weights, lr=0.05),
    lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1),
]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_steps_that_would_leave_the_subspace_are_projected(optimiser: Any, stream: Stream) -> None:
    moved = []
    for steps in (True, False):
        model = linear()
        plugin = GradientProjection(0.3, steps=steps)
        optimizer = optimiser(model.parameters())
        strategy = plugged(plugin, model, optimizer=optimizer)
        train(strategy, stream, tasks=1)
        basis = plugin.bases["0"]
        assert 0 < basis.shape[1] < INPUTS + 1
        before = to_matrix(list(model[0].parameters())).detach()
        plugin.after_training_exp = lambda *_: None  # type: ignore[method-assign]
        strategy.train(stream.benchmark.train_stream[1], eval_streams=[])
        step = to_matrix(list(model[0].parameters())).detach() - before
        assert step.norm() > 0.05
        moved.append(float((step @ basis).norm()))
    assert moved[0] < 1e-5
    assert moved[1] > 1e-2
    assert not plugin.starts


def trained(model: nn.Module, residual: float, stream: Stream) -> Tensor:
    train(plugged(GradientProjection(residual), model), stream)
    return flat(model)


def test_nothing_missed_of_full_rank_inputs_freezes_the_layer(stream: Stream) -> None:
    model = linear()
    strategy = plugged(GradientProjection(0.0), model)
    train(strategy, stream, tasks=1)
    after_first = flat(model)
    strategy.train(stream.benchmark.train_stream[1], eval_streams=[])
    torch.testing.assert_close(flat(model), after_first, rtol=0, atol=1e-6)
    assert bytes_held(strategy) == 4 * (INPUTS + 1) ** 2


def test_everything_missed_is_naive_bit_for_bit_and_a_little_is_not(stream: Stream) -> None:
    naive = naive_weights("naive", stream)
    assert torch.equal(trained(network(), 1.0, stream), naive)
    assert not torch.allclose(trained(network(), 0.01, stream), naive, rtol=0, atol=1e-4)


def test_the_first_layer_may_have_a_threshold_of_its_own(stream: Stream) -> None:
    plugin = GradientProjection(0.0, first=1.0)
    train(plugged(plugin, network()), stream, tasks=1)
    assert plugin.bases["0"].shape == (INPUTS + 1, 0)
    assert plugin.bases["2"].shape[1] > 1


def test_the_paper_s_thresholds_of_permuted_images_differ_in_the_first_layer() -> None:
    """Saha et al.'s settings for permuted MNIST: 0.95 in the first layer, 0.99 in the others."""
    plain, first = (rival.own_plugins(0.01, 200)[0] for rival in GPM)
    assert isinstance(plain, GradientProjection)
    assert isinstance(first, GradientProjection)
    assert (first.first, first.residual) == (pytest.approx(0.05), 0.01)
    assert (plain.first, plain.residual) == (0.01, 0.01)


def test_modes_come_back_and_frozen_parameters_are_left_out(stream: Stream) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    plugin = GradientProjection(0.01)
    strategy = plugged(plugin, model)
    strategy.experience = stream.benchmark.train_stream[0]
    plugin.after_training_exp(strategy)
    assert [module.training for module in model] == [True, False, True]
    assert plugin.bases["0"].shape == (1, 1)  # the bias alone
    torch.testing.assert_close(plugin.bases["0"].abs(), torch.ones(1, 1))


def test_the_heads_of_told_tasks_are_free() -> None:
    stream = digits("split-task", 5)
    model = network_for(stream)
    assert isinstance(model, TaskSlice)
    plugin = GradientProjection(0.01)
    train(plugged(plugin, model), stream, tasks=1)
    assert list(plugin.bases) == ["network.1"]


@pytest.mark.parametrize("rival", GPM, ids=lambda rival: rival.name)
def test_it_forgets_less_than_naive(rival: Rival) -> None:
    stream = digits()
    naive, _ = run(RIVALS["naive"], None, stream, network_for(stream))
    ours, learnt = run(rival, 0.03, stream, network_for(stream))
    assert ours > naive + 0.05
    assert learnt - ours < 0.1


def test_a_convolutional_network_trains(generator: torch.Generator) -> None:
    stream = digits("split-task", 5)
    model = network_for(stream, kind="cnn")
    plugin = GradientProjection(0.05)
    train(plugged(plugin, model), stream, tasks=2)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert [len(basis) for basis in plugin.bases.values()] == [10, 289, 577, 65]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match=f"^residual is {share}: give a share"):
        GPM[0].own_plugins(share, 200)
    with pytest.raises(OptionError, match=r"^first is"):
        GradientProjection(0.1, first=share)
