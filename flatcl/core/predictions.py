"""A network's predictions: what pseudo-inputs are grouped by, and what they are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from flatcl.core.gradients import Forward, evaluation_mode, outputs_of

FLOATS = 2**22  # of the predictions of one forward pass, at most
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


def predictions_at(
    model: nn.Module,
    forward: Forward,
    parts: Sequence[Tensor],
    *,
    floats: int = 1,
    each: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the present predictions at some inputs, in evaluation mode and without gradients.

    Args:
        model: the network, whose modes are left as they are.
        forward: from a batch to outputs [..., C].
        parts: a batch of any length, inputs first.
        floats: of the predictions at one input, where they may be many; see ``floats_an_input``.
        each: what is kept of the log p [b, …, C] of one forward pass; None for all.

    Returns:
        log p [n, …, C], or what ``each`` makes of it.
    """
    rows = max(1, min(_BATCH, FLOATS // floats))
    pieces = zip(*(torch.split(part, rows) for part in parts), strict=True)
    with evaluation_mode(model), torch.no_grad():
        found = (log_predictions(outputs_of(forward, piece)) for piece in pieces)
        return torch.cat([f if each is None else each(f) for f in found])


def own_random_states(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context after which the random states are as before: for a trial pass.

    Args:
        model: the network, whose devices' states they are beside the CPU's.

    Returns:
        The context.
    """
    devices = {p.device.index or 0 for p in model.parameters() if p.is_cuda}
    return torch.random.fork_rng(devices=sorted(devices))


def floats_an_input(model: nn.Module, forward: Forward, parts: Sequence[Tensor]) -> int:
    """Return by trial how many floats the predictions at one input are.

    Args:
        model: the network; its modes and the random states are left as they are.
        forward: from a batch to outputs [..., C].
        parts: a few inputs, with the batch's other parts.

    Returns:
        The number, ≥ 1.
    """
    with own_random_states(model):
        return max(1, predictions_at(model, forward, parts).numel() // len(parts[0]))
