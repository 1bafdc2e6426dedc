"""OWM's projector against dense algebra, its steps, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blobs import SAMPLES, build, common, data_of, flat, network, train
from forgetting import accuracies, forgetful_stream
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.methods._layers import assign_, input_rows, matrix_of
from benchmarks.methods.owm import RIVAL, OWMPlugin, shrunk
from flatcl.errors import OptionError
from flatcl.footprint import bytes_held
from flatcl.models import make_model
from flatcl.rivals import RIVALS
from flatcl.streams import Stream

from avalanche.training.plugins import SupervisedPlugin  # isort: skip


def made(model: nn.Module, alpha: float, **options: Any) -> tuple[Any, OWMPlugin]:
    strategy = RIVAL.build(alpha, **common(model, **options))
    (plugin,) = [p for p in strategy.plugins if isinstance(p, OWMPlugin)]
    return strategy, plugin


def dense(A: Tensor, alpha: float) -> Tensor:
    """Return I − A (AᵀA + αI)⁻¹ Aᵀ of the columns of A [d, n]."""
    gram = A.T @ A + alpha * torch.eye(A.shape[1], dtype=A.dtype)
    return torch.eye(len(A), dtype=A.dtype) - A @ torch.linalg.solve(gram, A.T)


def recursive(A: Tensor, alpha: float) -> Tensor:
    """Return P after the paper's rank-one updates with the columns of A."""
    P = torch.eye(len(A), dtype=A.dtype)
    for x in A.T:
        k = P @ x / (alpha + x @ P @ x)
        P = P - torch.outer(k, x @ P)
    return P


@pytest.mark.parametrize("alpha", [0.01, 1.0, 30.0])
def test_projector_is_the_papers_recursion_and_dense_algebra(
    alpha: float, generator: torch.Generator
) -> None:
    first, second = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    both = torch.cat([first, second], dim=1)
    after_first = shrunk(None, first @ first.T, alpha)
    after_both = shrunk(after_first, second @ second.T, alpha)
    torch.testing.assert_close(after_first, dense(first, alpha), rtol=0, atol=1e-12)
    torch.testing.assert_close(after_both, dense(both, alpha), rtol=0, atol=1e-10)
    torch.testing.assert_close(after_both, recursive(both, alpha), rtol=0, atol=1e-10)


def test_a_rounded_projector_stays_semidefinite(generator: torch.Generator) -> None:
    A = 30 * torch.randn(40, 60, generator=generator, dtype=torch.float64)
    P = shrunk(None, A @ A.T, 1e-4)
    rounded = P.float().double() - 1e-7 * torch.eye(40, dtype=torch.float64)
    again = shrunk(rounded, A @ A.T, 1e-4)
    assert float(torch.linalg.eigvalsh(rounded)[0]) < 0
    assert float(torch.linalg.eigvalsh(again)[0]) > -1e-15
    assert float(torch.linalg.eigvalsh(again)[-1]) < 1e-7


def test_one_batch_by_hand(stream: Stream) -> None:
    model = network()
    strategy, plugin = made(model, 2.0, train_mb_size=SAMPLES)
    train(strategy, stream, tasks=1)
    x, _ = data_of(stream)
    one = torch.ones(1)
    inputs = {"0": torch.cat([x.mean(0), one])}
    inputs["2"] = torch.cat([model[:2](x).mean(0).detach(), one])
    assert list(plugin.projectors) == ["0", "2"]
    for name, projector in plugin.projectors.items():
        A = inputs[name].double()[:, None]
        torch.testing.assert_close(projector.double(), dense(A, 2.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [1e-3, 1e-6])
def test_outputs_on_stored_inputs_stay_as_alpha_vanishes(alpha: float, stream: Stream) -> None:
    model = nn.Linear(6, 2)
    strategy, plugin = made(model, alpha, train_mb_size=SAMPLES // 2)
    train(strategy, stream, tasks=1)
    means = torch.linalg.eigh(torch.eye(7) - plugin.projectors[""].float())
    stored = means.eigenvectors[:, -2:]  # two batches, two mean inputs
    before = matrix_of(model)
    strategy.train(stream.benchmark.train_stream[1], eval_streams=[])
    step = matrix_of(model) - before
    assert float(step.norm()) > 0.02
    assert float((step @ stored).norm()) < 10 * alpha + 1e-5


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_step_is_the_optimisers_times_the_projector(kind: str, stream: Stream) -> None:
    class Check(SupervisedPlugin):  # type: ignore[misc]
        seen = 0

        def before_update(self, strategy: Any, **kwargs: object) -> None:
            self.start = {n: w.detach().clone() for n, w in strategy.model.named_parameters()}
            self.gradient = strategy.model.weight.grad.clone()

        def after_update(self, strategy: Any, **kwargs: object) -> None:
            if plugin.projectors:
                assert torch.equal(model.bias, self.start["bias"])  # frozen
                step = (model.weight - self.start["weight"]).detach()
                P = plugin.projectors[""]
                if kind == "sgd":
                    torch.testing.assert_close(step, -0.1 * self.gradient @ P, rtol=0, atol=1e-6)
                inside = torch.linalg.lstsq(P, step.T).solution
                assert torch.linalg.matrix_rank(P, atol=1e-4) == 5
                torch.testing.assert_close(P @ inside, step.T, rtol=0, atol=1e-5)
                self.seen += 1

    model, check = nn.Linear(6, 2), Check()
    model.bias.requires_grad_(False)
    optimizer = SGD(model.parameters(), 0.1) if kind == "sgd" else Adam(model.parameters(), 0.01)
    strategy, plugin = made(model, 1e-6, optimizer=optimizer, train_mb_size=SAMPLES)
    strategy.plugins.append(check)
    train(strategy, stream)
    assert check.seen == 2
    assert plugin.projectors[""].shape == (6, 6)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Conv2d(2, 3, (1, 2), bias=False)]
)
def test_a_convolutions_matrix_meets_its_patches(
    layer: nn.Conv2d, generator: torch.Generator
) -> None:
    x = torch.randn(5, 2, 6, 6, generator=generator)
    rows = input_rows(layer, x)
    expected = layer(x).flatten(2).transpose(1, 2).detach()
    torch.testing.assert_close(rows @ matrix_of(layer).T, expected, rtol=0, atol=1e-5)
    changed = matrix_of(layer) + 1
    with torch.no_grad():
        assign_(layer, changed)
    assert torch.equal(matrix_of(layer), changed)


