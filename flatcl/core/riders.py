"""Inputs that ride along with a training batch: one pass of the network in place of two.

A pass over a few inputs costs far more than their share of a batch, since every weight is read for
it and every gradient added once more. Where a network treats the rows of a batch each by itself and
alike in training and evaluation (no batch statistics, no dropout), further rows change nothing for
the batch. Two hooks, alive for one pass only, append them to the network's arguments and cut their
outputs off again, so that neither the training loop nor anything in it sees them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatcl.core.gradients import Forward, evaluation_mode, outputs_of
from flatcl.core.predictions import own_random_states

_CLOSE = 1e-3  # of a row's outputs in another batch, relative to the largest: kernels differ


class Ride:
    """A context in which the first training pass of the network carries riders.

    A pass in evaluation mode, without gradients, with arguments by keyword or with such as do not
    fit is left as it is.

    Args:
        model: the network, called with inputs [B, …] alone or with task labels after them.
        riders: parts of a batch, inputs first; where there are three or more, task labels last.
        arguments: how many the pass must have, 1 or 2, to take the riders; 0 for either.

    Attributes:
        outputs: of the riders, [n, …]; None if they could not ride.
        arguments: how many the pass with the riders had, or must have.
    """

    def __init__(self, model: nn.Module, riders: Sequence[Tensor], arguments: int = 0) -> None:
        self.model, self.riders, self.arguments = model, riders, arguments
        self.outputs: Tensor | None = None
        self._aboard = 0

    def __enter__(self) -> Ride:
        """Wait for the pass.

        Returns:
            Itself.
        """
        before = self.model.register_forward_pre_hook(self._enter, with_kwargs=True)
        # The last to enter leaves first: others' hooks, a second ride's too, lie outside.
        self._hooks = before, self.model.register_forward_hook(self._leave, prepend=True)
        return self

    def __exit__(self, error: object = None, *args: object) -> None:
        """Wait no longer; what an interrupted pass has made is dropped.

        Args:
            error: the exception's class, None without one.
            *args: unused.
        """
        for hook in self._hooks:
            hook.remove()
        if error is not None:
            self.outputs = None

    def _enter(
        self, model: nn.Module, args: tuple[object, ...], named: dict[str, object]
    ) -> tuple[tuple[Tensor, ...], dict[str, object]] | None:
        riders = self.riders
        if self._aboard or named or not (model.training and torch.is_grad_enabled()):
            return None
        if self.arguments not in (0, len(args)):
            return None
        # The second argument is known to be task labels only where a batch has them.
        wanted = riders[:1] if len(args) == 1 else [riders[0], *riders[2:][-1:]]
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if not len(args) == len(tensors) == len(wanted):
            return None
        for own, other in zip(tensors, wanted, strict=True):
            if own.dtype != other.dtype or own.shape[1:] != other.shape[1:]:
                return None
        self._aboard, self.arguments = len(tensors[0]), len(args)
        return tuple(torch.cat(pair) for pair in zip(tensors, wanted, strict=True)), {}

    def _leave(self, _: nn.Module, __: tuple[object, ...], outputs: object) -> Tensor | None:
        if not self._aboard or self.outputs is not None:
            return None
        sizes = [self._aboard, len(self.riders[0])]
        if not isinstance(outputs, Tensor) or len(outputs) != sum(sizes):
            return None
        # One node of the graph for two slices, neither of them a view: they may be written to.
        own, self.outputs = torch.unsafe_split_with_sizes(outputs, sizes)
        return own


def rides_free(model: nn.Module, forward: Forward, riders: Sequence[Tensor]) -> int:
    """Tell by trial whether riders change nothing for a batch, nor the batch for them.

    Args:
        model: the network; modes, buffers and random states are left as they are.
        forward: from a batch to outputs [..., C].
        riders: parts of a batch, inputs first.

    Returns:
        How many arguments ``forward`` calls the network with, 1 or 2, if a training pass with them
        returns, row by row, what evaluation passes do; else 0.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    with own_random_states(model):
        try:
            with evaluation_mode(model), torch.no_grad():
                alone = outputs_of(forward, riders)
            model.train()
            with Ride(model, riders) as ride:
                batch = outputs_of(forward, [torch.flip(part, [0]) for part in riders]).detach()
        except Exception:  # whatever a network raises that cannot be called so: it is left alone
            return 0
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                changed = any(not torch.equal(buffer, kept) for buffer, kept in buffers)
                for buffer, kept in buffers:
                    buffer.copy_(kept)
    found = ride.outputs
    # What a caller's forward makes of the network's outputs is not made of the riders'.
    if changed or found is None or not found.shape == batch.shape == alone.shape:
        return 0
    limit = max(_CLOSE, 4.0 * torch.finfo(alone.dtype).eps) * float(alone.abs().max())
    rows = torch.stack([found.detach(), batch.flip(0)])
    return ride.arguments if bool((rows - alone).abs().max() <= limit) else 0
