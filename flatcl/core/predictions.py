"""A network's predictions: what pseudo-inputs are grouped by, and what they are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatcl.core.gradients import Forward, evaluation_mode, outputs_of

_BATCH = 128  # inputs a forward pass
_LEAST = -1e4  # of log p


def log_predictions(outputs: Tensor) -> Tensor:
    """Return log p of a softmax, or of a sigmoid where there is a single output.

    Args:
        outputs: [..., C], logits; C = 1 is the logit of one class of two.

    Returns:
        [..., C], or [..., 2], in float32 at least. Bounded below, so that an output that a network
        masks by −∞ counts as none: 0 · log 0 = 0.
    """
    wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if wide.shape[-1] == 1:
        wide = torch.cat([wide, torch.zeros_like(wide)], dim=-1)
    return wide.log_softmax(-1).clamp_min(_LEAST)


def predictions_at(model: nn.Module, forward: Forward, parts: Sequence[Tensor]) -> Tensor:
    """Return the present predictions at some inputs, in evaluation mode and without gradients.

    Args:
        model: the network, whose modes are left as they are.
        forward: from a batch to outputs [..., C].
        parts: a batch of any length, inputs first.

    Returns:
        log p [n, …, C].
    """
    pieces = zip(*(torch.split(part, _BATCH) for part in parts), strict=True)
    with evaluation_mode(model), torch.no_grad():
        return torch.cat([log_predictions(outputs_of(forward, piece)) for piece in pieces])
