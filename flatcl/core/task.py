"""One task from its beginning to its end: what is counted, pulled and sampled meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatcl.core.budget import BudgetWatch
from flatcl.core.centre import Centre
from flatcl.core.constraint import Constraint
from flatcl.core.layers import Unit
from flatcl.core.measure import Measurement, ProbeMeasurement
from flatcl.core.metric import StepMetric
from flatcl.core.options import LDCOptions
from flatcl.core.pull import TIERS
from flatcl.core.schedule import PullSchedule
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
    ) -> None:
        self.parameters, self.options = parameters, options
        self.steps_made = 0
        self.schedule = PullSchedule(units, parameters, constraints, metric, strength)
        limit = None if options.budget is None else options.budget * earlier
        self.budget = BudgetWatch(limit, options.on_budget)
        self.centre = Centre(model, parameters.values())
        self.start = [p.detach().clone() for p in parameters.values()]
        self.watching = options.source == "sgd" and options.strength > 0
        self.measurement: Measurement = (
            TrainingMeasurement(units, constraints, steps, options.use_damping)
            if self.watching
            else ProbeMeasurement(units, constraints)
        )

    def step(self, batch_size: int | None) -> None:
        """Count one optimiser step, just made; every ``interval`` steps, pull.

        Args:
            batch_size: of the step's gradient; needed by ``source="sgd"`` alone.
        """
        self.steps_made += 1
        self.schedule.count()
        if self.watching:
            self.measurement.watch(self.steps_made, self.parameters, batch_size)
        if self.steps_made % self.options.interval == 0:
            self.schedule.pull_(self.schedule.due())
            self._sample()
            self.budget.check_(self.schedule)

    def settle_(self) -> None:
        """Pull a last time and set the model to the centre of its fluctuation."""
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
            Nothing. Right after a pull the weights are left as they are.
        """
        if not any(self.schedule.since(0)) or not self.schedule.held:
            yield
            return
        kept = [p.detach().clone() for p in self.parameters.values()]
        marks = self.schedule.marks()
        self.schedule.pull_(TIERS)
        self.schedule.restore(marks)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters.values(), kept, strict=True):
                    parameter.copy_(value)

    def _sample(self) -> None:
        if self.options.use_centre:
            self.centre.sample(self.steps_made)
