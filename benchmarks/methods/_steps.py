"""Rivals that allow steps in some directions more than in others, whatever the optimiser is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.methods._layers import Layer, assign_, from_matrix, matrix_of, to_matrix, trainable
from flatcl.host import ensure_avalanche

ensure_avalanche()
from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class ShapedSteps(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """A plugin that reshapes the optimiser's step: W becomes W₀ + shaped(W − W₀), W₀ before it."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: dict[str, Tensor] = {}

    def constrained(self) -> Sequence[str]:
        """Return the names of the layers whose steps are reshaped.

        Returns:
            Names; none before the first task has ended.
        """
        raise NotImplementedError

    def shaped(self, moves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what becomes of a joint move of the layers' matrices.

        Args:
            moves: of the constrained layers by name, [out, columns]; not changed.

        Returns:
            The moves to make instead.
        """
        raise NotImplementedError

    @torch.no_grad()
    def before_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Keep the weights that the step starts from."""
        self.starts = {name: matrix_of(layer) for name, layer in self._layers(strategy).items()}

    @torch.no_grad()
    def after_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Reshape the step."""
        if not self.starts:
            return
        layers, starts = self._layers(strategy), self.starts
        moves = {name: matrix_of(layer) - starts[name] for name, layer in layers.items()}
        for name, move in self.shaped(moves).items():
            assign_(layers[name], starts[name] + move)
        self.starts = {}

    def _layers(self, strategy: SupervisedTemplate) -> dict[str, Layer]:
        layers = {name: strategy.model.get_submodule(name) for name in self.constrained()}
        return {name: layer for name, layer in layers.items() if trainable(layer)}


class ProjectedSteps(ShapedSteps):
    """A plugin that projects gradients before the optimiser's step, and steps after it.

    Momentum, weight decay and Adam's division leave the subspace that the gradient lies in. Papers
    that project gradients train with plain SGD, where both are the same; so under any other
    optimiser its step is projected too, which is what their methods are for.

    Args:
        steps: False projects gradients alone.
    """

    def __init__(self, *, steps: bool = True) -> None:
        super().__init__()
        self.steps = steps

    @torch.no_grad()
    def before_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Project the gradients; keep the weights that other than plain SGD starts from."""
        parameters = {name: trainable(layer) for name, layer in self._layers(strategy).items()}
        if not parameters:
            return
        gradients = {
            name: to_matrix([torch.zeros_like(p) if p.grad is None else p.grad for p in own])
            for name, own in parameters.items()
        }
        for name, gradient in self.shaped(gradients).items():
            own = parameters[name]
            for p, part in zip(own, from_matrix(gradient, own), strict=True):
                if p.grad is not None:
                    p.grad.copy_(part)
        if self.steps and not _plain(strategy.optimizer):
            super().before_update(strategy)


def _plain(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer) is torch.optim.SGD and not any(
        group["momentum"] or group["weight_decay"] for group in optimizer.param_groups
    )
