"""A-GEM: the projection in closed form, the step that uses it, and the memory's shares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blobs import (
    INPUTS,
    SAMPLES,
    build,
    common,
    data_of,
    flat,
    network,
)
from digits import final_accuracy, naive_accuracy
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.methods.agem import AGEM, RIVAL, project
from flatcl.rivals import bytes_held
from flatcl.streams import Stream


def test_projection_in_closed_form(generator: torch.Generator) -> None:
    g, r = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    r = r if float(g @ r) < 0 else -r
    found = project(g, r)
    torch.testing.assert_close(found, g - (g @ r) / (r @ r) * r, rtol=1e-12, atol=0)
    assert float(found @ r) == pytest.approx(0, abs=1e-12)
    # the nearest of all that keep the constraint: the least squares over the complement of r
    complement = torch.linalg.svd(r[None]).Vh[1:].T
    nearest = complement @ torch.linalg.lstsq(complement, g[:, None]).solution
    torch.testing.assert_close(found, nearest[:, 0], rtol=1e-10, atol=1e-12)
    assert project(g, -r) is g
    assert project(g, torch.zeros_like(g)) is g


def in_step(model: nn.Module, batch: int) -> Any:
    return SimpleNamespace(
        model=model,
        mb_y=torch.zeros(batch),
        device=torch.device("cpu"),
        _criterion=nn.CrossEntropyLoss(),
        experience=None,
    )


def remembering(model: nn.Module, stream: Stream, memory: int = 10) -> AGEM:
    plugin = AGEM(memory)
    strategy = in_step(model, SAMPLES)
    strategy.experience = stream.benchmark.train_stream[0]
    plugin.after_training_exp(strategy)
    return plugin


def reference_of(plugin: AGEM, model: nn.Module) -> list[Tensor]:
    x, y, _ = plugin.samples
    return list(
        torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    )


def test_a_step_against_the_memory_is_projected(stream: Stream) -> None:
    model = network()
    plugin = remembering(model, stream)
    x, y = data_of(stream)
    functional.cross_entropy(model(x), 1 - y).backward()  # unlearns
    before = torch.cat([w.grad.flatten() for w in model.parameters()])  # type: ignore[union-attr]
    reference = torch.cat([g.flatten() for g in reference_of(plugin, model)])
    assert float(before @ reference) < 0
    plugin.after_backward(in_step(model, SAMPLES))  # draws the whole memory
    found = torch.cat([w.grad.flatten() for w in model.parameters()])  # type: ignore[union-attr]
    expected = before - (before @ reference) / (reference @ reference) * reference
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert float(found @ reference) == pytest.approx(0, abs=1e-6)


def test_a_step_with_the_memory_is_left_bit_for_bit(stream: Stream) -> None:
    model = network()
    plugin = remembering(model, stream)
    x, y, _ = plugin.samples
    functional.cross_entropy(model(x), y).backward()
    before = [w.grad.clone() for w in model.parameters()]  # type: ignore[union-attr]
    plugin.after_backward(in_step(model, SAMPLES))
    for weight, gradient in zip(model.parameters(), before, strict=True):
        assert weight.grad is not None
        assert torch.equal(weight.grad, gradient)


def test_weights_that_the_loss_does_not_reach_take_part(stream: Stream) -> None:
    model = network()
    model.get_parameter("2.weight").requires_grad_(False)
    plugin = remembering(model, stream)
    bias = model.get_parameter("2.bias")
    x, y, _ = plugin.samples
    free = [w for w in model.parameters() if w.requires_grad]
    reference = torch.autograd.grad(functional.cross_entropy(model(x), y), free)
    bias.grad = -reference[-1].clone()  # the others have none
    square = sum(float(r.square().sum()) for r in reference)
    share = float(reference[-1].square().sum()) / square
    plugin.after_backward(in_step(model, SAMPLES))
    assert model.get_parameter("2.weight").grad is None
    for weight, r in zip(free[:-1], reference[:-1], strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, share * r, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(bias.grad, (share - 1) * reference[-1], rtol=1e-4, atol=1e-7)


def test_the_reference_is_drawn_anew_with_the_batch_size(stream: Stream) -> None:
    class Remember(nn.Linear):
        def __init__(self) -> None:
            super().__init__(INPUTS, 2)
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            return super().forward(x)

    model = Remember()
    plugin = remembering(model, stream, memory=20)
    for _ in range(2):
        plugin.after_backward(in_step(model, 8))
    first, second = model.seen
    assert len(first) == len(second) == len(torch.unique(first, dim=0)) == 8
    assert not torch.equal(first, second)
    rows = {tuple(row.tolist()) for row in plugin.samples[0]}
    assert all(tuple(row.tolist()) in rows for row in torch.cat([first, second]))


@pytest.mark.parametrize(
    ("memory", "tasks", "shares"),
    [(10, 1, [10]), (10, 3, [4, 3, 3]), (10, 4, [3, 3, 2, 2]), (3, 5, [1, 1, 1, 0, 0])],
)
def test_shares_of_the_memory(memory: int, tasks: int, shares: list[int], stream: Stream) -> None:
    plugin, strategy = AGEM(memory), in_step(network(), SAMPLES)
    for task in range(tasks):
        strategy.experience = stream.benchmark.train_stream[task % 2]
        plugin.after_training_exp(strategy)
        assert sum(plugin.counts) == memory == len(plugin.samples[0]) == len(plugin.samples[1])
    assert plugin.counts == shares
    for task, part in enumerate(torch.split(plugin.samples[0], plugin.counts)):
        own = {tuple(row.tolist()) for row in data_of(stream, task % 2)[0]}
        assert all(tuple(row.tolist()) in own for row in part)
    assert plugin.samples[0].untyped_storage().nbytes() == memory * INPUTS * 4


def test_a_task_smaller_than_its_share_gives_all_it_has(stream: Stream) -> None:
    plugin = remembering(network(), stream, memory=1000)
    assert plugin.counts == [SAMPLES]


def test_the_first_task_is_naive_and_a_conflict_in_the_second_is_felt(stream: Stream) -> None:
    first, second = stream.benchmark.train_stream
    model, plain = network(), network()
    strategy, naive = RIVAL.build(None, memory=12, **common(model)), build("naive", plain)
    for each in (strategy, naive):
        each.train(first, eval_streams=[])
    assert torch.equal(flat(model), flat(plain))
    (plugin,) = [p for p in strategy.plugins if isinstance(p, AGEM)]
    x, y, t = plugin.samples
    plugin.samples = x, 1 - y, t  # the two tasks of the stream themselves agree
    for each in (strategy, naive):
        each.train(second, eval_streams=[])
    assert not torch.allclose(flat(model), flat(plain), rtol=0, atol=1e-3)
    assert bytes_held(strategy) == 12 * (4 * INPUTS + 8 + 8)  # input, label, task label
    assert RIVAL.stores_data


def test_it_forgets_less_than_naive_on_permuted_digits() -> None:
    assert final_accuracy(RIVAL) > naive_accuracy() + 0.1
