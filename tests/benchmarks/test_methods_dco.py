"""DCO's directions against dense PCA, its penalty by hand, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blobs import (
    BATCH,
    SAMPLES,
    build,
    common,
    data_of,
    flat,
    in_second_task,
    network,
    train,
)
from forgetting import accuracies, forgetful_stream
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.methods import dco
from benchmarks.methods.dco import RIVAL, DCOPlugin, principal_directions
from flatcl.footprint import bytes_held
from flatcl.models import make_model
from flatcl.rivals import RIVALS
from flatcl.streams import Stream


def made(model: nn.Module, strength: float, **options: Any) -> tuple[Any, DCOPlugin]:
    strategy = RIVAL.build(strength, **common(model, **options))
    (plugin,) = [p for p in strategy.plugins if isinstance(p, DCOPlugin)]
    return strategy, plugin


def same_span(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(
        found.T @ found, expected.T @ expected, rtol=0, atol=tolerance, check_dtype=False
    )


@pytest.mark.parametrize(("shape", "count"), [((9, 30), 4), ((40, 12), 5), ((6, 8), 6)])
def test_directions_are_those_of_dense_pca(
    shape: tuple[int, int], count: int, generator: torch.Generator
) -> None:
    vectors = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5
    found = principal_directions(vectors, count)
    expected = torch.linalg.svd(vectors, full_matrices=False).Vh[:count]
    signs = torch.sign((found * expected).sum(1, keepdim=True))
    torch.testing.assert_close(found * signs, expected, rtol=0, atol=1e-10)


def test_directions_of_no_length_are_left_out(generator: torch.Generator) -> None:
    basis = torch.linalg.qr(torch.randn(20, 3, generator=generator)).Q.T
    vectors = torch.randn(10, 3, generator=generator) @ basis
    found = principal_directions(vectors, 8)
    assert found.shape == (3, 20)
    same_span(found, basis, 1e-4)
    assert principal_directions(torch.zeros(4, 20), 8).shape == (0, 20)


def gradient_of(model: nn.Module) -> Tensor:
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients])


def gradients_of(model: nn.Module, stream: Stream, task: int) -> list[Tensor]:
    """Return the gradient of each step of one epoch, which the model takes."""
    feed = stream.benchmark.train_stream[task].dataset.feed(BATCH, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for x, y, _ in feed:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        found.append(gradient_of(model))
        optimizer.step()
    return found


def test_a_tasks_directions_are_those_of_its_loss_gradients(stream: Stream) -> None:
    model = network()
    strategy, plugin = made(model, 1.0, train_epochs=1)
    train(strategy, stream, tasks=1)
    shadow = network()
    recorded = torch.stack(gradients_of(shadow, stream, 0))
    same_span(plugin.forbidden[0].directions, torch.linalg.svd(recorded, False).Vh, 1e-3)
    assert torch.equal(plugin.forbidden[0].anchor, flat(model))


def test_only_the_last_steps_count_and_without_the_penalty(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dco, "_RECORDED", 2)
    seen: list[Tensor] = []
    decompose = dco.principal_directions

    def spy(vectors: Tensor, count: int) -> Tensor:
        seen.append(vectors.clone())
        return decompose(vectors, count)

    monkeypatch.setattr(dco, "principal_directions", spy)
    model = network()
    strategy, _ = made(model, 3.0, train_epochs=1)
    train(strategy, stream, tasks=1)
    shadow = network()
    first = gradients_of(shadow, stream, 0)
    assert len(first) == 3
    for row in first[1:]:
        assert torch.isclose(seen[0], row, rtol=0, atol=1e-7).all(1).any()
    # one step: the shadow, which has no penalty, has its gradient at the same weights
    strategy.train_mb_size = SAMPLES
    x, y = data_of(stream, 1)
    with torch.no_grad():
        torch._foreach_add_(list(model.parameters()), 0.05)
    shadow.load_state_dict(model.state_dict())
    shadow.zero_grad()
    functional.cross_entropy(shadow(x), y).backward()
    strategy.train(stream.benchmark.train_stream[1], eval_streams=[])
    plain = gradient_of(shadow)
    penalised = gradient_of(model)
    torch.testing.assert_close(seen[1], plain[None], rtol=0, atol=1e-6)
    assert not torch.allclose(penalised, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("clip", [20.0, 0.3])
def test_penalty_and_its_gradient_by_autograd(
    stream: Stream, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dco, "_CLIP", clip)
    model = network().double()
    plugin = DCOPlugin(3.0)
    weights = flat(model)
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        draws = torch.randn(4, len(weights), generator=generator, dtype=torch.float64)
        directions = torch.linalg.qr(draws.T).Q.T
        anchor = weights + 0.1 * draws[0]
        plugin.forbidden.append(dco._Forbidden(directions, anchor))
    second = in_second_task(model)
    plugin.before_backward(second)
    second.loss.backward()
    found = gradient_of(model)
    point = weights.clone().requires_grad_()
    pairs = [(task.directions, task.anchor) for task in plugin.forbidden]
    energies = [(U @ (point - anchor)).square().sum() for U, anchor in pairs]
    expected = 3.0 * torch.stack(energies).sum()
    (gradient,) = torch.autograd.grad(expected, point)
    share = min(1.0, clip / float(gradient.norm()))
    assert (share < 1) == (clip == 0.3)
    assert float(second.loss.detach()) == pytest.approx(share * float(expected.detach()), rel=1e-10)
    torch.testing.assert_close(found, share * gradient, rtol=0, atol=1e-10)


def test_no_strength_is_naive_bit_for_bit_and_strength_is_not(stream: Stream) -> None:
    ends = {}
    for strength in (0.0, 3.0):
        model = network()
        train(made(model, strength)[0], stream)
        ends[strength] = flat(model)
    plain = network()
    train(build("naive", plain), stream)
    assert torch.equal(ends[0.0], flat(plain))
    assert not torch.allclose(ends[3.0], flat(plain), rtol=0, atol=1e-3)


def test_frozen_parameters_are_left_out_and_bytes_are_honest(stream: Stream) -> None:
    model = network()
    model[0].requires_grad_(False)
    strategy, plugin = made(model, 1.0)
    train(strategy, stream)
    ranks = [len(task.directions) for task in plugin.forbidden]
    assert len(ranks) == 2
    assert all(task.directions.shape[1] == 12 for task in plugin.forbidden)
    assert bytes_held(strategy) == sum(4 * 12 * (rank + 1) for rank in ranks)


def test_a_network_that_is_told_the_task() -> None:
    stream = forgetful_stream("split-task")
    model = make_model(stream.input_shape, stream.n_outputs, seed=0, outputs_per_task=2)
    strategy, plugin = made(model, 1.0)
    train(strategy, stream)
    other = flat(model)[-2:]  # biases of the second task's outputs
    first = plugin.forbidden[0].directions
    assert other.numel() == 2
    assert float(first[:, -2:].abs().max()) < 1e-6  # the first task never touched them


def test_it_forgets_less_than_naive() -> None:
    stream = forgetful_stream()
    learned, kept, new = accuracies(RIVAL, 1.0, stream)
    plain = accuracies(RIVALS["naive"], None, stream)
    assert min(learned, new, plain[0], plain[2]) > 0.95
    assert kept > plain[1] + 0.1
