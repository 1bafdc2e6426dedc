"""OGD against dense gradients, and what its projection promises."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blobs import CLASSES, INPUTS, blob_stream, build, flat, network, plugged, train
from blobs import trained as naive_weights
from digit_streams import digits, network_for, run
from torch import Tensor, nn

from benchmarks.methods._layers import layers_of, to_matrix, trainable
from benchmarks.methods.ogd import RIVAL, VECTORS, OrthogonalGradients
from flatcl.errors import OptionError
from flatcl.footprint import bytes_held
from flatcl.rivals import RIVALS
from flatcl.streams import Stream

from avalanche.models import avalanche_forward  # isort: skip


def joint(model: nn.Module, tensors: list[Tensor]) -> Tensor:
    """Return values of the trainable parameters in the order of the plugin's matrices."""
    names = {id(p): t for p, t in zip(model.parameters(), tensors, strict=True)}
    parts = [to_matrix([names[id(p)] for p in trainable(x)]) for x in layers_of(model).values()]
    return torch.cat([part.flatten() for part in parts])


def gradient_of(model: nn.Module) -> Tensor:
    return joint(model, [p.grad.clone() for p in model.parameters() if p.grad is not None])


def vectors(plugin: OrthogonalGradients) -> Tensor:
    """Return the stored orthonormal vectors, dense."""
    n = plugin.mixing.shape[1]
    each = [
        torch.cat([s.combined(one).flatten() for s in plugin.stored.values()])
        for one in torch.eye(n)
    ]
    return plugin.mixing @ torch.stack(each)


class Spy(OrthogonalGradients):
    """Remembers the batches that it stored gradients of."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.seen: list[list[Tensor]] = []

    def _gradients(self, strategy: Any) -> Any:
        state = torch.get_rng_state()
        dataset = strategy.experience.dataset
        self.seen.append(dataset.batch(torch.randperm(len(dataset))[: self.count]))
        torch.set_rng_state(state)
        return super()._gradients(strategy)


def dense(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Return the gradient of each sample's own logit, by autograd, sample by sample."""
    x, y, labels = batch
    rows = []
    for i in range(len(x)):
        logit = avalanche_forward(model, x[i : i + 1], labels[i : i + 1])[0, y[i]]
        rows.append(joint(model, list(torch.autograd.grad(logit, list(model.parameters())))))
    return torch.stack(rows)


def told() -> tuple[nn.Module, Stream]:
    stream = digits("split-task", 5)
    return network_for(stream, hidden=(6,)), stream


def convolutional() -> tuple[nn.Module, Stream]:
    stream = digits("permuted", 3)
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(4), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(12, 10)), stream


@pytest.mark.parametrize("make", [lambda: (network(), blob_stream()), told, convolutional])
def test_the_vectors_are_orthonormal_and_span_the_gradients_of_all_tasks(make: Any) -> None:
    model, stream = make()
    plugin = Spy(7)
    strategy = plugged(plugin, model)
    gradients = []
    for experience in list(stream.benchmark.train_stream)[:2]:
        strategy.train(experience, eval_streams=[])
        gradients.append(dense(model, plugin.seen[-1]))
    found = vectors(plugin)
    torch.testing.assert_close(found @ found.T, torch.eye(len(found)), rtol=0, atol=1e-4)
    oracle = torch.cat(gradients).double()
    oracle = oracle / oracle.norm(dim=1, keepdim=True)
    left = oracle - (oracle @ found.double().T) @ found.double()
    assert left.norm(dim=1).max() < 2e-3
    assert len(found) <= torch.linalg.matrix_rank(oracle, rtol=1e-5)  # and nothing else
    assert len(found) > 7


def test_the_projection_is_the_dense_one(stream: Stream) -> None:
    model = network()
    plugin = OrthogonalGradients(20)
    strategy = plugged(plugin, model)
    train(strategy, stream)
    basis = torch.linalg.qr(vectors(plugin).double().T)[0]
    assert 5 < basis.shape[1] < len(basis)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    before = gradient_of(model).double()
    plugin.before_update(strategy)
    after = gradient_of(model).double()
    # nearly dependent vectors are combined with weights up to 1000, in float32
    torch.testing.assert_close(after, before - basis @ (basis.T @ before), rtol=0, atol=1e-4)
    assert (basis.T @ after).norm() < 1e-4 * before.norm()


