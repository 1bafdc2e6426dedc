"""Orthogonal Gradient Descent: steps are kept orthogonal to stored gradients of the outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.methods._layers import layers_of
from benchmarks.methods._passes import sample_rows, task_batches
from benchmarks.methods._steps import ProjectedSteps
from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

# Gradients stored a task, as in the paper's experiments.
VECTORS = 200
# Squared norm, of unit vectors, below which what is new in one is float32's rounding.
_DEPENDENT = 1e-6


@dataclass(frozen=True)
class Stored:
    """Gradients of one layer by factors, n matrices δᵢxᵢᵀ.

    A convolution's gradient, a sum of such products over places, is one row xᵢ of all its entries,
    with δᵢ = 1.

    Attributes:
        x: [n, d].
        delta: [n, out].
    """

    x: Tensor
    delta: Tensor

    @staticmethod
    def of(inputs: Tensor, outputs: Tensor) -> Stored:
        """Return the gradients of samples.

        Args:
            inputs: rows [n, L, d] that the layer's matrix multiplied.
            outputs: gradients at its outputs [n, L, out].

        Returns:
            One gradient a sample.
        """
        if inputs.shape[1] == 1:
            return Stored(inputs[:, 0], outputs[:, 0])
        dense = torch.einsum("nlo,nld->nod", outputs, inputs).flatten(1)
        return Stored(dense, dense.new_ones(len(dense), 1))

    def gram(self, other: Stored) -> Tensor:
        """Return the inner products with other gradients of the same layer, in float64.

        Args:
            other: m gradients.

        Returns:
            [n, m].
        """
        inner = self.x.double() @ other.x.double().T
        return inner * (self.delta.double() @ other.delta.double().T)

    def along(self, move: Tensor) -> Tensor:
        """Return the inner products with a move of the layer's matrix.

        Args:
            move: [out, columns].

        Returns:
            [n].
        """
        matrix = move.reshape(self.delta.shape[1], self.x.shape[1])
        return ((self.x @ matrix.T) * self.delta).sum(1)

    def combined(self, weights: Tensor) -> Tensor:
        """Return a weighted sum of the gradients.

        Args:
            weights: [n].

        Returns:
            As many entries as the layer's matrix has.
        """
        return (self.delta * weights[:, None]).T @ self.x

    def joined(self, other: Stored) -> Stored:
        """Return these gradients and others.

        Args:
            other: of the same layer.

        Returns:
            Both, these first.
        """
        return Stored(torch.cat([self.x, other.x]), torch.cat([self.delta, other.delta]))


class OrthogonalGradients(ProjectedSteps):
    """Orthogonal Gradient Descent that stores gradients of the ground-truth logit (OGD-GTL).

    After each task the gradient of the logit of its own class is taken at some samples, with
    respect to all weights together. What a later gradient has along any of them is removed, so
    that to first order a step changes no logit that was stored.

    Source: Farajtabar, Azizan, Mott and Li 2019, arXiv 1910.07104, algorithm 1. Departures, none
    of which changes the projection but the last:

    - Gradients are kept by their factors, inputs and gradients at the outputs, and the orthonormal
      vectors as combinations ``mixing`` of them. Gram-Schmidt runs on inner products, task by task
      and in float64. The paper keeps the vectors: P floats each, P the number of weights; here
      it is the sum of the layers' widths for each in fully connected layers, and one number for
      each pair of vectors.
    - A vector that earlier ones span, but for a thousandth of its length, is left out.
    - Steps of other optimisers than plain SGD are projected too (``ProjectedSteps``).

    Args:
        count: gradients stored a task, ≥ 1.
        steps: False projects gradients alone, whatever the optimiser.

    Raises:
        OptionError: ``count`` is below 1.
    """

    def __init__(self, count: int = VECTORS, *, steps: bool = True) -> None:
        super().__init__(steps=steps)
        if count < 1:
            raise OptionError(f"count is {count} gradients a task: give at least 1")
        self.count = count
        self.stored: dict[str, Stored] = {}
        self.mixing = torch.empty(0, 0)

    def constrained(self) -> list[str]:
        """Return the layers that gradients are stored of."""
        return list(self.stored)

    def shaped(self, moves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the part that is orthogonal to all stored gradients."""
        products = [stored.along(moves[name]) for name, stored in self.stored.items()]
        weights = self.mixing.T @ (self.mixing @ torch.stack(products).sum(0))
        return {
            name: moves[name] - stored.combined(weights).view_as(moves[name])
            for name, stored in self.stored.items()
        }

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Store gradients of the task just trained.

        Raises:
            OptionError: other layers were used than in earlier tasks.
        """
        fresh = self._gradients(strategy)
        if self.stored and list(fresh) != list(self.stored):
            raise OptionError(
                f"this task used layers {', '.join(fresh)}, earlier ones {', '.join(self.stored)}: "
                "take a network that uses all its layers in every task, such as TaskSlice"
            )
        held = self.mixing.double()
        own = _gram(fresh, fresh)
        scale = own.diagonal().clamp(min=torch.finfo(torch.float32).tiny).rsqrt()
        own = own * scale * scale[:, None]
        along = own.new_zeros(len(own), 0)  # of the unit vectors, on the orthonormal ones
        if self.stored:
            along = scale[:, None] * _gram(fresh, self.stored) @ held.T
        energies, vectors = torch.linalg.eigh(own - along @ along.T)
        new = energies > _DEPENDENT
        fractions = (vectors[:, new] * energies[new].rsqrt()).T
        top = torch.cat([held, held.new_zeros(len(held), len(own))], 1)
        bottom = torch.cat([-fractions @ along @ held, fractions * scale], 1)
        self.mixing = torch.cat([top, bottom]).float()
        self.stored = {
            name: self.stored[name].joined(rows) if self.stored else rows
            for name, rows in fresh.items()
        }

    def _gradients(self, strategy: SupervisedTemplate) -> dict[str, Stored]:
        layers = layers_of(strategy.model)
        (batch,) = task_batches(strategy, self.count, count=self.count)

        def logit(outputs: Tensor) -> Tensor:
            return outputs.gather(1, batch[1][:, None]).sum()

        rows = sample_rows(strategy.model, layers, batch, logit)
        return {name: Stored.of(*both) for name, both in rows.items()}


def _gram(left: dict[str, Stored], right: dict[str, Stored]) -> Tensor:
    return torch.stack([left[name].gram(right[name]) for name in left]).sum(0)


RIVAL = Rival("ogd", None, (), lambda _, __: [OrthogonalGradients()])
