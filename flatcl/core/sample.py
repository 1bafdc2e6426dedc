"""Some of a task's inputs, in groups: what Gaussians are taken of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from flatcl.core.gradients import Forward
from flatcl.core.predictions import floats_an_input, predictions_at

LEAST_INPUTS = 16  # of a group whose moments are used: fewer would be told by them
_TRIED = 8  # inputs of a trial pass
OTHERS = -1  # class of the inputs whose own class has too few

Key: TypeAlias = "tuple[int, int]"


@dataclass(frozen=True)
class Sample:
    """Inputs by the class that the network gives them, and by task label.

    Attributes:
        parts: tensors of equal length, inputs [n, …] first. Where there are three or more the
            last holds task labels, as in Avalanche: whole numbers that many inputs share.
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
            The sample; None where the inputs are not finite real numbers of one shape, or, with a
            warning, have further parts of more than one number an input: targets as vectors, or
            masks, cannot be drawn with them.
        """
        if not _have_moments(batches):
            return None
        if wide := _wide_parts(batches):
            warnings.warn(
                f"parts of the batches hold more than one number an input (shapes {wide}): with "
                "such parts no pseudo-inputs are drawn, and this task is held by its constraint "
                "alone; pass batches without them, of inputs alone for instance, if forward= does "
                "not need them",
                stacklevel=2,
            )
            return None
        parts = [torch.cat(pieces) for pieces in zip(*batches, strict=True)]
        floats = floats_an_input(model, forward, [part[:_TRIED] for part in parts])
        classes = predictions_at(model, forward, parts, floats=floats, each=_classes)
        return cls.grouped(parts, classes)

    @classmethod
    def grouped(cls, parts: Sequence[Tensor], classes: Tensor) -> Sample:
        """Group inputs by given classes.

        Args:
            parts: see above. A last part that cannot be task labels, an index or a weight of each
                input, is named in a warning and taken for none.
            classes: [n], whole numbers.

        Returns:
            The sample.
        """
        pairs = torch.stack([classes, _task_labels(parts, classes)], dim=1)
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


def _classes(predictions: Tensor) -> Tensor:
    """Return the predicted classes [n]; 0 for tokens or pixels: an input has none of its own."""
    if predictions.dim() == 2:
        return predictions.argmax(-1)
    return predictions.new_zeros(len(predictions), dtype=torch.long)


def _task_labels(parts: Sequence[Tensor], classes: Tensor) -> Tensor:
    """Return the task labels [n] of a batch's parts, zeros where there are none."""
    none = torch.zeros_like(classes)
    if len(parts) < 3:
        return none
    given = parts[-1].to(classes.device).reshape(len(none), -1)[:, 0]
    labels = given.to(classes.dtype)
    whole, different = torch.equal(labels.to(given.dtype), given), len(torch.unique(labels))
    if whole and (different <= len(none) // 2 or len(none) < LEAST_INPUTS):
        return labels
    kind = f"{different} different values" if whole else "values that are no whole numbers"
    warnings.warn(
        f"the last of a batch's {len(parts)} parts counts as task labels, whole numbers that many "
        f"inputs share; that of {len(none)} inputs has {kind}, and they are taken to have no task "
        "label: leave an index or a weight out of the batches that end_task is given",
        stacklevel=2,
    )
    return none


def _have_moments(batches: Sequence[Sequence[Tensor]]) -> bool:
    inputs = [batch[0] for batch in batches]
    return (
        all(x.is_floating_point() and x[0].numel() > 0 for x in inputs)
        and len({tuple(x.shape[1:]) for x in inputs}) == 1
        and all(bool(torch.isfinite(x).all()) for x in inputs)
    )


def _wide_parts(batches: Sequence[Sequence[Tensor]]) -> str:
    """Return the shapes, of one input, of parts that are more than one number; "" for none."""
    others = [part for batch in batches for part in batch[1:]]
    shapes = dict.fromkeys(str(tuple(part.shape[1:])) for part in others if part[0].numel() != 1)
    return ", ".join(shapes)
