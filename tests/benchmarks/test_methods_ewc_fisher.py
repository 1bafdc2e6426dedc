"""Fisher diagonals against closed forms and loops of autograd; the sum over tasks in 2P numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from blobs import (
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

from benchmarks.methods import ewc_fisher
from benchmarks.methods._fisher import Directions, empirical, exact, fisher_diagonal, sampled
from benchmarks.methods._passes import task_batches
from benchmarks.methods.ewc_fisher import RIVALS, FisherEWC
from flatcl.errors import NonFiniteError, OptionError
from flatcl.models import TaskSlice
from flatcl.rivals import Rival, bytes_held
from flatcl.streams import Stream

VARIANTS = pytest.mark.parametrize("directions", [exact, empirical])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3))


def cnn() -> nn.Module:
    convolutions = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 2, stride=2, bias=False)
    first, second = convolutions
    head = nn.Flatten(), nn.Linear(2, 3)
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), first, nn.ReLU(inplace=True), second, nn.MaxPool2d(1), *head
    )


def tokens() -> nn.Module:
    """Two positions an input, seen by one linear layer."""
    return nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Linear(4, 3), nn.Flatten(), nn.Linear(6, 3))


def task_slice() -> nn.Module:
    return TaskSlice(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 6)), 3)


def samples_of(count: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (count,), generator=generator)
    return x, y, torch.arange(count) % 2


def made(build: object) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = build().double()  # type: ignore[operator]
    return model


def by_autograd(model: nn.Module, samples: Sequence[Tensor], directions: Directions) -> Tensor:
    """Return the mean over samples of squared gradients, one backward pass a sample and class."""
    model.eval()
    weights = [w for w in model.parameters() if w.requires_grad]
    total = torch.zeros(sum(w.numel() for w in weights), dtype=torch.float64)
    for x, y, t in zip(*(part.split(1) for part in samples), strict=True):
        logits = model(x, t) if isinstance(model, TaskSlice) else model(x)
        logarithms = functional.log_softmax(logits, dim=1)[0]
        classes = range(3) if directions is exact else [int(y)]
        for label in classes:
            share = float(logarithms[label].detach().exp()) if directions is exact else 1.0
            gradients = torch.autograd.grad(logarithms[label], weights, retain_graph=True)
            total += share * torch.cat([g.flatten() for g in gradients]).square()
    return total / len(samples[1])


def test_softmax_regression_by_hand() -> None:
    model = made(lambda: nn.Linear(8, 3))
    x, y, t = samples_of()
    p = model(x).detach().softmax(dim=1)
    found = fisher_diagonal(model, (x, y, t), exact)
    spread = p * (1 - p)  # E (1[k = c] − p_c)² over labels k drawn from p
    expected = spread.T @ x.square() / len(x)
    torch.testing.assert_close(found[:24].view(3, 8), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found[24:], spread.mean(0), rtol=1e-10, atol=0)
    named = (functional.one_hot(y, 3) - p).square()
    found = fisher_diagonal(model, (x, y, t), empirical)
    torch.testing.assert_close(
        found[:24].view(3, 8), named.T @ x.square() / len(x), rtol=1e-10, atol=0
    )


@VARIANTS
@pytest.mark.parametrize("build", [mlp, cnn, tokens, task_slice])
def test_equal_to_a_loop_of_autograd(build: object, directions: Directions) -> None:
    model, samples = made(build), samples_of()
    expected = by_autograd(model, samples, directions)
    assert int((expected > 0).sum()) > len(expected) // 2
    found = fisher_diagonal(model, samples, directions)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-16)


@VARIANTS
def test_independent_of_the_chunk(directions: Directions) -> None:
    for build in (mlp, cnn):
        model, samples = made(build), samples_of()
        found = [fisher_diagonal(model, samples, directions, chunk=c) for c in (1, 3, 100)]
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)
        torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=0)


def test_one_drawn_label_gives_the_expectation_on_average() -> None:
    model, (x, y, t) = made(mlp), samples_of()
    many = [part.repeat_interleave(20000, dim=0) for part in (x, y, t)]
    expected = fisher_diagonal(model, (x, y, t), exact)
    torch.manual_seed(0)
    found = fisher_diagonal(model, many, sampled, chunk=140000)
    seen = expected > 1e-3 * expected.max()
    torch.testing.assert_close(found[seen], expected[seen], rtol=0.05, atol=0)
    other = fisher_diagonal(model, (x, y, t), empirical)
    assert float((other[seen] / expected[seen] - 1).abs().max()) > 0.3  # true labels do not


def test_modes_gradients_and_frozen_weights_are_left_alone() -> None:
    model = made(mlp)
    model[3].eval()  # type: ignore[index]
    modes = [module.training for module in model.modules()]
    model.get_parameter("0.weight").requires_grad_(False)
    found = fisher_diagonal(model, samples_of(), exact)
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None for weight in model.parameters())
    assert len(found) == 4 + 15
    torch.testing.assert_close(found, fisher_diagonal(model, samples_of(), exact), rtol=0, atol=0)


class Hidden(nn.Module):
    """Uses the weights of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight)


