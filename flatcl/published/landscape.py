"""A landscape that holds nothing but LDC as published."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from flatcl.core.engine import Landscape
from flatcl.core.gradients import Forward
from flatcl.fluctuations import cross_entropy
from flatcl.fluctuations.surface import Loss
from flatcl.published.constraint import PublishedLDC
from flatcl.published.options import PublishedOptions


class PublishedLandscape(Landscape):
    """``Landscape`` with LDC as published in place of the units' own constraints.

    Used as ``Landscape`` is; ``end_task`` needs batches (inputs, targets, …).

    Args:
        model: the network.
        optimizer: the one that trains it.
        options: of the published form; None for the defaults.
        forward: from a batch to outputs; None for ``model(batch[0])``.
        loss: from outputs and targets to one loss a sample [n].
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        options: PublishedOptions | None = None,
        forward: Forward | None = None,
        loss: Loss = cross_entropy,
    ) -> None:
        chosen = options or PublishedOptions()
        super().__init__(
            model,
            optimizer,
            options=chosen.of_landscape(),
            forward=forward,
            network=PublishedLDC(chosen, loss=loss),
        )
