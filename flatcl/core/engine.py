"""Landscape: LDC without a framework. Begin a task, call it after each step, end the task."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatcl.core.centre import Centre
from flatcl.core.checkpoint import (
    VERSION,
    State,
    decode_constraints,
    encode_constraint,
    warn_of_changes,
)
from flatcl.core.constraint import Constraint
from flatcl.core.gradients import Forward
from flatcl.core.layers import Unit, matrix_views, trained_parameters
from flatcl.core.measure import Measurement, ProbeMeasurement, TaskEnd, combined
from flatcl.core.metric import StepMetric
from flatcl.core.options import LDCOptions
from flatcl.core.pull import TIERS, by_falling_stiffness
from flatcl.core.schedule import PullSchedule
from flatcl.core.windows import TrainingMeasurement
from flatcl.errors import NonFiniteError, StateError

_log = logging.getLogger("flatcl")


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
        self._in_task = False
        self._layout()

    def begin_task(self, steps: int | None = None) -> None:
        """Start a task: look at the model afresh and take up the earlier tasks' constraint.

        Args:
            steps: the task's number of optimiser steps, if known. Only ``source="sgd"`` uses it:
                its windows, the last 20 % and 10 %, are then exact; otherwise they are found as
                the task grows.

        Raises:
            StateError: a task is running, or a layer changed in a way that cannot be followed.
        """
        if self._in_task:
            raise StateError("a task is already running: call end_task before begin_task")
        self._layout()
        self._in_task = True
        self._step = 0
        self._schedule = PullSchedule(
            self._units,
            self._parameters,
            self.constraints,
            self.metric,
            self.options.strength_over(self.tasks_ended),
        )
        self._centre = Centre(self.model, self._parameters.values())
        self._start = [p.detach().clone() for p in self._parameters.values()]
        self._watching = self.options.source == "sgd" and self._active
        self._measurement: Measurement = (
            TrainingMeasurement(self._units, self.constraints, steps, self.options.use_damping)
            if self._watching
            else ProbeMeasurement(self._units, self.constraints)
        )

    def step(self, batch_size: int | None = None) -> None:
        """Count one optimiser step, just made; every ``interval`` steps, pull.

        Args:
            batch_size: of the step's gradient; needed by ``source="sgd"`` alone.

        Raises:
            StateError: no task is running, or the batch size is missing.
        """
        if not self._in_task:
            raise StateError("no task is running: call begin_task first")
        self._step += 1
        self._schedule.count()
        if self._watching:
            self._measurement.watch(self._step, self._parameters, batch_size)
        if self._step % self.options.interval == 0:
            self._schedule.pull_(self._schedule.due())
            self._sample()

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
        if not self._in_task:
            raise StateError("no task is running: call begin_task first")
        if self._step == 0:
            self._in_task = False
            return
        mid_tooth = any(self._schedule.since(0))
        self._schedule.pull_(TIERS)
        if mid_tooth:
            self._sample()
        self._centre.install_(self._step)
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters.values()):
            raise NonFiniteError(
                "the weights are not finite at the task's end: the training diverged; lower the "
                "learning rate"
            )
        if self._active:
            self._record(batches)
        self.tasks_ended += 1
        self._in_task = False
        del self._start, self._schedule, self._centre, self._measurement  # of a task only

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show pulled weights while the body runs, then put the others back bit for bit.

        Yields:
            Nothing. Outside a task, or right after a pull, the weights are left as they are.
        """
        if not self._in_task or not any(self._schedule.since(0)) or not self.constraints:
            yield
            return
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        marks = self._schedule.marks()
        self._schedule.pull_(TIERS)
        self._schedule.restore(marks)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self._parameters[name].copy_(value)

    def energy(self) -> Tensor:
        """Return Σ ½ xᵀKx over all units, the predicted rise of the earlier tasks' loss.

        Returns:
            A scalar, nats, on the model's device.
        """
        total = next(iter(self._parameters.values())).new_zeros(())
        for unit in self._units:
            if unit.name in self.constraints:
                constraint = self.constraints[unit.name]
                weight = unit.gather(self._parameters).detach().to(constraint.anchor.dtype)
                total = total + constraint.energy(weight)
        return total

    def bytes_held(self) -> int:
        """Return the bytes kept between tasks; they do not grow with their number.

        Returns:
            Bytes of bases, stiffness and anchors, without the model and its optimiser.
        """
        encoded = (encode_constraint(c).values() for c in self.constraints.values())
        return sum(t.numel() * t.element_size() for tensors in encoded for t in tensors)

    def state_dict(self) -> State:
        """Return what is held between tasks, to be saved with ``torch.save``.

        Returns:
            Tensors, numbers, strings and dicts keyed by parameter name; the tensors are shared
            with the landscape, as in ``nn.Module.state_dict``.

        Raises:
            StateError: a task is running; save between tasks.
        """
        if self._in_task:
            raise StateError("a task is running: save the landscape between tasks")
        return {
            "version": VERSION,
            "options": asdict(self.options),
            "tasks_ended": self.tasks_ended,
            "probe_scale": self.probe_scale,
            "generator": self.generator.get_state(),
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
        if self._in_task:
            raise StateError("a task is running: load a state between tasks")
        views = {unit.name: unit.gather(self._parameters).detach() for unit in self._units}
        constraints = decode_constraints(state, views)
        warn_of_changes(state["options"], asdict(self.options))
        self.constraints = constraints
        self.tasks_ended = int(state["tasks_ended"])
        self.probe_scale = state["probe_scale"]
        self.generator.set_state(state["generator"].cpu())
        self._layout()

    @property
    def _active(self) -> bool:
        return self.options.strength > 0

    def _layout(self) -> None:
        self._units: list[Unit] = matrix_views(self.model)
        self._parameters = trained_parameters(self.model)
        for unit in self._units:
            if unit.name in self.constraints:
                weight = unit.gather(self._parameters).detach()
                grown = self.constraints[unit.name].grown_to(weight)
                self.constraints[unit.name] = grown

    def _sample(self) -> None:
        if self.options.use_centre:
            self._centre.sample(self._step)

    def _record(self, batches: Iterable[Sequence[Tensor] | Tensor] | None) -> None:
        travelled = {
            name: p.detach() - start
            for (name, p), start in zip(self._parameters.items(), self._start, strict=True)
        }
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
        found = self._measurement.stiffness(end)
        self.probe_scale = found.scale
        for unit in self._units:
            merged, lost = combined(
                unit,
                self.constraints.get(unit.name),
                found,
                unit.gather(self._parameters).detach(),
            )
            self.constraints[unit.name] = by_falling_stiffness(merged)
            _log.debug("%s: %.3f of the old constraint lies off the new basis", unit.name, lost)
