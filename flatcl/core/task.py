"""One task from its beginning to its end: what is counted, pulled and sampled meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatcl.core.budget import BudgetWatch
from flatcl.core.centre import Centre
from flatcl.core.constraint import Constraint
from flatcl.core.gaussians import InputGaussians
from flatcl.core.gradients import Forward
from flatcl.core.layers import Unit
from flatcl.core.measure import Measurement, ProbeMeasurement
from flatcl.core.metric import StepMetric
from flatcl.core.network import NetworkConstraint
from flatcl.core.options import LDCOptions
from flatcl.core.pull import TIERS
from flatcl.core.rehearsal import Rehearsal
from flatcl.core.saved import State, entry, same_names, tensor_like
from flatcl.core.schedule import PullSchedule
from flatcl.core.statistics import MixedStatistics, running_statistics
from flatcl.core.trained import TrainedWatch
from flatcl.core.windows import TrainingMeasurement


class RunningTask:
    """A task that has begun and not ended.

    Args:
        model: the network.
        units: how its parameters are held.
        parameters: its trainable parameters by name.
        constraints: of the earlier tasks, by unit's name.
        metric: of the optimiser.
        options: of LDC.
        strength: γ of the constraints in this task.
        earlier: number of the tasks that the constraints hold.
        steps: the task's number of steps, if known.
        statistics: mixed while it runs.
        network: a constraint on all parameters, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        parameters: Mapping[str, Tensor],
        constraints: Mapping[str, Constraint],
        metric: StepMetric,
        options: LDCOptions,
        *,
        strength: float,
        earlier: int,
        steps: int | None,
        statistics: MixedStatistics,
        network: NetworkConstraint | None = None,
    ) -> None:
        self.units, self.parameters, self.options = units, parameters, options
        self.steps = steps
        self.steps_made = 0
        self.schedule = PullSchedule(
            units, parameters, constraints, metric, strength, options.interval, network
        )
        self.network, self.earlier = network, earlier
        self.watch = TrainedWatch(model, parameters, metric.optimizer)
        self.rehearsal: Rehearsal | None = None
        if network is not None:
            network.begin_task(parameters, steps)
        limit = None if options.budget is None else options.budget * earlier
        self.budget = BudgetWatch(limit, options.on_budget)
        self.statistics = statistics
        self._shown = False  # whether pulled weights are
        self.centre = Centre({**parameters, **running_statistics(model)})
        self.start = [p.detach().clone() for p in parameters.values()]
        self.watching = options.source == "sgd" and options.strength > 0
        shared = {} if options.varied else constraints  # a variant is of the task's own basis
        self.measurement: Measurement = (
            TrainingMeasurement(units, shared, steps, options)
            if self.watching
            else ProbeMeasurement(units, shared)
        )

    def begin_(self) -> None:
        """Put in force what stays so while the task runs."""
        self.statistics.mix_()
        if self.pulls:
            self.watch.begin_()

    def release_(self) -> None:
        """Leave the model and the optimiser to themselves again."""
        self.statistics.release_()
        self.watch.end_()

    @property
    def pulls(self) -> bool:
        """Whether there are earlier tasks' weights to pull to."""
        return self.earlier > 0 and self.schedule.holds

    def rehearse(
        self,
        inputs: InputGaussians,
        model: nn.Module,
        forward: Forward,
        generator: torch.Generator,
    ) -> None:
        """Rehearse the earlier tasks from now on, if the options say so and there are inputs.

        Args:
            inputs: of the earlier tasks.
            model: the network, at the weights that the task begins with.
            forward: from a batch to outputs [..., C].
            generator: of pseudo-inputs, on the CPU.
        """
        if (number := self.options.use_pseudo_inputs) and inputs.groups:
            self.rehearsal = Rehearsal.begun(
                inputs, model, forward, number=number, generator=generator
            )

    def warn_of_loose(self) -> None:
        """Warn of parameters that are held and in no group of the optimiser."""
        if self.pulls:
            held = [name for unit in self.schedule.held for name in unit.names]
            self.watch.warn_of_loose(held if self.network is None else self.parameters)

    def step(self, batch_size: int | None) -> None:
        """Count one optimiser step, just made, and pull where a pull is due.

        Args:
            batch_size: of the step's gradient; needed by ``source="sgd"`` alone.
        """
        self.steps_made += 1
        self.watch.count()
        self.statistics.follow_()
        self.schedule.count()
        if self.watching:
            self.measurement.watch(self.steps_made, self.parameters, batch_size)
        if self.network is not None:
            self.network.watch(self.steps_made, self.parameters)
        if tiers := self.schedule.due():
            self.watch.check()
            if not self.schedule.pull_(tiers):
                warnings.warn(
                    "nothing was pulled: no parameter of the earlier tasks has a gradient; call "
                    "step() right after the optimiser's, before zero_grad()",
                    stacklevel=3,
                )
            self._sample()
            self.budget.check_(self.schedule)

    def settle_(self) -> None:
        """Pull a last time and set the model to the centre of its fluctuation.

        Done twice, it changes nothing the second time.
        """
        self.watch.check()
        if self.options.strength > 0 and not self.watching:
            self.watch.check_measurable()
        pairs = zip(self.parameters.values(), self.start, strict=True)
        if self.watch.idle and any(bool((p.detach() != start).any()) for p, start in pairs):
            self.watch.warn_of_idleness()
        mid_tooth = any(self.schedule.since(0))
        self.schedule.pull_(TIERS)
        if mid_tooth:
            self._sample()
        self.centre.install_(self.steps_made)

    def travelled(self) -> dict[str, Tensor]:
        """Return each parameter's displacement since the task began.

        Returns:
            Name → displacement, w.
        """
        pairs = zip(self.parameters.items(), self.start, strict=True)
        return {name: p.detach() - start for (name, p), start in pairs}

    @contextmanager
    def pulled(self) -> Iterator[None]:
        """Show pulled weights while the body runs, then put the others back bit for bit.

        Yields:
            Nothing. Right after a pull, and inside another such context, the weights are left as
            they are.
        """
        if self._shown or not any(self.schedule.since(0)) or not self.schedule.holds:
            yield
            return
        kept = [p.detach().clone() for p in self.parameters.values()]
        marks = self.schedule.marks()
        self._shown = True
        try:
            try:
                self.schedule.pull_(TIERS)
            finally:
                self.schedule.restore(marks)
            yield
        finally:
            self._shown = False
            with torch.no_grad():
                for parameter, value in zip(self.parameters.values(), kept, strict=True):
                    parameter.copy_(value)

    def state_dict(self) -> State:
        """Return all that the rest of the task depends on, beside model and optimiser.

        Returns:
            Plain state, copied, so that later steps do not change it.
        """
        pairs = zip(self.parameters, self.start, strict=True)
        return {
            "steps": self.steps,
            "steps_made": self.steps_made,
            "statistics": self.statistics.state_dict(),
            "start": {name: tensor.clone() for name, tensor in pairs},
            "schedule": self.schedule.state_dict(),
            "centre": self.centre.state_dict(),
            "measurement": self.measurement.state_dict(),
            "over_budget": self.budget.crossed,
            "rehearsal": None if self.rehearsal is None else self.rehearsal.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state; a task that refused one is not to be used.

        Args:
            state: from ``state_dict``, of a task of the same model, optimiser and options.
        """
        start = entry(state, "start", "task")
        same_names(start, self.parameters, "task")
        self.start = [tensor_like(start, name, p, "task") for name, p in self.parameters.items()]
        self.steps_made = int(entry(state, "steps_made", "task"))
        self.schedule.load_state_dict(entry(state, "schedule", "task"))
        self.centre.load_state_dict(entry(state, "centre", "task"))
        views = {unit.name: unit.gather(self.parameters).detach() for unit in self.units}
        self.measurement.load_state_dict(entry(state, "measurement", "task"), views)
        self.budget.crossed = bool(entry(state, "over_budget", "task"))
        if (saved := state.get("rehearsal")) is not None:
            self.rehearsal = Rehearsal.from_state(saved, self.start[0].device)

    def _sample(self) -> None:
        if self.options.use_centre:
            self.centre.sample(self.steps_made)
