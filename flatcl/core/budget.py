"""A limit on what a task may cost the tasks before it, checked right after pulls."""

from __future__ import annotations

from dataclasses import dataclass

from flatcl.core.options import OnBudget
from flatcl.core.precision import full_precision
from flatcl.core.schedule import PullSchedule

_FASTEST = 2.0  # factor by which one check may raise the strength


@dataclass
class BudgetWatch:
    """Holds the constraint's energy against a limit; reads it on the host once a pull.

    Attributes:
        limit: nats, summed over the earlier tasks; None for none, and then nothing is read.
        on_budget: see ``LDCOptions``.
        crossed: whether "stop" has found the limit crossed.
    """

    limit: float | None
    on_budget: OnBudget
    crossed: bool = False

    def check_(self, schedule: PullSchedule) -> None:
        """Compare the energy with the limit; beyond it stop, or strengthen later pulls.

        Args:
            schedule: right after a pull.
        """
        if self.limit is None or not schedule.held:
            return
        views = [(unit, unit.gather(schedule.parameters).detach()) for unit in schedule.held]
        with full_precision(views[0][1].device):
            energy = float(sum(schedule.constraints[unit.name].energy(v) for unit, v in views))
        if energy <= self.limit:
            return
        if self.on_budget == "stop":
            self.crossed = True
        else:
            schedule.strengthen_(min(_FASTEST, energy / self.limit))
