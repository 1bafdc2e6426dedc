"""A network's trainable weights as one vector, and a quadratic penalty on their moves."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen.

    Args:
        model: any network.

    Returns:
        The parameters, in the order of ``model.parameters()``.
    """
    return [weight for weight in model.parameters() if weight.requires_grad]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors as one vector in memory of its own.

    Args:
        tensors: at least one.

    Returns:
        Their elements in order [P].
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def weights_of(model: nn.Module) -> Tensor:
    """Return a copy of the trainable weights.

    Args:
        model: any network.

    Returns:
        The weights [P], without a graph.
    """
    return flat(trainable(model)).detach()


def gradient_of(model: nn.Module) -> Tensor:
    """Return a copy of the trainable weights' gradients.

    Args:
        model: after a backward pass.

    Returns:
        The gradients [P]; 0 where the loss does not depend on a weight.
    """
    return flat(torch.zeros_like(w) if w.grad is None else w.grad for w in trainable(model))


class QuadraticPenalty(SupervisedPlugin):
    """Adds ``factor · Σ importance · (w − anchor)²`` to the loss once there is an anchor.

    Attributes:
        factor: ≥ 0, nats/w².
        anchor: weights [P] that are held; None before the first task has ended.
        importance: of each weight [P], ≥ 0; None for 1 throughout.

    Args:
        factor: of the penalty.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.anchor: Tensor | None = None
        self.importance: Tensor | None = None

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the penalty to ``strategy.loss``.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.

        Raises:
            OptionError: the network has not the number of trainable weights that it had.
        """
        if self.anchor is None:
            return
        weights = flat(trainable(strategy.model))
        if weights.shape != self.anchor.shape:
            raise OptionError(
                f"the network has {len(weights)} trainable weights where it had "
                f"{len(self.anchor)}: neither let it grow nor freeze layers between tasks"
            )
        moved = weights - self.anchor
        weighted = moved if self.importance is None else self.importance * moved
        strategy.loss = strategy.loss + self.factor * (weighted @ moved)
