"""When which input directions are pulled, and by how much, in one task."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.layers import Unit
from flatcl.core.metric import StepMetric
from flatcl.core.pull import TIERS, PullState, correction

Marks: TypeAlias = tuple[dict[str, PullState], list[list[float]], int]


class PullSchedule:
    """Pulls a model's held units; tier j of their columns at every 2^j-th pull.

    Args:
        units: the model's units.
        parameters: its parameters by name.
        constraints: of the earlier tasks, by unit's name.
        metric: of the optimiser.
        strength: γ.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        parameters: Mapping[str, Tensor],
        constraints: Mapping[str, Constraint],
        metric: StepMetric,
        strength: float,
    ) -> None:
        self.held = [unit for unit in units if unit.name in constraints]
        self.parameters, self.constraints = parameters, constraints
        self.metric, self.strength = metric, strength
        # Σ η since the task began, one number a parameter group; and what it was when each tier
        # was last visited.
        self.travelled = [0.0] * len(metric.optimizer.param_groups)
        self.visited = [list(self.travelled) for _ in range(TIERS)]
        self.pulls = 0
        self.states = {unit.name: PullState() for unit in self.held}

    def count(self) -> None:
        """Count one step of the optimiser, at its present learning rates."""
        for i, group in enumerate(self.metric.optimizer.param_groups):
            self.travelled[i] += group["lr"]

    def since(self, tier: int) -> list[float]:
        """Return Σ η since a tier was last visited.

        Args:
            tier: 0 for the quickest.

        Returns:
            One number a parameter group; all 0 right after a visit.
        """
        return [float(a - b) for a, b in zip(self.travelled, self.visited[tier], strict=True)]

    def due(self) -> int:
        """Return the number of tiers that the next pull visits.

        Returns:
            1 … ``TIERS``; all at a task's first pull.
        """
        return next((j for j in range(TIERS) if self.pulls % 2**j), TIERS)

    @torch.no_grad()
    def pull_(self, tiers: int) -> None:
        """Pull every held unit, in place; tiers left out gather their steps.

        Args:
            tiers: how many to visit, from the quickest.
        """
        waited = [self.since(tier) for tier in range(tiers)]
        travelled = waited[0] if any(waited[0]) else waited[-1]
        whole = sum(travelled)
        if whole == 0:
            return
        shares = [sum(steps) / whole for steps in waited]
        for unit in self.held:
            metric = self.metric.read(unit, self.parameters, travelled)
            if metric is None:
                continue
            y = correction(
                self.constraints[unit.name],
                unit.gather(self.parameters),
                metric,
                strength=self.strength,
                state=self.states[unit.name],
                shares=shares,
            )
            unit.subtract_(self.parameters, y)
        self.pulls += 1
        for tier in range(tiers):
            self.visited[tier] = list(self.travelled)

    def strengthen_(self, factor: float) -> None:
        """Multiply γ from the next pull on, which visits all tiers and chooses them anew.

        Args:
            factor: above 1.
        """
        self.strength *= factor
        self.pulls = 0

    def marks(self) -> Marks:
        """Return what a pull changes beside the weights.

        Returns:
            A copy, for ``restore``.
        """
        return copy.deepcopy(self.states), list(self.visited), self.pulls

    def restore(self, marks: Marks) -> None:
        """Forget the pulls made since ``marks`` were taken; the weights are the caller's.

        Args:
            marks: from ``marks``.
        """
        self.states, self.visited, self.pulls = marks
