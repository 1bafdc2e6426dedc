"""Snapshots of the weights near a task's end."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flatcl.published.options import PublishedOptions


def flattened(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return tensors as one vector, in their order.

    Args:
        tensors: by name.

    Returns:
        [P], a copy.
    """
    return torch.cat([t.detach().reshape(-1) for t in tensors.values()])


class TailSnapshots:
    """Snapshots of the weights over the last share of a task whose length need not be known.

    At a stride that doubles when there are too many: a bounded number, evenly spaced.
    """

    def __init__(self, options: PublishedOptions, steps: int | None) -> None:
        self.window, self.most = options.window, 2 * options.snapshots
        self.first = 0 if steps is None else self._start(steps)
        self.every, self.step = 1, 0
        self.rows: list[tuple[int, Tensor]] = []

    def offer(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Take a snapshot if this step is due one.

        Args:
            step: counted from 1.
            parameters: by name.
        """
        self.step = step
        if step <= self.first or step % self.every:
            return
        start = self._start(step)
        self.rows = [(at, row) for at, row in self.rows if at > start]
        if len(self.rows) >= self.most:
            self.every *= 2
            self.rows = [(at, row) for at, row in self.rows if at % self.every == 0]
            if step % self.every:
                return
        self.rows.append((step, flattened(parameters)))

    def snapshots(self) -> list[Tensor]:
        """Return the snapshots of the task's last share, in their order.

        Returns:
            Vectors [P], w.
        """
        return [row for at, row in self.rows if at > self._start(self.step)]

    def _start(self, steps: int) -> int:
        return steps - max(2, math.ceil(self.window * steps))
