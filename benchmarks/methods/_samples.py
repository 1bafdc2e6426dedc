"""Samples drawn from a task's training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


def random_samples(dataset: Any, count: int) -> Sequence[Tensor]:
    """Return samples drawn without replacement, in random order.

    Training transforms apply. The draw is from torch's global random state.

    Args:
        dataset: an Avalanche classification data set.
        count: how many samples, at most.

    Returns:
        Inputs [n, ...], targets [n] and task labels [n], in memory of their own.
    """
    order = torch.randperm(len(dataset))[:count].tolist()
    chosen = dataset.subset(order)
    x, y, *_, t = next(iter(DataLoader(chosen, batch_size=count, collate_fn=chosen.collate_fn)))
    return x, y, t
