"""Losses, one number a sample."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from flatcl.errors import DataError

_LINEAR = 40.0  # nats

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs [n, ...] and targets [n, ...] to one loss a sample, [n], nats."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's cross-entropy, ln(1 + Σ exp(z_j − z_y)) over the other classes j.

    Torch's takes z_y from ln Σ exp z_j, which loses a loss of e⁻³⁷ below its last bit: no factor of
    0 means anything, and a task learned so well would have no flatness.

    Args:
        outputs: logits [n, C].
        targets: classes [n].

    Returns:
        [n], nats; 0 from margins of some 740 on in double precision, 100 in single.
    """
    own = targets.unsqueeze(1)
    others = (outputs - outputs.gather(1, own)).scatter(1, own, -math.inf)
    # Up to the threshold softplus is ln(1 + eˣ), above it x: the same in double precision.
    return functional.softplus(others.logsumexp(1), threshold=_LINEAR)


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