def test_frozen_layers_are_left_out_and_modes_come_back(stream: Stream) -> None:
    model = network()
    model[0].requires_grad_(False)
    model.append(nn.Dropout(0.5))
    strategy, plugin = made(model, 1.0)
    strategy.experience = stream.benchmark.train_stream[0]
    model[1].eval()
    before = [module.training for module in model.modules()]
    plugin.after_training_exp(strategy)
    assert [module.training for module in model.modules()] == before
    assert list(plugin.projectors) == ["2"]
    assert not model[2]._forward_pre_hooks


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(2),
        nn.Conv2d(2, 2, 1, groups=2),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    ],
)
def test_other_layers_are_refused_unless_frozen(layer: nn.Module, stream: Stream) -> None:
    model = nn.Sequential(nn.Linear(6, 2), layer)
    strategy, plugin = made(model, 1.0)
    with pytest.raises(OptionError, match=r"^layer .1. (is|has) .* known"):
        strategy.train(stream.benchmark.train_stream[0], eval_streams=[])
    layer.requires_grad_(False)
    plugin.before_training_exp(strategy)


def test_alpha_of_zero_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^alpha is 0.0: give a number > 0$"):
        RIVAL.build(0.0, **common(network()))


def test_a_large_alpha_is_naive(stream: Stream) -> None:
    ends = {}
    for alpha in (1e-2, 1e9):
        model = network()
        train(made(model, alpha)[0], stream)
        ends[alpha] = flat(model)
    plain = network()
    train(build("naive", plain), stream)
    torch.testing.assert_close(ends[1e9], flat(plain), rtol=0, atol=1e-5)
    assert not torch.allclose(ends[1e-2], flat(plain), rtol=0, atol=1e-2)


def test_bytes_are_those_of_the_projectors(stream: Stream) -> None:
    strategy, _ = made(network(), 1.0)
    train(strategy, stream)
    assert bytes_held(strategy) == 4 * (7 * 7 + 6 * 6)


def test_a_convolutional_network_that_is_told_the_task() -> None:
    stream = forgetful_stream("split-task")
    model = make_model(stream.input_shape, stream.n_outputs, seed=0, outputs_per_task=2, kind="cnn")
    strategy, plugin = made(model, 1.0)
    train(strategy, stream)
    widths = [len(projector) for projector in plugin.projectors.values()]
    assert widths == [10, 32 * 9 + 1, 64 * 9 + 1, 64 + 1, 128 + 1]
    for projector in plugin.projectors.values():
        spectrum = torch.linalg.eigvalsh(projector.double())
        assert -1e-6 < float(spectrum[0]) < 0.5
        assert float(spectrum[-1]) < 1 + 1e-6


@pytest.mark.parametrize(("scenario", "gain"), [("permuted", 0.1), ("split-class", 0.3)])
def test_it_forgets_less_than_naive(scenario: Any, gain: float) -> None:
    stream = forgetful_stream(scenario)
    learned, kept, new = accuracies(RIVAL, 1.0, stream)
    plain = accuracies(RIVALS["naive"], None, stream)
    assert min(learned, new, plain[0], plain[2]) > 0.9
    assert kept > plain[1] + gain