def test_a_step_leaves_stored_logits_to_first_order(stream: Stream) -> None:
    model = network()
    plugin = Spy(10)
    train(plugged(plugin, model), stream, tasks=1)
    x, y, _ = plugin.seen[0]
    logits = model(x).gather(1, y[:, None]).detach()
    weights = flat(model)
    other = torch.randn(30, INPUTS, generator=torch.Generator().manual_seed(3))
    changes = []
    for projected in (True, False):
        nn.utils.vector_to_parameters(weights, model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(other), torch.arange(30) % CLASSES).backward()
        if projected:
            plain = gradient_of(model).norm()
            plugin.before_update(SimpleNamespace(model=model, optimizer=optimizer))
            assert 0.03 < gradient_of(model).norm() / plain < 0.99
        optimizer.step()
        changes.append(float((model(x).gather(1, y[:, None]).detach() - logits).norm()))
    assert changes[1] > 1e-2
    assert changes[0] < 1e-2 * changes[1]


def test_steps_of_adam_are_projected_too(stream: Stream) -> None:
    along = []
    for steps in (True, False):
        model = network()
        plugin = OrthogonalGradients(5, steps=steps)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        strategy = plugged(plugin, model, optimizer=optimizer)
        train(strategy, stream, tasks=1)
        before = joint(model, [p.detach().clone() for p in model.parameters()])
        plugin.after_training_exp = lambda *_: None  # type: ignore[method-assign]
        strategy.train(stream.benchmark.train_stream[1], eval_streams=[])
        step = joint(model, [p.detach() for p in model.parameters()]) - before
        assert step.norm() > 1e-2
        along.append(float((vectors(plugin) @ step).norm() / step.norm()))
    assert along[0] < 1e-4
    assert along[1] > 1e-2


def test_it_differs_from_naive_from_the_second_task_on(stream: Stream) -> None:
    models = network(), network()
    train(plugged(OrthogonalGradients(), models[0]), stream, tasks=1)
    train(build("naive", models[1]), stream, tasks=1)
    assert torch.equal(flat(models[0]), flat(models[1]))
    model = network()
    train(plugged(OrthogonalGradients(), model), stream)
    assert not torch.allclose(flat(model), naive_weights("naive", stream), rtol=0, atol=1e-4)


def test_modes_come_back_and_frozen_parameters_are_left_out(stream: Stream) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    plugin = OrthogonalGradients(9)
    strategy = plugged(plugin, model)
    strategy.experience = stream.benchmark.train_stream[0]
    plugin.after_training_exp(strategy)
    assert [module.training for module in model] == [True, False, True]
    assert plugin.stored["0"].x.shape == (9, 1)  # the bias alone
    assert all(p.grad is None for p in model.parameters())
    columns = 1 + 5 + (5 + 1) + CLASSES
    assert bytes_held(strategy) == 4 * (9 * columns + plugin.mixing.numel())


def test_it_forgets_less_than_naive() -> None:
    stream = digits()
    naive, _ = run(RIVALS["naive"], None, stream, network_for(stream))
    ours, learnt = run(RIVAL, None, stream, network_for(stream))
    assert ours > naive + 0.05
    assert learnt - ours < 0.1


def test_a_layer_used_twice_is_refused(stream: Stream) -> None:
    torch.manual_seed(0)
    square = nn.Linear(INPUTS, INPUTS)
    model = nn.Sequential(square, nn.ReLU(), square)
    with pytest.raises(OptionError, match=r"^layer '0' is used twice: give each use a layer"):
        train(plugged(OrthogonalGradients(), model), stream, tasks=1)


def test_a_bad_count_is_refused() -> None:
    assert VECTORS == 200
    with pytest.raises(OptionError, match=r"^count is 0 gradients a task: give at least 1$"):
        OrthogonalGradients(0)
