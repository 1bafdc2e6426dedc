"""What LDC asks of an Avalanche experience: where tasks begin and end, and some of their inputs.

Boundaries are told, not guessed: an experience is a task, and the pieces of an online stream are
one task if the stream tells where it begins and ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from flatcl.core.options import LDCOptions
from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.benchmarks import OnlineCLExperience  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class Boundary(NamedTuple):
    """Where an experience lies in its task.

    Attributes:
        first: whether a task begins with it.
        last: whether a task ends with it.
    """

    first: bool
    last: bool


def boundary_of(experience: Any, pieces: int) -> Boundary:
    """Return where an experience lies in its task.

    Args:
        experience: as a strategy trains it.
        pieces: how many of its task have been seen, this one included.

    Returns:
        Both True but for the pieces of an online stream that tells its boundaries.
    """
    if not isinstance(experience, OnlineCLExperience):
        return Boundary(True, True)
    if experience.access_task_boundaries:
        # Avalanche marks no piece as the last where the pieces fill the task exactly.
        last = experience.is_last_subexp or pieces == experience.sub_stream_length
        return Boundary(bool(experience.is_first_subexp), bool(last))
    warnings.warn(
        "this online stream does not tell where its tasks begin and end, so that each piece of it "
        "counts as a task: pass access_task_boundaries=True to split_online_stream",
        stacklevel=3,
    )
    return Boundary(True, True)


def steps_of(strategy: SupervisedTemplate, options: LDCOptions) -> int | None:
    """Return the number of optimiser steps of the strategy's present experience.

    Args:
        strategy: the strategy that trains, before its training.
        options: of LDC.

    Returns:
        Steps, None where it may stop early or they cannot be known.
    """
    if options.budget is not None and options.on_budget == "stop":
        return None
    if any(type(plugin).__name__ == "EarlyStoppingPlugin" for plugin in strategy.plugins):
        return None
    try:
        return len(strategy.dataloader) * int(strategy.train_epochs)
    except (TypeError, AttributeError):
        return None


def random_batches(
    parts: Sequence[Any],
    options: LDCOptions,
    generator: torch.Generator,
    *,
    rank: int = 0,
    size: int = 1,
) -> Iterator[Sequence[Tensor]]:
    """Yield batches of random inputs of a task.

    Args:
        parts: its data sets, under their evaluation transforms.
        options: of LDC.
        generator: that chooses, so that the global random state stays as it is.
        rank: of this process, among those that train the model together.
        size: their number; each reads every ``size``-th of the same chosen inputs.

    Yields:
        Batches, as a loader of the task would.
    """
    dataset = parts[0] if len(parts) == 1 else ConcatDataset(list(parts))
    chosen = torch.randperm(len(dataset), generator=generator)[: options.probe_inputs]
    own = chosen[rank::size].tolist()
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=max(1, min(len(own), 32 * options.probe_batch)),
        sampler=own,
        collate_fn=getattr(parts[0], "collate_fn", None),
        generator=torch.Generator(),
    )
    yield from loader
