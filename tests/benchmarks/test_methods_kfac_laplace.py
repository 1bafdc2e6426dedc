"""Kronecker-factored Laplace against dense matrices and loops over samples, in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blobs import INPUTS, SAMPLES, flat, in_second_task, network, plugged, train
from blobs import trained as naive_weights
from digit_streams import digits, network_for, run
from torch import Tensor, nn

from benchmarks.methods import _fisher
from benchmarks.methods._layers import layers_of, to_matrix, trainable
from benchmarks.methods._passes import sample_rows
from benchmarks.methods.kfac_laplace import RIVAL, KroneckerLaplace, merge, quadratic
from flatcl.errors import NonFiniteError, OptionError
from flatcl.footprint import bytes_held
from flatcl.rivals import RIVALS
from flatcl.streams import Stream


def factors(generator: torch.Generator, tasks: int, size: int) -> Tensor:
    roots = torch.randn(tasks, size, size, dtype=torch.float64, generator=generator)
    return roots @ roots.mT


def dense(G: Tensor, A: Tensor) -> Tensor:
    """Return Σ_t G_t ⊗ A_t, which acts on row-major vectors of [out, d]."""
    return torch.stack([torch.kron(g, a) for g, a in zip(G, A, strict=True)]).sum(0)


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_penalty_is_the_dense_quadratic_form(tasks: int, generator: torch.Generator) -> None:
    G, A = factors(generator, tasks, 3), factors(generator, tasks, 4)
    move = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    penalty = quadratic(move, G, A)
    (gradient,) = torch.autograd.grad(penalty, move)
    v = move.detach().flatten()
    curvature = dense(G, A)
    torch.testing.assert_close(penalty.detach(), 0.5 * v @ curvature @ v, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient.flatten(), curvature @ v, rtol=1e-10, atol=1e-12)


def test_merging_keeps_both_partial_traces_and_one_product_as_it_is(
    generator: torch.Generator,
) -> None:
    G, A = factors(generator, 3, 3), factors(generator, 3, 4)
    for chained in (merge(G, A), _chain(G, A)):
        before, after = (dense(*pair).view(3, 4, 3, 4) for pair in ((G, A), chained))
        for trace in ("ajbj->ab", "iaib->ab"):
            expected, found = (torch.einsum(trace, full) for full in (before, after))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(dense(*merge(G[:1], A[:1])), dense(G[:1], A[:1]))


def _chain(G: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    held = G[:1], A[:1]
    for t in range(1, len(G)):
        held = merge(torch.cat([held[0], G[t : t + 1]]), torch.cat([held[1], A[t : t + 1]]))
    return held


def convolutional() -> nn.Module:
    layers = nn.Conv2d(2, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 4, bias=False)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("make", "shape"), [(network, (INPUTS,)), (convolutional, (2, 3, 3))])
def test_the_factors_are_those_of_a_loop_over_samples(
    make: Any, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(9, *shape, dtype=torch.float64, generator=generator)
    y = torch.randint(2, (9,), generator=generator)
    layers = layers_of(model)

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    rows = sample_rows(model, layers, [x, torch.zeros(9)], loss)
    for i in range(9):  # a sample's weight gradient is the product of its rows, summed over places
        one = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(one, list(model.parameters()))
        of = {id(p): g for p, g in zip(model.parameters(), gradients, strict=True)}
        for name, layer in layers.items():
            expected = to_matrix([of[id(p)] for p in trainable(layer)])
            inputs, outputs = rows[name]
            torch.testing.assert_close(outputs[i].T @ inputs[i], expected, rtol=1e-10, atol=1e-12)


def test_the_curvature_of_softmax_regression_is_its_fisher_matrix() -> None:
    # With inputs of one kind G ⊗ A is exact: (diag p − ppᵀ) ⊗ xxᵀ, in the mean over labels.
    x = torch.tensor([1.0, -2.0, 0.5])
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    plugin = KroneckerLaplace(1.0)
    samples = [(x, 0, 0)] * 20000
    data = _Data(samples)
    strategy = SimpleNamespace(
        model=model, experience=SimpleNamespace(dataset=data), device=torch.device("cpu")
    )
    plugin.after_training_exp(strategy)
    (G, A) = (factor[0] for factor in plugin.factors[""])
    rows = torch.cat([x, torch.ones(1)])
    p = model(x).softmax(0).detach()
    torch.testing.assert_close(A, torch.outer(rows, rows), rtol=1e-4, atol=0)
    # four standard errors of a frequency over 20000 draws
    torch.testing.assert_close(G, torch.diag(p) - torch.outer(p, p), rtol=0, atol=0.015)
    torch.testing.assert_close(plugin.anchors[""], to_matrix(list(model.parameters())).detach())


class _Data(list[tuple[Tensor, int, int]]):
    collate_fn = staticmethod(torch.utils.data.default_collate)


def test_a_convolution_sums_inputs_over_places_and_takes_the_mean_of_gradients(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fisher, "_drawn_loss", lambda logits: logits.square().sum())
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 2, 2, bias=False)
    model = nn.Sequential(layer, nn.Flatten())
    data = _Data([(torch.randn(1, 2, 3, generator=generator), 0, 0) for _ in range(5)])
    plugin = KroneckerLaplace(1.0)
    plugin.after_training_exp(
        SimpleNamespace(
            model=model, experience=SimpleNamespace(dataset=data), device=torch.device("cpu")
        )
    )
    A, G = torch.zeros(4, 4), torch.zeros(2, 2)
    for image, *_ in data:
        for column in range(2):  # the two places of the window
            patch = image[0, :, column : column + 2].flatten()
            g = 2 * layer.weight.detach().flatten(1) @ patch  # of the sum of squares
            A += torch.outer(patch, patch) / 5
            G += torch.outer(g, g) / (5 * 2)
    torch.testing.assert_close(plugin.factors["0"], (G[None], A[None]))


@pytest.mark.parametrize("merged", [True, False])
def test_the_penalty_in_training_is_the_dense_one_of_all_tasks(
    merged: bool, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    own = KroneckerLaplace._curvature

    def spy(self: KroneckerLaplace, strategy: Any) -> Any:
        seen.append(own(self, strategy))
        return seen[-1]

    monkeypatch.setattr(KroneckerLaplace, "_curvature", spy)
    model = network()
    plugin = KroneckerLaplace(7.0, merged=merged)
    train(plugged(plugin, model), stream)
    anchor = {name: to_matrix(trainable(x)).detach() for name, x in layers_of(model).items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    expected = 0.0
    for name, layer in layers_of(model).items():
        G, A = (torch.cat([task[name][i] for task in seen]).double() for i in (0, 1))
        move = (to_matrix(trainable(layer)) - anchor[name]).detach().double().flatten()
        curvature = dense(*(merge(G, A) if merged else (G, A)))
        expected += float(3.5 * move @ curvature @ move)
    second = in_second_task(model)
    plugin.before_backward(second)
    assert float(second.loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.1


def test_the_factors_do_not_depend_on_the_batches(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (SAMPLES, 7):
        monkeypatch.setattr(_fisher, "_BATCH", size)
        monkeypatch.setattr(_fisher, "_drawn_loss", lambda logits: logits[:, 0].square().sum())
        plugin = KroneckerLaplace(1.0)
        strategy = plugged(plugin, network())
        strategy.experience = stream.benchmark.train_stream[0]
        plugin.after_training_exp(strategy)
        found.append(plugin.factors["2"])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def weights_after(strength: float, stream: Stream) -> Tensor:
    model = network()
    train(with_rival(strength, model), stream)
    return flat(model)


def with_rival(strength: float, model: nn.Module) -> Any:
    return plugged(RIVAL.own_plugins(strength, 200)[0], model)


def test_strength_0_is_naive_bit_for_bit_and_1_is_not(stream: Stream) -> None:
    naive = naive_weights("naive", stream)
    assert torch.equal(weights_after(0.0, stream), naive)
    assert not torch.allclose(weights_after(1.0, stream), naive, rtol=0, atol=1e-3)


def test_modes_come_back_and_frozen_parameters_are_left_out(stream: Stream) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    plugin = KroneckerLaplace(1.0)
    strategy = plugged(plugin, model)
    strategy.experience = stream.benchmark.train_stream[0]
    plugin.after_training_exp(strategy)
    assert [module.training for module in model] == [True, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert plugin.factors["0"][1].shape == (1, 1, 1)  # the bias alone
    assert bytes_held(strategy) == 4 * (5 * 5 + 1 + 5 + 2 * 2 + 6 * 6 + 2 * 6)


@pytest.mark.parametrize(("merged", "pairs"), [(True, 1), (False, 2)])
def test_memory_is_constant_if_merged(merged: bool, pairs: int, stream: Stream) -> None:
    strategy = plugged(KroneckerLaplace(1.0, merged=merged), network())
    train(strategy, stream)
    assert bytes_held(strategy) == 4 * (pairs * (5 * 5 + 7 * 7 + 2 * 2 + 6 * 6) + 5 * 7 + 2 * 6)


def test_it_forgets_less_than_naive() -> None:
    stream = digits()
    naive, _ = run(RIVALS["naive"], None, stream, network_for(stream))
    ours, learnt = run(RIVAL, 1.0, stream, network_for(stream))
    assert ours > naive + 0.05
    assert learnt - ours < 0.1


def test_told_tasks_pull_at_their_own_outputs_alone() -> None:
    stream = digits("split-task", 5)
    model = network_for(stream)
    plugin = KroneckerLaplace(1.0)
    train(plugged(plugin, model), stream, tasks=1)
    (G, _) = plugin.factors["network.3"]
    assert G[0, :2, :2].trace() > 0
    assert not G[0, 2:].any()


def test_divergence_is_named_and_unknown_layers_are_refused(stream: Stream) -> None:
    model = network()
    nn.init.constant_(model.get_parameter("2.bias"), float("nan"))
    with pytest.raises(NonFiniteError, match="not finite at the end of a task: lower lr"):
        train(with_rival(1.0, model), stream, tasks=1)
    with pytest.raises(OptionError, match=r"^layer '1' is a BatchNorm1d: only Linear"):
        train(with_rival(1.0, nn.Sequential(nn.Linear(INPUTS, 2), nn.BatchNorm1d(2))), stream)
