"""Landscape: LDC without a framework. Begin a task, call it after each step, end the task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from flatcl.core.forecast import Forecast
from flatcl.core.holdings import Holdings
from flatcl.core.measure import Measurement, ProbeMeasurement, TaskEnd
from flatcl.core.precision import full_precision, under_present_autocast
from flatcl.core.record import Kept
from flatcl.core.statistics import MixedStatistics
from flatcl.core.unheld import warn_of
from flatcl.core.wrappers import uncompiled
from flatcl.errors import NonFiniteError, StateError

# What a task's way is taken for where none was travelled, as a share of ‖W‖. Perceptrons on MNIST
# streams travel .1 to .45 a layer; a larger share holds the fitted task more and teaches less.
USUAL_WAY = 0.2
_IDLE = "no task is running: call begin_task first"


class Landscape(Holdings):
    """Holds what earlier tasks need, in any PyTorch loop.

    ::

        landscape = Landscape(model, optimizer)
        for loader in tasks:
            landscape.begin_task()
            for x, y in loader:
                optimizer.zero_grad()
                with landscape.joining():
                    outputs = model(x)
                loss = loss_function(outputs, y) + landscape.rehearsal()
                loss.backward()
                optimizer.step()
                landscape.step()
            landscape.end_task(loader)

    It never touches ``.grad``, the optimiser's state, frozen parameters or the global random state.
    Weights change at pulls and once at a task's end, when the centre is installed; running
    statistics of normalisation layers then become their mean over the same instants. From the
    second task on BatchNorm stays in evaluation mode while a task runs, whatever ``train()`` says,
    and normalises by statistics of all tasks: ``flatcl.core.statistics``.

    Args:
        model: the network; heads may be added or grow between tasks.
        optimizer: the one that trains it; where another does from some task on, ``attach`` it.
        options: see ``LDCOptions``; None for the defaults.
        forward: from a batch (its tensors) to outputs [..., C]; None for ``model(batch[0])``. Where
            the classes are not the last dimension, or are no classes: see ``gradients.Forward``.
        network: a constraint on all parameters together, beside the units' own, or in their place
            with strength 0.

    Raises:
        OptionError: the model has no trainable parameter.
    """

    def fit(self, batches: Iterable[Sequence[Tensor] | Tensor]) -> None:
        """Take the present weights, trained elsewhere, as task zero: from data alone, no training.

        Args:
            batches: inputs of what the weights can do, as for ``end_task``; always probed.

        Raises:
            StateError: a task is running or has ended, or there is a network constraint, which is
                measured on a training.
        """
        if self.network is not None:
            raise StateError(
                "fit measures from data alone, and a network constraint on a training: begin with "
                "begin_task, or without network="
            )
        if self.task is not None or self.tasks_ended:
            raise StateError("fit comes before the first task: make a fresh Landscape for it")
        self._layout()
        travelled = {n: p.detach() * USUAL_WAY for n, p in self.parameters.items()}
        self._record(ProbeMeasurement(self._units, {}), travelled, batches)

    def begin_task(self, steps: int | None = None) -> None:
        """Start a task: look at the model afresh and take up the earlier tasks' constraint.

        Args:
            steps: the task's number of optimiser steps, if known. ``source="sgd"`` and
                LDC as published use it: their windows are then exact; otherwise they are found
                as the task grows.

        Raises:
            StateError: a task is running, or a layer changed in a way that cannot be followed.
        """
        if self.task is not None:
            raise StateError(
                "a task is already running: call end_task before begin_task, or abandon_task to "
                "forget it"
            )
        self._layout()
        share = self.options.use_hold_statistics if self.tasks_ended else 0.0
        statistics = MixedStatistics.begun(self.model, share)
        self.task = task = self.begun(self.constraints, self.tasks_ended, steps, statistics)
        try:
            task.warn_of_loose()
            if task.pulls:
                warn_of(self._unreached())
            with uncompiled():
                task.rehearse(self.inputs, self.model, self.forward, self.generator)
        except BaseException:
            self.abandon_task()
            raise

    def joining(self) -> AbstractContextManager[object]:
        """Let the network's next training pass serve ``rehearsal`` too, where it can.

        It saves time and changes no result: where the network mixes the inputs of a batch or has
        dropout, and without this, ``rehearsal`` makes a pass of its own.

        Returns:
            A context, for the pass. Outside a task nothing is done.
        """
        if self.task is None or self.task.rehearsal is None:
            return nullcontext()
        return self.task.rehearsal.joined(self.model, self.task.steps_made)

    def rehearsal(self) -> Tensor:
        """Return what to add to the loss of a step, so that the earlier tasks are rehearsed too.

        Left out, the constraint alone holds them. See ``flatcl.core.rehearsal``. With several
        heads, ``forward`` must choose each input's head by the batch's last part, task labels.

        Returns:
            A scalar, nats, to be differentiated: how far the network's predictions at
            ``pseudo_inputs`` draws are from what they were when the task began; 0 in the first task
            and where there is nothing to draw from.

        Raises:
            StateError: no task is running.
        """
        if self.task is None:
            raise StateError(_IDLE)
        if self.task.rehearsal is None:
            return torch.zeros((), device=self._device)
        with self.peers.silent():
            return self.task.rehearsal.loss(self.model, self.forward, self.task.steps_made)

    def step(self, batch_size: int | None = None) -> None:
        """Count one optimiser step, just made, and pull where a pull is due.

        Args:
            batch_size: of the step's gradient, the number of terms in the loss's mean (tokens
                count each) over all processes and accumulated parts; needed by ``source="sgd"``
                alone.

        Raises:
            StateError: no task is running, the batch size is missing, or the optimiser trains
                parameters that it did not train when the task began (seen where a pull is due).
        """
        if self.task is None:
            raise StateError(_IDLE)
        self.task.step(batch_size)

    def end_task(self, batches: Iterable[Sequence[Tensor] | Tensor] | None = None) -> None:
        """End the task: last pull, centre installed, stiffness measured and merged.

        Args:
            batches: of the task just learned, in random order, each a tensor of inputs or a
                sequence (inputs, …) as ``forward`` takes it; the first ``probe_inputs`` inputs are
                read. Needed by ``source="probe"`` and "fisher".

        Raises:
            StateError: no task is running, the source lacks what it needs, or what is trained has
                changed since the task began. After this and any other error but the next, the task
                runs on, nothing is recorded of it, and the call can be repeated.
            NonFiniteError: the weights are not finite; nothing is recorded of this task, and it
                runs no more.
        """
        task = self.task
        if task is None:
            raise StateError(_IDLE)
        if task.steps_made == 0:
            self.task = None
            return
        task.settle_()
        self.peers.adopt_(self.model.buffers())
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            self.abandon_task()
            raise NonFiniteError(
                "the weights are not finite at the task's end: the training diverged; lower the "
                "learning rate"
            )
        self._record(task.measurement, task.travelled(), batches)
        self.task = None

    def abandon_task(self) -> None:
        """Forget the running task, as after an exception; the weights are left as they are.

        Nothing is recorded of it. Without a running task nothing is done.
        """
        self.task = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show pulled weights while the body runs, then put the others back bit for bit.

        Yields:
            Nothing. Outside a task, right after a pull, and inside another ``evaluating``, the
            weights are left as they are.
        """
        with nullcontext() if self.task is None else self.task.pulled():
            yield

    def forecast(self, batches: Iterable[Sequence[Tensor] | Tensor] | None = None) -> Forecast:
        """Return the predicted rise of each earlier experience's loss, at pulled weights.

        Args:
            batches: some inputs of the running task, as for ``end_task``; they tell how far the
                quadratic can be trusted, and correct it. Not needed between tasks.

        Returns:
            The forecast, flagged where it is not to be trusted.

        Raises:
            StateError: strength is 0 and a task has ended: nothing was measured of it.
        """
        if self.tasks_ended and not self.constraints and not self.history.witnesses:
            raise StateError(
                "strength=0 measures nothing to forecast from: set strength or witnesses above 0"
            )
        tasks, running = self.tasks_ended, self.task is not None
        with uncompiled(), self.evaluating():
            return self.history.forecast(
                self._present(),
                self.constraints,
                batches,
                tasks=tasks,
                running=running,
                unheld=self._unreached(),
            )

    @property
    def over_budget(self) -> bool:
        """Whether ``on_budget="stop"`` asks to end the running task."""
        return self.task is not None and self.task.budget.crossed

    def _record(
        self,
        measurement: Measurement,
        travelled: Mapping[str, Tensor],
        batches: Iterable[Sequence[Tensor] | Tensor] | None,
    ) -> None:
        """Count a task as ended, and keep what is to be kept of it: all, or after an error nothing.

        The generator too is as it was then, so that a repetition finds the same.
        """
        kept, drawn = self._kept(), self.generator.get_state()
        if self.options.records or self.network is not None:
            try:
                self._add(kept, measurement, travelled, batches)
            except BaseException:
                self.generator.set_state(drawn)
                raise
        self._take_over(kept)

    def _add(
        self,
        kept: Kept,
        measurement: Measurement,
        travelled: Mapping[str, Tensor],
        batches: Iterable[Sequence[Tensor] | Tensor] | None,
    ) -> None:
        if batches is not None:
            batches = self.peers.joined(batches, self._device)
        end = TaskEnd(
            model=self.model,
            parameters=self.parameters,
            travelled=travelled,
            batches=batches,
            forward=under_present_autocast(self.forward, self._device),
            options=self.options,
            scale=self.probe_scale,
            generator=self.generator,
        )
        probed = isinstance(measurement, ProbeMeasurement) or self.network is not None
        if batches is not None and probed:
            end = replace(end, batches=end.inputs())  # read more than once
        with full_precision(self._device), self.peers.silent(), uncompiled():
            if self.options.strength > 0:
                network = replace(self._present(), forward=end.forward)
                kept.measure_(network, measurement, end, self.peers)
            if self.options.use_pseudo_inputs or self.options.witnesses:
                kept.take_in_(end, self.peers, self.tasks_ended)
            if self.network is not None:  # last: what it takes up cannot be taken back
                self.network.end_task(end)
