"""LDC for a Lightning ``Trainer``: one callback, kept from task to task."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from flatcl.core.engine import Landscape
from flatcl.core.gradients import Forward
from flatcl.core.options import LDCOptions


class LDCCallback(Callback):
    """Makes each ``trainer.fit`` a task, and holds what the fits before it learned.

    Give the same callback to the trainer of every task. Automatic optimisation with one optimiser;
    the rehearsal's gradient is added just before the optimiser's step, in a pass of its own.

    Args:
        options: see ``LDCOptions``; None for the defaults.
        forward: from a batch of the training loader to outputs; None for ``module(batch[0])``.
    """

    landscape: Landscape

    def __init__(self, options: LDCOptions | None = None, forward: Forward | None = None) -> None:
        self.options, self.forward = options, forward
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the task."""
        (optimizer,) = trainer.optimizers
        if not hasattr(self, "landscape"):
            kind: dict[str, Any] = {"options": self.options, "forward": self.forward}
            self.landscape = Landscape(pl_module, optimizer, **kind)
        self.landscape.attach(pl_module, optimizer)
        self.landscape.begin_task()
        self._seen = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the rehearsal."""
        loss = self.landscape.rehearsal()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def on_train_batch_end(self, trainer: Trainer, *args: object, **kwargs: object) -> None:
        """Pull, if the optimiser made a step: not within an accumulated batch."""
        if trainer.global_step > self._seen:
            self._seen = trainer.global_step
            self.landscape.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task."""
        self.landscape.end_task(trainer.train_dataloader)
