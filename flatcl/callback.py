"""What the callbacks of both trainers do alike: a task's life, and what is kept of the tasks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.core.saved import State, entry
from flatcl.core.shown import Shown
from flatcl.errors import OptionError, StateError
from flatcl.io import write_bytes
from flatcl.nested import Nesting


class TaskCallback:
    """Makes each fit of a trainer a task of one landscape.

    A task that an exception ended does not count: nothing is recorded of it, and the next fit
    begins afresh at the weights that it finds.

    Args:
        options: see ``LDCOptions``; None for the defaults.
        forward: from a batch of the training loader, its dictionaries, lists, tuples and tensors
            (what else it has is None), to outputs; None for ``model(batch[0])``.

    Raises:
        OptionError: the source is "sgd".
    """

    landscape: Landscape

    def __init__(
        self, options: LDCOptions | None = None, forward: Callable[[Any], Tensor] | None = None
    ) -> None:
        self.options, self.forward = options or LDCOptions(), forward
        if self.options.source == "sgd":
            raise OptionError(
                "source is 'sgd', which weighs each step's gradient by the number of terms in its "
                'loss, and trainers do not tell their callbacks that: take source="probe" or '
                '"fisher", or call Landscape.step(batch_size=…) in a loop of your own'
            )
        self._saved: State | None = None
        self._moved = False
        self._watch: RemovableHandle | None = None
        self._shown, self._nesting = Shown(), Nesting()

    def state_dict(self) -> State:
        """Return all that is held, the progress of a running task included.

        Returns:
            Plain state, for ``torch.save``; it loads with ``weights_only=True``. Empty before the
            first task.
        """
        if self._saved is not None:
            return self._saved
        if not hasattr(self, "landscape"):
            return {}
        return {"landscape": self.landscape.state_dict(), "nesting": self._nesting.template}

    def load_state_dict(self, state_dict: State) -> None:
        """Keep a saved state until the next fit begins, which then takes it up.

        A task that was running when it was saved goes on where the fit resumes from the trainer's
        checkpoint; any other fit gives it up with a warning and begins the next task. A state that
        does not fit the model is a ``StateError`` of the fit.

        Args:
            state_dict: from ``state_dict``; an empty one changes nothing.
        """
        if state_dict:
            self._saved = state_dict

    def _write(self, path: Path) -> None:
        """Write the state to a file that is whole or absent."""
        buffer = BytesIO()
        torch.save(self.state_dict(), buffer)
        write_bytes(path, buffer.getvalue())

    def _read(self, path: Path) -> None:
        """Take what ``_write`` wrote for the saved state; no code is executed by reading it.

        Raises:
            StateError: the file is damaged.
        """
        try:
            found: State = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file may raise anything
            raise StateError(f"{path} is damaged: resume from another checkpoint") from error
        self.load_state_dict(found)

    def _need_saved(self, where: str) -> None:
        """Refuse to resume where no state of that time was loaded; one held in memory is another's.

        Raises:
            StateError: so it is.
        """
        if self._saved is None:
            raise StateError(
                f"training resumes from a checkpoint, but {where}, so that what was held then is "
                "unknown: resume from one that was saved with this callback, give "
                "load_state_dict() the state of that time before, or load the weights alone and "
                "begin a task with them"
            )

    def _begin(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        resumes: bool,
        processes: int,
        copies: bool,
        strategy: str,
    ) -> None:
        """Begin the task, or go on with the one of a saved state.

        Args:
            model: as the trainer was given it, not wrapped.
            optimizer: that trains it.
            resumes: whether the trainer goes on from a checkpoint.
            processes: that train it, all of those that there are.
            copies: whether each of several has the whole model.
            strategy: how the trainer calls what they do.

        Raises:
            OptionError: each has a part.
        """
        if processes > 1 and not copies:
            raise OptionError(
                f"{processes} processes train this model in parts ({strategy}), and a weight "
                "matrix has to be whole to be held: train copies, with DistributedDataParallel"
            )
        self._shown.give_up(model)
        if not hasattr(self, "landscape"):
            self.landscape = Landscape(
                model, optimizer, options=self.options, forward=self._outputs
            )
        self.landscape.abandon_task()  # of a fit that failed
        group = dist.group.WORLD if processes > 1 else None
        self.landscape.attach(model, optimizer, group=group)
        if self._saved is not None:
            self.landscape.load_state_dict(entry(self._saved, "landscape", "callback"))
            self._nesting.template = self._saved.get("nesting")  # earlier states have none
            self._saved = None
            if self.landscape.task is not None and not resumes:
                warnings.warn(
                    f"task {self.landscape.tasks_ended} of the saved state had not ended, and this "
                    "fit does not resume it: it is given up, and nothing holds it. Save a state "
                    "after the fit, or resume from the trainer's checkpoint",
                    stacklevel=2,
                )
                self.landscape.abandon_task()
        if self.landscape.task is None:
            self.landscape.begin_task()
        self._follow(optimizer)

    def _follow(self, optimizer: Optimizer) -> None:
        """Learn of each step that the optimiser makes from now on.

        It makes none within an accumulated batch, nor where a scaler finds infinite gradients,
        which trainers count all the same.
        """
        if self._watch is not None:
            self._watch.remove()
        self._moved = False
        self._watch = optimizer.register_step_post_hook(self._see)

    def _see(self, *args: object) -> None:
        self._moved = True

    def _look(self, batch: Any) -> None:
        """Refuse a task's first batch where the task's end could not use it.

        One without tensors is a ``DataError``.

        Raises:
            OptionError: it is a dictionary, and no ``forward`` tells what of it to use.
        """
        if not self.options.records:
            return
        Nesting().tensors_of(batch)
        if isinstance(batch, Mapping) and self.forward is None:
            raise OptionError(
                f"a batch is a {type(batch).__name__} of {list(batch)}, and forward is None, which "
                "stands for model(batch[0]): pass forward=, from a batch to outputs, for instance "
                f"lambda batch: model(batch[{next(iter(batch))!r}])"
            )

    def _outputs(self, parts: Sequence[Tensor]) -> Tensor:
        batch = self._nesting.batch_of(parts)
        if self.forward is not None:
            return self.forward(batch)
        outputs: Tensor = self.landscape.model(batch[0])
        return outputs

    def _end(self, batches: Iterable[Any]) -> None:
        """End the task."""
        if self._watch is not None:
            self._watch.remove()
        self.landscape.end_task(self._nesting.flat(batches))

    def _rehearse(self, scaler: GradScaler | None = None) -> None:
        """Add the rehearsal's gradient to the task's, at the scale that the scaler has this at."""
        loss = self.landscape.rehearsal()
        if loss.requires_grad:
            (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def _step(self) -> bool:
        """Count a step, if the optimiser made one, and pull where one is due.

        Returns:
            Whether the budget asks to stop.
        """
        if self._moved:
            self._moved = False
            self.landscape.step()
        return self.landscape.over_budget

    def _show_pulled(self) -> None:
        """Show pulled weights to an evaluation."""
        if hasattr(self, "landscape"):
            self._shown.show(self.landscape)

    def _show_own(self) -> None:
        """Put the training's weights back, bit for bit, where pulled ones are shown."""
        self._shown.put_back()


def follow_modes(optimizer: Any, show: Callable[[], None], put_back: Callable[[], None]) -> None:
    """Show other weights while a trainer has its optimiser in evaluation mode.

    Hugging Face's trainer has no event before an evaluation, and ``should_evaluate`` tells of the
    first of several sets alone. But it calls the optimiser's ``eval`` before every one, and its
    ``train`` before every step, for the sake of schedule-free optimisers.

    Args:
        optimizer: as ``accelerate`` wraps it.
        show: called at each change to evaluation mode.
        put_back: called at each change to training mode.
    """
    unfollow_modes(optimizer)  # of a training that failed
    own_eval, own_train = optimizer.eval, optimizer.train

    def evaluate() -> None:
        own_eval()
        show()

    def train() -> None:
        put_back()
        own_train()

    optimizer.eval, optimizer.train = evaluate, train


def unfollow_modes(optimizer: Any) -> None:
    """Undo ``follow_modes``.

    Args:
        optimizer: the same, followed or not.
    """
    for mode in ("eval", "train"):
        vars(optimizer).pop(mode, None)
