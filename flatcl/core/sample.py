"""Some of a task's inputs, in groups: what Gaussians are taken of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from flatcl.core.gradients import Forward
from flatcl.core.predictions import predictions_at

LEAST_INPUTS = 16  # of a group whose moments are used: fewer would be told by their mean
OTHERS = -1  # class of the inputs whose own class has too few

Key: TypeAlias = "tuple[int, int]"


@dataclass(frozen=True)
class Sample:
    """Inputs by the class that the network gives them, and by task label.

    Attributes:
        parts: tensors of equal length, inputs [n, …] first. Where there are three or more the
            last holds task labels, as in Avalanche.
        groups: places in them by predicted class (0 where an input has none) and task label (0
            where there is none).
    """

    parts: list[Tensor]
    groups: dict[Key, Tensor]

    @classmethod
    def of(
        cls, model: nn.Module, forward: Forward, batches: Sequence[Sequence[Tensor]]
    ) -> Sample | None:
        """Group a task's inputs by the network's own predictions of them.

        Args:
            model: the network at the task's end, whose modes are left as they are.
            forward: from a batch to outputs [..., C].
            batches: of the task, inputs first.

        Returns:
            The sample; None where the inputs are not finite real numbers of one shape, or have
            further parts that are more than one number an input, labels for instance.
        """
        if not _have_moments(batches):
            return None
        parts = [torch.cat(pieces) for pieces in zip(*batches, strict=True)]
        found = predictions_at(model, forward, parts)
        # Tokens or pixels: an input has no class of its own.
        none = torch.zeros(len(parts[0]), dtype=torch.long, device=found.device)
        return cls.grouped(parts, found.argmax(-1) if found.dim() == 2 else none)

    @classmethod
    def grouped(cls, parts: Sequence[Tensor], classes: Tensor) -> Sample:
        """Group inputs by given classes.

        Args:
            parts: see above.
            classes: [n], whole numbers.

        Returns:
            The sample.
        """
        labels = parts[-1] if len(parts) > 2 else torch.zeros_like(classes)
        pairs = torch.stack([classes, labels.to(classes).reshape(len(classes), -1)[:, 0]], dim=1)
        groups = {
            (of_class, label): ((pairs[:, 0] == of_class) & (pairs[:, 1] == label)).nonzero()[:, 0]
            for of_class, label in torch.unique(pairs, dim=0).tolist()
        }
        return cls(list(parts), groups)

    def rows(self) -> Tensor:
        """Return the inputs as vectors.

        Returns:
            [n, d], float32.
        """
        return self.parts[0].flatten(1).float()

    def large_groups(self) -> list[Tensor]:
        """Return groups of at least ``LEAST_INPUTS``, smaller ones of a task label joined.

        Returns:
            Places group by group; inputs of a task label that has fewer in all are left out.
        """
        joined: dict[Key, list[Tensor]] = {}
        for (of_class, label), places in self.groups.items():
            key = (OTHERS if len(places) < LEAST_INPUTS else of_class, label)
            joined.setdefault(key, []).append(places)
        found = [torch.cat(pieces) for pieces in joined.values()]
        return [places for places in found if len(places) >= LEAST_INPUTS]


def _have_moments(batches: Sequence[Sequence[Tensor]]) -> bool:
    inputs = [batch[0] for batch in batches]
    others = [part for batch in batches for part in batch[1:]]
    return (
        all(x.is_floating_point() and x[0].numel() > 0 for x in inputs)
        and len({tuple(x.shape[1:]) for x in inputs}) == 1
        and all(part[0].numel() == 1 for part in others)
        and all(bool(torch.isfinite(x).all()) for x in inputs)
    )
