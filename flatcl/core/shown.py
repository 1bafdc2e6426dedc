"""Pulled weights that an evaluation in mid-task sees, in the place of the training's."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from flatcl.core.engine import Landscape


class Shown:
    """One evaluation at a time; a host tells when it begins and, unless it fails, ends."""

    def __init__(self) -> None:
        self._context: AbstractContextManager[None] | None = None

    def show(self, landscape: Landscape) -> None:
        """Show pulled weights; between tasks nothing is done.

        Args:
            landscape: whose.
        """
        self.put_back()
        context = landscape.evaluating()
        context.__enter__()
        self._context = context

    def put_back(self) -> None:
        """Put the training's weights back, bit for bit, where pulled ones are shown."""
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(None, None, None)

    def give_up(self, model: nn.Module) -> None:
        """Forget an evaluation that failed; the weights stay as they are now.

        Pulled ones are still shown then, or the user has loaded others, which must not be lost.

        Args:
            model: that was evaluated, or is in its place.
        """
        if self._context is None:
            return
        present = [p.detach().clone() for p in model.parameters()]
        self.put_back()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), present, strict=True):
                parameter.copy_(value)
