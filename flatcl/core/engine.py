"""Landscape: LDC without a framework. Begin a task, call it after each step, end the task."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatcl.core.checkpoint import (
    VERSION,
    decode_constraints,
    encode_constraint,
    generator_from,
    warn_of_changes,
)
from flatcl.core.constraint import Constraint
from flatcl.core.describe import Description, describe
from flatcl.core.distributed import Peers, unwrapped
from flatcl.core.gradients import Forward, chunked
from flatcl.core.layers import Unit, matrix_views, trained_parameters
from flatcl.core.measure import TaskEnd, combined
from flatcl.core.metric import StepMetric
from flatcl.core.network import NetworkConstraint
from flatcl.core.options import LDCOptions
from flatcl.core.precision import full_precision, under_present_autocast
from flatcl.core.pull import by_falling_stiffness
from flatcl.core.saved import State, entry
from flatcl.core.task import RunningTask
from flatcl.core.variants import varied
from flatcl.errors import NonFiniteError, StateError

_log = logging.getLogger("flatcl")
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
        forward: from a batch (its tensors) to outputs [..., C]; None for ``model(batch[0])``. Where
            the classes are not the last dimension, or are no classes: see ``gradients.Forward``.
        network: a constraint on all parameters together, beside the units' own, or in their place
            with strength 0.

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
        network: NetworkConstraint | None = None,
    ) -> None:
        self.options = options or LDCOptions()
        self.forward: Forward = forward or self._of_inputs
        self.network = network
        self.metric = StepMetric(optimizer)
        self.attach(model, optimizer)
        self.constraints: dict[str, Constraint] = {}
        self.tasks_ended = 0
        self.probe_scale: float | None = None
        self.generator = torch.Generator().manual_seed(self.options.seed)
        self._task: RunningTask | None = None
        self._layout()

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Go on with another model or optimiser object, between tasks.

        Args:
            model: the network; parameters are known by their names. If it is wrapped in
                ``DistributedDataParallel``, all its processes take part in ``end_task``.
            optimizer: the one that trains it.
        """
        self.model, self.peers = unwrapped(model), Peers(model)
        if self.metric.optimizer is not optimizer:
            self.metric = StepMetric(optimizer)

    def begin_task(self, steps: int | None = None) -> None:
        """Start a task: look at the model afresh and take up the earlier tasks' constraint.

        Args:
            steps: the task's number of optimiser steps, if known. ``source="sgd"`` and
                LDC as published use it: their windows are then exact; otherwise they are found
                as the task grows.

        Raises:
            StateError: a task is running, or a layer changed in a way that cannot be followed.
        """
        if self._task is not None:
            raise StateError("a task is already running: call end_task before begin_task")
        self._layout()
        self._task = self._begun(self.constraints, self.tasks_ended, steps)

    def step(self, batch_size: int | None = None) -> None:
        """Count one optimiser step, just made; every ``interval`` steps, pull.

        Args:
            batch_size: of the step's gradient, the number of terms in the loss's mean (tokens
                count each) over all processes and accumulated parts; needed by ``source="sgd"``
                alone.

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
                read. Needed by ``source="probe"`` and "fisher".

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
        self.peers.adopt_(self.model.buffers())
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters.values()):
            raise NonFiniteError(
                "the weights are not finite at the task's end: the training diverged; lower the "
                "learning rate"
            )
        if self.options.strength > 0 or self.network is not None:
            self._record(task, batches)
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
        total = next(iter(self._parameters.values())).new_zeros(())
        for unit in self._units:
            if unit.name in self.constraints:
                constraint = self.constraints[unit.name]
                weight = unit.gather(self._parameters).detach().to(constraint.anchor.dtype)
                total = total + constraint.energy(weight)
        return total if self.network is None else total + self.network.energy(self._parameters)

    def bytes_held(self) -> int:
        """Return the bytes kept between tasks; they do not grow with their number.

        Returns:
            Bytes of bases, stiffness and anchors, without the model and its optimiser.
        """
        encoded = [encode_constraint(c) for c in self.constraints.values()]
        if self.network is not None:
            encoded.append(self.network.state_dict())
        tensors = [t for state in encoded for t in state.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def describe(self) -> Description:
        """Return how every parameter is held, or why it is not; ``print`` shows a table.

        Returns:
            One line a parameter, with the bytes held after a task; before one, those to come.
        """
        return describe(self.model, matrix_views(self.model), self.constraints, self.options)

    def state_dict(self) -> State:
        """Return all that is held, a running task's progress included, for ``torch.save``.

        With the states of the model, the optimiser and its scheduler, taken after the same
        ``step``, training goes on bit for bit.

        Returns:
            Tensors, numbers, strings, lists, None and dicts keyed by parameter name. Later steps
            do not change it: constraints are never written to, the rest is copied.

        Raises:
            StateError: a task is running under a network constraint; save between tasks.
        """
        if self._task is not None and self.network is not None:
            raise StateError("a network constraint is saved between tasks only: end the task first")
        return {
            "version": VERSION,
            "options": asdict(self.options),
            "tasks_ended": self.tasks_ended,
            "probe_scale": self.probe_scale,
            "generator": self.generator.get_state(),
            "constraints": {n: encode_constraint(c) for n, c in self.constraints.items()},
            **({} if self.network is None else {"network": self.network.state_dict()}),
            "task": None if self._task is None else self._task.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a saved state; the model must have the parameters that it names.

        If a task was running, it goes on: call ``step`` next, not ``begin_task``. Options that
        differ from this landscape's are named in a warning; this landscape's count.

        Args:
            state: from ``state_dict``.

        Raises:
            StateError: a task is running, the version is unknown, a parameter is missing, a
                shape does not fit, or only one of the two has a network constraint; nothing is
                changed then.
        """
        if self._task is not None:
            raise StateError("a task is running: load a state between tasks")
        self._layout()
        views = {unit.name: unit.gather(self._parameters).detach() for unit in self._units}
        constraints = decode_constraints(state, views)
        if (self.network is None) == ("network" in state):
            raise StateError(
                "the saved state and this landscape differ in having a network constraint: make "
                "the landscape as the one that was saved"
            )
        tasks_ended, scale = (entry(state, k, "landscape") for k in ("tasks_ended", "probe_scale"))
        generator = generator_from(entry(state, "generator", "landscape"))
        task, running = None, state.get("task")
        if running is not None:
            task = self._begun(constraints, tasks_ended, entry(running, "steps", "task"))
            task.load_state_dict(running)
        if self.network is not None:
            self.network.load_state_dict(state["network"], self._parameters)
        warn_of_changes(entry(state, "options", "landscape"), asdict(self.options))
        self.constraints, self.generator, self._task = constraints, generator, task
        self.tasks_ended, self.probe_scale = tasks_ended, scale

    def _of_inputs(self, batch: Sequence[Tensor]) -> Tensor:
        outputs: Tensor = self.model(batch[0])
        return outputs

    def _begun(
        self, constraints: Mapping[str, Constraint], tasks_ended: int, steps: int | None
    ) -> RunningTask:
        return RunningTask(
            self.model,
            self._units,
            self._parameters,
            constraints,
            self.metric,
            self.options,
            strength=self.options.strength_over(tasks_ended),
            steps=steps,
            network=self.network,
        )

    def _layout(self) -> None:
        self._units: list[Unit] = matrix_views(self.model)
        self._parameters = trained_parameters(self.model)
        self._device = next(iter(self._parameters.values())).device
        for unit in self._units:
            if unit.name in self.constraints:
                weight = unit.gather(self._parameters).detach()
                here = self.constraints[unit.name].to(weight.device)
                self.constraints[unit.name] = here.grown_to(weight)

    def _record(
        self, task: RunningTask, batches: Iterable[Sequence[Tensor] | Tensor] | None
    ) -> None:
        if batches is not None:
            batches = self.peers.joined(batches, self._device)
        if self.network is not None and batches is not None:
            n, size = self.options.probe_inputs, self.options.probe_batch
            # They are read twice.
            batches = chunked(batches, inputs=n, size=size, device=self._device)
        end = TaskEnd(
            model=self.model,
            parameters=self._parameters,
            travelled=task.travelled(),
            batches=batches,
            forward=under_present_autocast(self.forward, self._device),
            options=self.options,
            scale=self.probe_scale,
            generator=self.generator,
        )
        with full_precision(self._device), self.peers.silent():
            if self.network is not None:
                self.network.end_task(end)
            if self.options.strength == 0:
                return
            found = task.measurement.stiffness(end)
            self.probe_scale = found.scale
            found = varied(found, self.constraints, self.options, self.generator)
            for unit in self._units:
                anchor = unit.gather(self._parameters).detach()
                old = self.constraints.get(unit.name)
                merged, lost = combined(unit, old, found, anchor)
                self.constraints[unit.name] = by_falling_stiffness(merged)
                self.peers.adopt_constraint_(self.constraints[unit.name])
                _log.debug("%s: %.3f of the old constraint lies off the new basis", unit.name, lost)
