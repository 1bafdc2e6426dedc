"""The Fisher information from the gradient of every single sample: its diagonal, its factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.methods._layers import (
    Layer,
    from_matrix,
    layers_of,
    matrix_of,
    output_rows,
    trainable,
)
from benchmarks.methods._passes import layer_calls, sample_rows, task_batches
from benchmarks.methods._weights import flat
from flatcl.core.gradients import evaluation_mode

_CHUNK = 100  # samples at a time; per-sample gradients of a convolution are held for so many
_BATCH = 256  # samples a backward pass of the factors; sums do not depend on it

Directions = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""From probabilities [n, C] and labels [n] to gradients of a log-likelihood by logits [n, C]."""


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
    places, the gradients are made for a chunk of samples. The model is in evaluation mode
    meanwhile; its ``.grad`` is not touched.

    Args:
        model: a network that ``layer_calls`` takes.
        samples: inputs [n, ...], labels [n], task labels [n], on the model's device.
        directions: which log-likelihood: ``exact``, ``sampled`` or ``empirical``.
        chunk: samples at a time; the result does not depend on it.

    Returns:
        The diagonal [P], in the order of the trainable parameters, (nats/w)².
    """
    layers = layers_of(model)
    squares = {name: torch.zeros_like(matrix_of(layer)) for name, layer in layers.items()}
    with evaluation_mode(model), torch.enable_grad():
        for batch in zip(*(torch.split(part, chunk) for part in samples), strict=True):
            logits, calls = layer_calls(model, layers, batch)
            probabilities = logits.detach().softmax(dim=1)
            _add(squares, layers, logits, calls, directions(probabilities, batch[1]))
    diagonal: dict[Tensor, Tensor] = {}
    for name, layer in layers.items():
        own = trainable(layer)
        diagonal |= zip(own, from_matrix(squares[name], own), strict=True)
    return flat(diagonal[w] for w in model.parameters() if w in diagonal) / len(samples[1])


def _add(
    squares: dict[str, Tensor],
    layers: Mapping[str, Layer],
    logits: Tensor,
    calls: dict[str, tuple[Tensor, Tensor]],
    directions: Iterator[Tensor],
) -> None:
    outputs = [output for _, output in calls.values()]
    sums: dict[str, Tensor] = {}  # of δ² over directions, where there is one place
    for direction in directions:
        gradients = torch.autograd.grad(
            logits, outputs, direction, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for (name, (rows, _)), gradient in zip(calls.items(), gradients, strict=True):
            delta = output_rows(layers[name], gradient)
            if rows.shape[1] == 1:
                square = delta[:, 0].square()
                sums[name] = sums[name] + square if name in sums else square
            else:
                squares[name] += torch.bmm(delta.mT, rows).square_().sum(0)
    for name, total in sums.items():
        squares[name] += total.T @ calls[name][0][:, 0].square()


def kronecker_factors(
    strategy: Any, layers: Mapping[str, Layer]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each layer's Fisher information, summed over the task's samples, as two factors.

    The Fisher matrix of a layer's weights W [out, columns] is approximated by G ⊗ A, with a the
    layer's inputs and g the gradients at its outputs of −log p(label), the labels drawn from the
    network's own p. In a convolution A sums over places and G is the mean over them.

    Source: Martens and Grosse 2015, arXiv 1503.05671; for convolutions Grosse and Martens 2016,
    arXiv 1602.01407.

    Args:
        strategy: an Avalanche strategy in ``after_training_exp``.
        layers: of its model.

    Returns:
        By name, without the layers that were not used, G, the mean of ggᵀ [out, out], and A,
        Σ aaᵀ over the samples [columns, columns], both in float64.
    """
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    counts: dict[str, int] = {}
    for batch in task_batches(strategy, _BATCH):
        for name, both in sample_rows(strategy.model, layers, batch, _drawn_loss).items():
            a, g = (rows.flatten(0, 1).double() for rows in both)
            own = g.T @ g, a.T @ a
            held = sums.get(name)
            sums[name] = own if held is None else (held[0] + own[0], held[1] + own[1])
            counts[name] = counts.get(name, 0) + len(g)
    return {name: (G / counts[name], A) for name, (G, A) in sums.items()}


def _drawn_loss(logits: Tensor) -> Tensor:
    labels = torch.multinomial(logits.detach().softmax(1), 1).squeeze(1)
    return functional.cross_entropy(logits, labels, reduction="sum")
