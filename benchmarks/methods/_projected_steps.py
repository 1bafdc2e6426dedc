"""Rivals that allow steps in some directions alone, whatever the optimiser makes of a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.methods._layers import from_matrix, to_matrix, trainable
from flatcl.host import ensure_avalanche

ensure_avalanche()
from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class ProjectedSteps(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
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
        self.starts: dict[str, Tensor] = {}

    def constrained(self) -> Sequence[str]:
        """Return the names of the layers whose steps are constrained.

        Returns:
            Names; none before the first task has ended.
        """
        raise NotImplementedError

    def projected(self, moves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is allowed of a joint move of the layers' matrices.

        Args:
            moves: of the constrained layers by name, [out, columns]; not changed.

        Returns:
            The same for its allowed part.
        """
        raise NotImplementedError

    @torch.no_grad()
    def before_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Project the gradients; keep the weights that other than plain SGD starts from."""
        parameters = self._parameters(strategy)
        if not parameters:
            return
        gradients = {
            name: to_matrix([torch.zeros_like(p) if p.grad is None else p.grad for p in own])
            for name, own in parameters.items()
        }
        for name, gradient in self.projected(gradients).items():
            own = parameters[name]
            for p, part in zip(own, from_matrix(gradient, own), strict=True):
                if p.grad is not None:
                    p.grad.copy_(part)
        if self.steps and not _plain(strategy.optimizer):
            self.starts = {name: to_matrix(own) for name, own in parameters.items()}

    @torch.no_grad()
    def after_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Project the step of an optimiser that may have left the subspace."""
        if not self.starts:
            return
        parameters = self._parameters(strategy)
        steps = {name: to_matrix(own) - self.starts[name] for name, own in parameters.items()}
        for name, step in self.projected(steps).items():
            own = parameters[name]
            for p, part in zip(own, from_matrix(self.starts[name] + step, own), strict=True):
                p.copy_(part)
        self.starts = {}

    def _parameters(self, strategy: SupervisedTemplate) -> dict[str, list[Tensor]]:
        model = strategy.model
        return {name: trainable(model.get_submodule(name)) for name in self.constrained()}


def _plain(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer) is torch.optim.SGD and not any(
        group["momentum"] or group["weight_decay"] for group in optimizer.param_groups
    )
