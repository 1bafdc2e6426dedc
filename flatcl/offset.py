"""An offset on old classes' logits: a trick of the loss that composes with every method."""

from __future__ import annotations

from typing import Any

import torch

from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche

ensure_avalanche()

from avalanche.core import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class OldClassOffset(SupervisedPlugin):
    """Subtracts m from the logits of absent old classes, in the training loss only.

    A class is old if an earlier experience had labels of it, absent if this one has none. Under a
    shared softmax the absent classes are pushed down by every sample of the new ones; the offset
    is the logit adjustment for their prior in the task, which is nil. It composes with every
    method, changes nothing where all classes are present in all tasks, and stores class numbers
    alone.

    Source: logit adjustment, Menon et al., ICLR 2021, applied to an absent class.

    Args:
        offset: m ≥ 0, in logits (nats).

    Raises:
        OptionError: the offset is negative or not finite.
    """

    def __init__(self, offset: float) -> None:
        super().__init__()
        if not 0 <= offset < float("inf"):
            raise OptionError(f"offset is {offset!r}; it must be a finite number, 0 or more")
        self.offset = float(offset)
        self.seen: set[int] = set()
        self._absent: list[int] = []

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Find the old classes that this experience lacks.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        present = {int(c) for c in strategy.experience.classes_in_this_experience}
        self._absent = sorted(self.seen - present)
        self.seen |= present

    def after_forward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Lower the absent classes' logits for the loss that follows.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        if self._absent and self.offset:
            shift = torch.zeros(strategy.mb_output.shape[-1], device=strategy.device)
            shift[self._absent] = self.offset
            strategy.mb_output = strategy.mb_output - shift
