"""What LDC reads from an Avalanche strategy about its experience."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flatcl.core.options import LDCOptions
from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.training.templates import SupervisedTemplate  # noqa: E402


def training_steps(strategy: SupervisedTemplate, options: LDCOptions) -> int | None:
    """Return the task's number of steps, None where it may stop early or cannot be known.

    Args:
        strategy: about to train an experience.
        options: of LDC.

    Returns:
        The number, or None.
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
    strategy: SupervisedTemplate, options: LDCOptions, generator: torch.Generator
) -> Iterator[Sequence[Tensor]]:
    """Yield batches of random inputs of the experience, under its evaluation transforms.

    Args:
        strategy: that trained on the experience.
        options: of LDC.
        generator: of the choice.

    Yields:
        Batches as the experience's own loader would make them.
    """
    dataset = strategy.experience.dataset.eval()
    # Drawn with the landscape's generator: the global random state stays as it is.
    chosen = torch.randperm(len(dataset), generator=generator)[: options.probe_inputs]
    loader = DataLoader(
        dataset,
        batch_size=min(len(chosen), 32 * options.probe_batch),
        sampler=chosen.tolist(),
        collate_fn=getattr(dataset, "collate_fn", None),
        generator=torch.Generator(),
    )
    yield from loader
