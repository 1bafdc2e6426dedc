"""Losses, one number a sample."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from flatcl.errors import DataError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs [n, ...] and targets [n, ...] to one loss a sample, [n], nats."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's cross-entropy.

    Args:
        outputs: logits [n, C].
        targets: classes [n].

    Returns:
        [n], nats.
    """
    return functional.cross_entropy(outputs, targets, reduction="none")


def ask_one_a_sample(losses: Tensor, samples: int) -> None:
    """Refuse a loss that is averaged, or has more than one number a sample.

    Args:
        losses: what a loss gave.
        samples: n.

    Raises:
        DataError: their shape is not [n].
    """
    if losses.shape != (samples,):
        raise DataError(
            f"the loss has shape {tuple(losses.shape)} for {samples} samples; it must give one "
            "number a sample, as reduction='none' does"
        )
