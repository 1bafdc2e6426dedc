"""Pairs of a test sample and a training sample of the same class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.duality.checks import ask_finite, ask_labels, ask_real
from flatcl.errors import DataError, OptionError

_ENTRIES = 20_000_000  # distances held at once


@dataclass(frozen=True)
class Pairs:
    """Positions of partners; every test sample has one, training samples may repeat.

    Attributes:
        test: of the test samples [K], 0, 1, ….
        train: of their partners [K].
    """

    test: Tensor
    train: Tensor


def nearest_pairs(
    test: Tensor, test_labels: Tensor, train: Tensor, train_labels: Tensor, *, rank: int = 1
) -> Pairs:
    """Return each test sample with its nearest training sample of the same class, Euclidean.

    Source: Feng, Zhang and Tu 2023, arXiv 2203.10736, in the space of the images; any other space,
    such as a layer's own activities, will do.

    Args:
        test: [K, …].
        test_labels: [K].
        train: [N, …].
        train_labels: [N].
        rank: 1 for the nearest, 2 for the second nearest, ….

    Returns:
        The pairs.

    Raises:
        OptionError: ``rank`` is below 1.
        DataError: a class of the test samples has fewer training samples than ``rank``, or
            samples or classes are not such.
    """
    if not isinstance(rank, int) or rank < 1:
        raise OptionError(f"rank is {rank}: give 1 for the nearest, or more")
    for name, samples in (("test", test), ("train", train)):
        if samples.dim() < 2 or samples.shape[1:] != test.shape[1:]:
            raise DataError(
                f"{name} samples have shape {tuple(samples.shape)}: give [K, …] and [N, …] alike"
            )
    ask_labels("test_labels", test_labels, len(test))
    ask_labels("train_labels", train_labels, len(train))
    x, z = test.flatten(1), train.flatten(1)
    ask_real((2,), test=x, train=z)
    ask_finite(test=x, train=z)
    partners = torch.empty(len(test), dtype=torch.int64, device=train.device)
    for label, mine, theirs in _classes(test_labels, train_labels):
        if len(theirs) < rank:
            raise DataError(
                f"class {label} has {len(theirs)} training samples, partner {rank} is asked for: "
                "add samples or leave the class out"
            )
        candidates = z[theirs]
        for part in torch.split(mine, max(1, _ENTRIES // len(theirs))):
            order = torch.cdist(x[part], candidates).topk(rank, largest=False).indices[:, -1]
            partners[part] = theirs[order]
    return Pairs(torch.arange(len(test), device=train.device), partners)


def random_pairs(test_labels: Tensor, train_labels: Tensor, generator: torch.Generator) -> Pairs:
    """Return each test sample with a training sample drawn from the same class: a null.

    Args:
        test_labels: [K].
        train_labels: [N].
        generator: of the draws, on the CPU.

    Returns:
        The pairs.

    Raises:
        DataError: a class of the test samples has no training sample.
    """
    ask_labels("test_labels", test_labels)
    ask_labels("train_labels", train_labels)
    partners = torch.empty(len(test_labels), dtype=torch.int64, device=train_labels.device)
    for label, mine, theirs in _classes(test_labels, train_labels):
        if len(theirs) == 0:
            raise DataError(f"class {label} has no training sample: add some or leave it out")
        drawn = torch.randint(len(theirs), (len(mine),), generator=generator)
        partners[mine] = theirs[drawn.to(theirs.device)]
    return Pairs(torch.arange(len(test_labels), device=train_labels.device), partners)


def _classes(test_labels: Tensor, train_labels: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    labels: list[int] = torch.unique(test_labels).tolist()
    return [
        (
            label,
            (test_labels == label).nonzero().flatten(),
            (train_labels == label).nonzero().flatten(),
        )
        for label in labels
    ]
