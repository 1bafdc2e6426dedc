"""A pretrained model as task zero: its constraint from data alone, without training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from flatcl.core.engine import Landscape
from flatcl.core.gradients import Forward
from flatcl.core.options import LDCOptions


def fit(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor] | Tensor],
    *,
    optimizer: Optimizer,
    options: LDCOptions | None = None,
    forward: Forward | None = None,
) -> Landscape:
    """Return a landscape that holds what a pretrained model can do, as task zero.

    Args:
        model: at its pretrained weights, which become the anchor.
        batches: inputs of what it can do, in random order, each a tensor or a sequence
            (inputs, …) as ``forward`` takes it; no targets are needed.
        optimizer: the one that will train it on.
        options: see ``LDCOptions``; None for the defaults.
        forward: from a batch (its tensors) to outputs [..., C]; None for ``model(batch[0])``.

    Returns:
        The landscape, ready for ``begin_task``.
    """
    landscape = Landscape(model, optimizer, options=options, forward=forward)
    landscape.fit(batches)
    return landscape
