"""LDC for a Hugging Face ``Trainer``: one callback, kept from task to task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flatcl.callback import TaskCallback, follow_modes, unfollow_modes
from flatcl.core.options import LDCOptions
from flatcl.core.saved import State, entry
from flatcl.keywords import Keywords


class LDCCallback(TaskCallback, TrainerCallback):
    """Makes each ``trainer.train()`` a task, and holds what the ones before it learned.

    Give the same callback to the trainer of every task. The model is called by keyword, and its
    outputs need ``logits``. The rehearsal's gradient, where inputs are no token ids, is taken just
    before the task's own, so that both are clipped together. Evaluation sees pulled weights;
    ``on_budget="stop"`` sets ``control.should_training_stop``. A task ends at the centre of its
    last part, whatever ``load_best_model_at_end`` has loaded; ``LDCOptions(centre=False)`` leaves
    that in place.

    Each checkpoint in ``output_dir`` gets a file ``landscape.pt``. It has the weights that training
    goes on from, not the pulled ones: ``trainer.train(resume_from_checkpoint=…)`` goes on within
    the task, bit for bit. Between tasks, in another process: load the model that
    ``trainer.save_model`` saved after the training, and give ``callback.load_state_dict`` what
    ``callback.state_dict()`` was then.

    Of several processes each trains a copy of the model, and all hold the same; FSDP and DeepSpeed,
    which keep parts of it, are refused when the training begins.

    A training that an exception ended is no task: nothing is recorded of it, and the next one
    begins afresh at the weights that it finds.

    Args:
        options: see ``LDCOptions``; None for the defaults.

    Raises:
        OptionError: the source is "sgd", which needs to be told each step's batch size.
    """

    def __init__(self, options: LDCOptions | None = None) -> None:
        super().__init__(options, self._logits)
        self._keywords, self._rehearsed = Keywords(), False

    def state_dict(self) -> State:
        """Return all that is held, the progress of a running task included.

        Returns:
            As in ``TaskCallback``.
        """
        state = super().state_dict()
        return {**state, "names": list(self._keywords.names)} if state else {}

    def load_state_dict(self, state_dict: State) -> None:
        """Keep a saved state until the next training begins, which then takes it up.

        Args:
            state_dict: as in ``TaskCallback``.
        """
        super().load_state_dict(state_dict)
        if state_dict:
            self._keywords.names = tuple(entry(state_dict, "names", "callback"))

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: nn.Module,
        optimizer: Any,
        **kwargs: Any,
    ) -> None:
        """Begin the task, or go on with the checkpoint's."""
        resumes = state.global_step > 0
        if resumes:
            if (path := _file(args, state)).is_file():
                self._read(path)
            else:
                self._need_saved(f"there is no {path}")
        strategy = optimizer.accelerator_state.distributed_type.value
        self._begin(
            model,
            optimizer.optimizer,
            resumes=resumes,
            processes=optimizer.accelerator_state.num_processes,
            copies=strategy.startswith("MULTI_"),
            strategy=strategy,
        )
        self._keywords.watch(model, args.label_names or ["labels"])
        self._rehearsed = False
        follow_modes(optimizer, self._show_pulled, self._show_own)

    def on_step_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        """Take the gradient of the rehearsal; the task's will be added to it, and both clipped."""
        if not self._rehearsed:
            self._rehearse(getattr(optimizer, "scaler", None))
            self._rehearsed = True

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pull, if a step was made; gradients are still there."""
        self._rehearsed = False
        if self._step():
            control.should_training_stop = True

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Put the training's weights back, bit for bit."""
        self._show_own()

    on_predict = on_evaluate

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what is held into the checkpoint."""
        if args.should_save and _file(args, state).parent.is_dir():
            self._write(_file(args, state))

    def on_train_end(
        self, *args: Any, optimizer: Any, train_dataloader: Iterable[Any], **kwargs: Any
    ) -> None:
        """End the task."""
        unfollow_modes(optimizer)
        self._keywords.close()
        self._end(self._keywords.batches(train_dataloader))

    def _logits(self, batch: Sequence[Tensor]) -> Tensor:
        outputs = self.landscape.model(**self._keywords.of(batch))
        return outputs.logits  # type: ignore[no-any-return]


def _file(args: Any, state: Any) -> Path:
    return Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", "landscape.pt")
