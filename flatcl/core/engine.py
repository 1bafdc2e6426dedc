"""Landscape: LDC without a framework. Begin a task, call it after each step, end the task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatcl.core.checkpoint import (
    VERSION,
    State,
    bytes_of,
    decode_constraints,
    encode_constraint,
    warn_of_changes,
)
from flatcl.core.constraint import Constraint
from flatcl.core.forecast import Forecast, History
from flatcl.core.gradients import Forward
from flatcl.core.growth import Network
from flatcl.core.layers import Unit, matrix_views, trained_parameters
from flatcl.core.measure import Measurement, ProbeMeasurement, TaskEnd
from flatcl.core.metric import StepMetric
from flatcl.core.options import LDCOptions
from flatcl.core.record import record_
from flatcl.core.task import RunningTask
from flatcl.errors import NonFiniteError, StateError

# What a task's way is taken for where none was travelled, as a share of ‖W‖. Perceptrons on MNIST
# streams travel .1 to .45 a layer; a larger share holds the fitted task more and teaches less.
USUAL_WAY = 0.2
_IDLE = "no task is running: call begin_task first"


class Landscape:
    """Holds what earlier tasks need, in any PyTorch loop.

    ::

        landscape = Landscape(model, optimizer)
        for loader in tasks:
            landscape.begin_task()
            for x, y in loader:
                optimizer.zero_grad()
                loss_function(model(x), y).backward()
                optimizer.step()
                landscape.step()
            landscape.end_task(loader)

    It never touches ``.grad``, the optimiser's state, frozen parameters, module modes or the global
    random state. Weights change at pulls and once at a task's end, when the centre is installed;
    running statistics of normalisation layers then become their mean over the same instants.

    Args:
        model: the network; heads may be added or grow between tasks.
        optimizer: the one that trains it.
        options: see ``LDCOptions``; None for the defaults.
        forward: from a batch (its tensors) to outputs [..., C]; None for ``model(batch[0])``.

    Raises:
        OptionError: the model has no trainable parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        options: LDCOptions | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.model = model
        self.options = options or LDCOptions()
        self.forward: Forward = forward or (lambda batch: self.model(batch[0]))
        self.metric = StepMetric(optimizer)
        self.constraints: dict[str, Constraint] = {}
        self.tasks_ended = 0
        self.probe_scale: float | None = None
        self.generator = torch.Generator().manual_seed(self.options.seed)
        self.history = History()
        self._task: RunningTask | None = None
        self._layout()

    def fit(self, batches: Iterable[Sequence[Tensor] | Tensor]) -> None:
        """Take the present weights, trained elsewhere, as task zero: from data alone, no training.

        Args:
            batches: inputs of what the weights can do, as for ``end_task``; always probed.

        Raises:
            StateError: a task is running or has ended.
        """
        if self._task is not None or self.tasks_ended:
            raise StateError("fit comes before the first task: make a fresh Landscape for it")
        self._layout()
        if self.options.strength > 0:
            travelled = {n: p.detach() * USUAL_WAY for n, p in self._parameters.items()}
            self._record(ProbeMeasurement(self._units, {}), travelled, batches)
        self.tasks_ended = 1

    def begin_task(self, steps: int | None = None) -> None:
        """Start a task: look at the model afresh and take up the earlier tasks' constraint.

        Args:
            steps: the task's number of optimiser steps, if known. Only ``source="sgd"`` uses it:
                its windows, the last 20 % and 10 %, are then exact; otherwise they are found as
                the task grows.

        Raises:
            StateError: a task is running, or a layer changed in a way that cannot be followed.
        """
        if self._task is not None:
            raise StateError("a task is already running: call end_task before begin_task")
        self._layout()
        self._task = RunningTask(
            self.model,
            self._units,
            self._parameters,
            self.constraints,
            self.metric,
            self.options,
            strength=self.options.strength_over(self.tasks_ended),
            earlier=self.tasks_ended,
            steps=steps,
        )

    def step(self, batch_size: int | None = None) -> None:
        """Count one optimiser step, just made; every ``interval`` steps, pull.

        Args:
            batch_size: of the step's gradient; needed by ``source="sgd"`` alone.

        Raises:
            StateError: no task is running, or the batch size is missing.
        """
        if self._task is None:
            raise StateError(_IDLE)
        self._task.step(batch_size)

    def end_task(self, batches: Iterable[Sequence[Tensor] | Tensor] | None = None) -> None:
        """End the task: last pull, centre installed, stiffness measured and merged.

        Args:
            batches: of the task just learned, in random order, each a tensor of inputs or a
                sequence (inputs, …) as ``forward`` takes it; the first ``probe_inputs`` inputs are
                read. Needed by ``source="probe"``.

        Raises:
            StateError: no task is running, or the source lacks what it needs.
            NonFiniteError: the weights are not finite; nothing is recorded of this task.
        """
        task = self._task
        if task is None:
            raise StateError(_IDLE)
        if task.steps_made == 0:
            self._task = None
            return
        task.settle_()
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters.values()):
            raise NonFiniteError(
                "the weights are not finite at the task's end: the training diverged; lower the "
                "learning rate"
            )
        if self.options.strength > 0:
            self._record(task.measurement, task.travelled(), batches)
        self.tasks_ended += 1
        self._task = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show pulled weights while the body runs, then put the others back bit for bit.

        Yields:
            Nothing. Outside a task, or right after a pull, the weights are left as they are.
        """
        with nullcontext() if self._task is None else self._task.pulled():
            yield

    def energy(self) -> Tensor:
        """Return Σ ½ xᵀKx over all units, the predicted rise of the earlier tasks' loss.

        Returns:
            A scalar, nats, on the model's device.
        """
        return self._network().energy(self.constraints)

    def forecast(self, batches: Iterable[Sequence[Tensor] | Tensor] | None = None) -> Forecast:
        """Return the predicted rise of each earlier experience's loss, at pulled weights.

        Args:
            batches: some inputs of the running task, as for ``end_task``; they tell how far the
                quadratic forecast can be trusted, and correct it. Not needed between tasks.

        Returns:
            The forecast, flagged where it is not to be trusted.

        Raises:
            StateError: strength is 0 and a task has ended: nothing was measured of it.
        """
        if self.tasks_ended and not self.constraints:
            raise StateError("strength=0 measures nothing to forecast from: set strength above 0")
        tasks, running = self.tasks_ended, self._task is not None
        with self.evaluating():
            return self.history.forecast(
                self._network(), self.constraints, batches, tasks=tasks, running=running
            )

    @property
    def over_budget(self) -> bool:
        """Whether ``on_budget="stop"`` asks to end the running task."""
        return self._task is not None and self._task.budget.crossed

    def bytes_held(self) -> int:
        """Return the bytes kept between tasks; without ``per_task`` their number is no matter.

        Returns:
            Bytes of bases, stiffness and anchors, without the model and its optimiser.
        """
        return bytes_of(self.constraints) + self.history.bytes_held()

    def state_dict(self) -> State:
        """Return what is held between tasks, to be saved with ``torch.save``.

        Returns:
            Tensors, numbers, strings and dicts keyed by parameter name; the tensors are shared
            with the landscape, as in ``nn.Module.state_dict``.

        Raises:
            StateError: a task is running; save between tasks.
        """
        if self._task is not None:
            raise StateError("a task is running: save the landscape between tasks")
        return {
            "version": VERSION,
            "options": asdict(self.options),
            "tasks_ended": self.tasks_ended,
            "probe_scale": self.probe_scale,
            "generator": self.generator.get_state(),
            "history": self.history.state_dict(),
            "constraints": {n: encode_constraint(c) for n, c in self.constraints.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a saved state; the model must have the parameters that it names.

        Options of the saved state that differ from this landscape's are named in a warning; this
        landscape's count.

        Args:
            state: from ``state_dict``.

        Raises:
            StateError: a task is running, the version is unknown, a parameter is missing, or a
                shape does not fit; nothing is changed then.
        """
        if self._task is not None:
            raise StateError("a task is running: load a state between tasks")
        views = {unit.name: unit.gather(self._parameters).detach() for unit in self._units}
        constraints = decode_constraints(state, views)
        self.history = History.from_state(state.get("history"), views)
        warn_of_changes(state["options"], asdict(self.options))
        self.constraints = constraints
        self.tasks_ended = int(state["tasks_ended"])
        self.probe_scale = state["probe_scale"]
        self.generator.set_state(state["generator"].cpu())
        self._layout()

    def _layout(self) -> None:
        self._units: list[Unit] = matrix_views(self.model)
        self._parameters = trained_parameters(self.model)
        for unit in self._units:
            if (held := self.constraints.get(unit.name)) is not None:
                self.constraints[unit.name] = held.grown_to(unit.gather(self._parameters).detach())

    def _network(self) -> Network:
        return Network(self.model, self._units, self._parameters, self.forward)

    def _record(
        self,
        measurement: Measurement,
        travelled: Mapping[str, Tensor],
        batches: Iterable[Sequence[Tensor] | Tensor] | None,
    ) -> None:
        end = TaskEnd(
            model=self.model,
            parameters=self._parameters,
            travelled=travelled,
            batches=batches,
            forward=self.forward,
            options=self.options,
            scale=self.probe_scale,
            generator=self.generator,
        )
        network = self._network()
        self.probe_scale = record_(self.constraints, self.history, network, measurement, end)