def twice() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, layer)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    return model


def mixing() -> nn.Module:
    return nn.Sequential(nn.Unflatten(0, (1, -1)), nn.Linear(8, 3), nn.Flatten(0, 1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3)), "layer '1' is a LayerNorm: only"),
        (lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 1, 2)), "'1' is a Conv1d"),
        (lambda: nn.Conv2d(2, 2, 1, groups=2), "'the model itself' has groups 2"),
        (twice, "is used twice"),
        (tied, "layer '1' shares a parameter"),
        (Hidden, "used without calling the layer"),
        (mixing, "mixes samples"),
        (lambda: nn.Linear(8, 3).requires_grad_(False), "no trainable parameter"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(build: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fisher_diagonal(made(build), samples_of(), exact)


def test_outputs_that_are_not_finite_are_a_divergence() -> None:
    model = made(mlp)
    with torch.no_grad():
        model.get_parameter("3.bias").fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="outputs are not finite"):
        fisher_diagonal(model, samples_of(), sampled)


def test_the_sum_over_tasks_is_exact_in_constant_memory(stream: Stream) -> None:
    model, plugin = network(), FisherEWC(3.0, empirical)
    strategy = plugged(plugin, model)
    model[0].requires_grad_(False)
    terms: list[tuple[Tensor, Tensor]] = []
    for number, experience in enumerate([*stream.benchmark.train_stream] * 2):
        strategy.experience = experience
        with torch.no_grad():
            model.get_parameter("2.weight").add_(0.3 * number)
        (samples,) = task_batches(strategy, SAMPLES, count=SAMPLES)
        terms.append((fisher_diagonal(model, samples, empirical), flat(model[2])))
        plugin.after_training_exp(strategy)
    assert bytes_held(strategy) == 2 * 4 * 12
    with torch.no_grad():
        model.get_parameter("2.bias").add_(0.2)
    second = in_second_task(model)
    plugin.before_backward(second)
    second.loss.backward()
    weights = flat(model[2])
    penalty = 1.5 * sum(float((f * (weights - w).square()).sum()) for f, w in terms)
    gradient = torch.stack([3.0 * f * (weights - w) for f, w in terms]).sum(0)
    assert penalty > 0
    assert float(second.loss.detach()) == pytest.approx(penalty, rel=1e-5)
    found = torch.cat([w.grad.flatten() for w in model[2].parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_importance_does_not_depend_on_the_training_batch(stream: Stream) -> None:
    found = []
    for size in (1, 16, 48):
        plugin = FisherEWC(1.0, exact)
        strategy = plugged(plugin, network(), train_mb_size=size)
        strategy.experience = stream.benchmark.train_stream[0]
        plugin.after_training_exp(strategy)
        assert plugin.importance is not None
        found.append(plugin.importance)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    x, y = data_of(stream)
    samples = x, y, torch.zeros_like(y)
    torch.testing.assert_close(found[0], fisher_diagonal(network(), samples, exact))


def test_samples_are_drawn_once_each_and_no_more_than_asked_for(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = plugged(FisherEWC(1.0, exact), network())
    strategy.experience = stream.benchmark.train_stream[0]
    ((x, y, t),) = task_batches(strategy, 10, count=10)
    assert len(x) == len(y) == len(t) == len(torch.unique(x, dim=0)) == 10
    ((x, _, _),) = task_batches(strategy, 1000, count=1000)
    assert len(x) == SAMPLES
    asked: list[int] = []

    def measured(model: nn.Module, samples: Sequence[Tensor], _: object) -> Tensor:
        asked.append(len(samples[0]))
        return flat(model)

    monkeypatch.setattr(ewc_fisher, "FISHER_SAMPLES", 10)
    monkeypatch.setattr(ewc_fisher, "fisher_diagonal", measured)
    train(plugged(FisherEWC(1.0, exact), network()), stream)
    assert asked == [10, 10]


def test_another_loss_is_refused(stream: Stream) -> None:
    with pytest.raises(OptionError, match=r"^the loss is MultiMarginLoss\(\)"):
        train(
            plugged(FisherEWC(1.0, exact), network(), criterion=nn.MultiMarginLoss()),
            stream,
            tasks=1,
        )


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_no_penalty_is_naive_and_a_penalty_is_not(rival: Rival, stream: Stream) -> None:
    naive = trained("naive", stream)
    for value, same in ((0.0, True), (100.0, False)):
        model = network()
        train(rival.build(value, **common(model)), stream)
        assert torch.equal(flat(model), naive) is same


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_it_forgets_less_than_naive_on_permuted_digits(rival: Rival) -> None:
    assert final_accuracy(rival, 30.0) > naive_accuracy() + 0.1
