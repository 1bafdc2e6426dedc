"""LDC for a Hugging Face ``Trainer``: one callback, kept from task to task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions


class LDCCallback(TrainerCallback):
    """Makes each ``trainer.train()`` a task, and holds what the ones before it learned.

    Give the same callback to the trainer of every task. The model's outputs need ``logits``; the
    rehearsal's gradient, where inputs are no token ids, is added just before the optimiser's step.

    Args:
        options: see ``LDCOptions``; None for the defaults.
    """

    landscape: Landscape

    def __init__(self, options: LDCOptions | None = None) -> None:
        self.options = options
        self._names: tuple[str, ...] = ()

    def on_train_begin(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        """Begin the task."""
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])  # unwrapped
        if not hasattr(self, "landscape"):
            self.landscape = Landscape(model, optimizer, options=self.options, forward=self._logits)
        self.landscape.attach(model, optimizer)
        self.landscape.begin_task()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Add the gradient of the rehearsal."""
        if (loss := self.landscape.rehearsal()).requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Pull; gradients are still there."""
        self.landscape.step()

    def on_train_end(self, *args: Any, train_dataloader: Iterable[Any], **kwargs: Any) -> None:
        """End the task."""
        self.landscape.end_task(self._batches(train_dataloader))

    def _batches(self, loader: Iterable[Any]) -> Iterator[list[Tensor]]:
        for batch in loader:  # dictionaries; labels are no input
            self._names = tuple(name for name in batch if name != "labels")
            yield [batch[name] for name in self._names] + [batch["labels"]]

    def _logits(self, batch: Sequence[Tensor]) -> Tensor:
        outputs = self.landscape.model(**dict(zip(self._names, batch, strict=False)))
        return outputs.logits  # type: ignore[no-any-return]
