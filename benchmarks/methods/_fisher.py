"""The diagonal of the Fisher information, from the gradient of every single sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.methods._weights import flat, trainable
from flatcl.core.gradients import evaluation_mode
from flatcl.errors import NonFiniteError, OptionError
from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.models import avalanche_forward  # noqa: E402

_CHUNK = 100  # samples at a time; per-sample gradients of a convolution are held for so many

Directions = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""From probabilities [n, C] and labels [n] to gradients of a log-likelihood by logits [n, C]."""

_Layer: TypeAlias = nn.Linear | nn.Conv2d
_Calls: TypeAlias = dict[_Layer, tuple[Tensor, Tensor]]


def exact(probabilities: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield ``√p_c · (e_c − p)`` for every class c: the squares sum to the expectation over c.

    Args:
        probabilities: p [n, C].
        labels: unused.

    Yields:
        One tensor [n, C] a class.
    """
    for label in range(probabilities.shape[1]):
        root = probabilities[:, label : label + 1].sqrt()
        named = torch.zeros_like(probabilities)
        named[:, label] = 1.0
        yield root * (named - probabilities)


def sampled(probabilities: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield ``e_c − p`` with one class c drawn from p for each sample.

    Args:
        probabilities: p [n, C].
        labels: unused.

    Yields:
        One tensor [n, C].
    """
    drawn = torch.multinomial(probabilities, 1).squeeze(1)
    yield from empirical(probabilities, drawn)


def empirical(probabilities: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield ``e_y − p`` with the samples' own labels y.

    Args:
        probabilities: p [n, C].
        labels: y [n].

    Yields:
        One tensor [n, C].
    """
    yield functional.one_hot(labels, probabilities.shape[1]).to(probabilities) - probabilities


def fisher_diagonal(
    model: nn.Module, samples: Sequence[Tensor], directions: Directions, *, chunk: int = _CHUNK
) -> Tensor:
    """Return the mean over samples of the squared gradient of a softmax's log-likelihood.

    In a linear layer the gradient of sample n is δ_n a_nᵀ, so that the squares of all samples sum
    to one matrix product, (δ²)ᵀ a²; in a convolution, or where a linear layer sees several
    positions, the gradients are made for a chunk of samples. The model is in evaluation mode
    meanwhile; its ``.grad`` is not touched.

    Args:
        model: a network of ``nn.Linear`` and ``nn.Conv2d`` with parameters nowhere else.
        samples: inputs [n, ...], labels [n], task labels [n].
        directions: which log-likelihood: ``exact``, ``sampled`` or ``empirical``.
        chunk: samples at a time; the result does not depend on it.

    Returns:
        The diagonal [P], in the order of the trainable parameters, (nats/w)².
    """
    layers = _layers(model)
    squares: dict[Tensor, Tensor] = {w: torch.zeros_like(w) for w in trainable(model)}
    device = next(iter(squares)).device
    with evaluation_mode(model), torch.enable_grad():
        for x, y, t in zip(*(torch.split(part, chunk) for part in samples), strict=True):
            with _calls_of(layers) as calls:
                logits = avalanche_forward(model, x.to(device), t)
            _check(logits, layers, calls)
            probabilities = logits.detach().softmax(dim=1)
            _add(squares, logits, calls, directions(probabilities, y.to(device)))
    return flat(squares.values()) / len(samples[1])


def _add(
    squares: dict[Tensor, Tensor], logits: Tensor, calls: _Calls, directions: Iterator[Tensor]
) -> None:
    outputs = [output for _, output in calls.values()]
    sums: dict[_Layer, Tensor] = {}
    columns = {
        layer: _columns(layer, a) for layer, (a, output) in calls.items() if output.dim() > 2
    }
    for direction in directions:
        deltas = torch.autograd.grad(
            logits, outputs, direction, retain_graph=True, allow_unused=True
        )
        for layer, delta in zip(calls, deltas, strict=True):
            if delta is None:
                continue
            if layer in columns:
                _add_positions(squares, layer, columns[layer], delta)
            else:
                sums[layer] = sums.get(layer, torch.zeros_like(delta)) + delta.square()
    for layer, total in sums.items():
        if layer.weight in squares:
            squares[layer.weight] += total.T @ calls[layer][0].square()
        if layer.bias in squares:
            squares[layer.bias] += total.sum(0)


def _columns(layer: _Layer, a: Tensor) -> Tensor:
    """Return what the layer's matrix acts on at every position [n, positions, in]."""
    if isinstance(layer, nn.Conv2d):
        padding = cast("tuple[int, ...]", layer.padding)
        patches = functional.unfold(a, layer.kernel_size, layer.dilation, padding, layer.stride)
        return patches.transpose(1, 2)
    return a.flatten(1, -2)


def _add_positions(
    squares: dict[Tensor, Tensor], layer: _Layer, columns: Tensor, delta: Tensor
) -> None:
    by_position = delta.flatten(2) if isinstance(layer, nn.Conv2d) else delta.flatten(1, -2).mT
    if layer.weight in squares:
        gradients = torch.bmm(by_position, columns)
        squares[layer.weight] += gradients.square_().sum(0).view_as(layer.weight)
    if layer.bias in squares:
        squares[layer.bias] += by_position.sum(2).square_().sum(0)


def _layers(model: nn.Module) -> list[_Layer]:
    """Return the layers that have trainable parameters, or raise where one is not supported."""
    layers: list[_Layer] = []
    met: set[nn.Parameter] = set()
    for name, layer in model.named_modules():
        own = [weight for weight in layer.parameters(recurse=False) if weight.requires_grad]
        plain = type(layer) is nn.Linear or (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
        if own and not plain:
            raise OptionError(
                f"the Fisher diagonal of layer {name or 'model'!r} is not supported ({layer}): "
                "take nn.Linear and plain nn.Conv2d, or freeze it"
            )
        if met.intersection(own):
            raise OptionError(f"layer {name!r} shares a weight with another one: untie them")
        met.update(own)
        layers += [cast("_Layer", layer)] if own else []
    if not layers:
        raise OptionError("the network has no trainable parameter")
    return layers


@contextmanager
def _calls_of(layers: Sequence[_Layer]) -> Iterator[_Calls]:
    """Yield what each layer is called with and answers, filled in while the context lasts."""
    calls: _Calls = {}

    def keep(layer: _Layer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer in calls:
            raise OptionError(f"{layer} is called twice in one pass: give each place its own layer")
        calls[layer] = inputs[0].detach(), output
        return output.clone()  # an in-place activation overwrites the clone

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _check(logits: Tensor, layers: Sequence[_Layer], calls: _Calls) -> None:
    """Raise if a pass is not finite, mixes samples, or hides the use of a layer's weights."""
    if not torch.isfinite(logits).all():
        raise NonFiniteError("the network's outputs are not finite: lower lr or λ")
    for layer, (a, _) in calls.items():
        if len(a) != len(logits):
            raise OptionError(f"{layer} mixes samples: their gradients cannot be told apart")
    idle = [w for layer in layers if layer not in calls for w in layer.parameters()]
    idle = [weight for weight in idle if weight.requires_grad]
    if not idle:
        return
    found = torch.autograd.grad(logits.sum(), idle, retain_graph=True, allow_unused=True)
    if any(gradient is not None for gradient in found):
        raise OptionError("a layer's weights are used without calling the layer: call it")
