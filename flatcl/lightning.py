"""LDC for a Lightning ``Trainer``: one callback, kept from task to task."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from flatcl.callback import TaskCallback
from flatcl.errors import OptionError


class LDCCallback(TaskCallback, Callback):
    """Makes each ``trainer.fit`` a task, and holds what the fits before it learned.

    Give the same callback to the trainer of every task. Automatic optimisation with one optimiser;
    the rehearsal's gradient is added just before the optimiser's step, in a pass of its own, and
    clipped together with the task's. Validation sees pulled weights; ``on_budget="stop"`` sets
    ``trainer.should_stop``.

    The trainer's checkpoints hold it all. They have the weights that training goes on from, not
    the pulled ones: ``trainer.fit(…, ckpt_path=…)`` goes on within the task, bit for bit where the
    loader does, and validation or test by ``ckpt_path`` leaves what is held alone. Between tasks,
    in another process: ``model.load_state_dict(saved["state_dict"])`` and
    ``callback.load_state_dict(saved["callbacks"][callback.state_key])`` of what
    ``trainer.save_checkpoint`` saved after the fit.

    A fit that an exception ended is no task: nothing is recorded of it, and the next one begins
    afresh at the weights that it finds.

    Under the strategy "ddp" all processes hold the same. Strategies that keep parts of the model
    in each process are refused when the fit begins.

    Args:
        options: see ``LDCOptions``; None for the defaults.
        forward: from a batch of the training loader to outputs; None for ``module(batch[0])``. A
            batch may nest its tensors, inputs first along each, in dictionaries, lists and tuples;
            what else it has, ``forward`` finds to be None.

    Raises:
        OptionError: the source is "sgd", which needs to be told each step's batch size. When a fit
            begins: there is not one optimiser and one loader; or batches are dictionaries, without
            ``forward``.
        DataError: when a fit begins: batches have no tensors.
    """

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what is held where a checkpoint is loaded for its weights, to validate or test."""
        if trainer.state.fn != TrainerFn.FITTING:
            checkpoint["callbacks"].pop(self.state_key, None)
        elif self.state_key not in checkpoint["callbacks"]:
            self._need_saved(f"it has no {self.state_key!r} among its callbacks")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the task, or go on with the checkpoint's.

        Raises:
            OptionError: there is not one optimiser and one loader.
        """
        if len(trainer.optimizers) != 1:
            raise OptionError(
                f"the module has {len(trainer.optimizers)} optimisers, and a landscape follows the "
                "steps of one: let configure_optimizers return one, with several parameter groups "
                "if need be"
            )
        if self.options.records and isinstance(trainer.train_dataloader, (dict, list, tuple)):
            raise OptionError(
                f"the trainer has a {type(trainer.train_dataloader).__name__} of training loaders, "
                "and a task's inputs are read from one: join their data sets in one loader"
            )
        self._begin(
            pl_module,
            trainer.optimizers[0],
            resumes=trainer.ckpt_path is not None,
            processes=trainer.world_size,
            copies=isinstance(trainer.model, DistributedDataParallel),
            strategy=type(trainer.strategy).__name__,
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Refuse batches that the task's end could not use, before anything is learned of them."""
        if batch_idx == 0:
            self._look(batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the rehearsal."""
        self._rehearse()

    def on_train_batch_end(self, trainer: Trainer, *args: object, **kwargs: object) -> None:
        """Pull, if the optimiser made a step."""
        if self._step():
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show pulled weights to a validation in mid-task."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._show_pulled()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the training's weights back, bit for bit."""
        self._show_own()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the training's weights back; the task stays for a checkpoint of what was reached."""
        self._show_own()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task."""
        self._end(trainer.train_dataloader)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task of a checkpoint that had no step left to make, so that none was begun."""
        if self._saved is not None and trainer.ckpt_path is not None:
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)
