"""When which input directions are pulled, and by how much, in one task."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.layers import Part, Unit
from flatcl.core.metric import Metric, StepMetric
from flatcl.core.network import NetworkConstraint
from flatcl.core.pull import TIERS, PullState, correction

Marks: TypeAlias = tuple[dict[str, PullState], list[list[float]], int]


class PullSchedule:
    """Pulls a model's held units; tier j of their columns at every 2^j-th pull.

    Args:
        units: the model's units.
        parameters: its parameters by name.
        constraints: of the earlier tasks, by unit's name.
        metric: of the optimiser.
        strength: γ of the units' constraints.
        network: a constraint on all parameters, pulled at every visit of the quickest tier.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        parameters: Mapping[str, Tensor],
        constraints: Mapping[str, Constraint],
        metric: StepMetric,
        strength: float,
        network: NetworkConstraint | None = None,
    ) -> None:
        self.held = [unit for unit in units if unit.name in constraints]
        self.parameters, self.constraints = parameters, constraints
        self.metric, self.strength, self.network = metric, strength, network
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
        shared: dict[str, Metric | None] = {}
        for unit in self.held:
            metric = self.metric.read(unit, self.parameters, travelled, shared)
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
        if self.network is not None and any(waited[0]):
            self._pull_network_(self.network, waited[0])
        self.pulls += 1
        for tier in range(tiers):
            self.visited[tier] = list(self.travelled)

    def _pull_network_(self, network: NetworkConstraint, travelled: list[float]) -> None:
        units = {n: Unit(n, Part(n), None, matrix=False) for n in self.parameters}
        read = {n: self.metric.read(u, self.parameters, travelled) for n, u in units.items()}
        metric = {name: D for name, D in read.items() if D is not None}
        for name, y in network.correction(self.parameters, metric).items():
            units[name].subtract_(self.parameters, y)

    @property
    def holds(self) -> bool:
        """Whether there is anything to pull."""
        return bool(self.held) or self.network is not None

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
