"""When which input directions are pulled, and by how much, in one task."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.layers import Part, Unit
from flatcl.core.metric import StepMetric, Way
from flatcl.core.network import NetworkConstraint
from flatcl.core.precision import full_precision, is_narrow, write_rounded_
from flatcl.core.pull import TIERS, PullState, correction, taken_back
from flatcl.core.saved import State, entry, same_names
from flatcl.errors import StateError

Marks: TypeAlias = tuple[dict[str, PullState], list[list[float]], tuple[int, int, int]]

# Share of the held directions that one pull may take back, on average over all of them.
_SHARE = 0.06


class PullSchedule:
    """Pulls a model's held units; tier j of their columns at every 2^j-th pull.

    Pulls come every ``longest`` steps; after half of them, a quarter, … where otherwise they would
    take back more than ``_SHARE`` of all directions, which is looked at whenever all tiers are
    visited.

    Args:
        units: the model's units.
        parameters: its parameters by name.
        constraints: of the earlier tasks, by unit's name.
        metric: of the optimiser.
        strength: γ of the units' constraints.
        longest: steps from one pull to the next, at most.
        network: a constraint on all parameters, pulled at every visit of the quickest tier.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        parameters: Mapping[str, Tensor],
        constraints: Mapping[str, Constraint],
        metric: StepMetric,
        strength: float,
        longest: int,
        network: NetworkConstraint | None = None,
    ) -> None:
        self.held = [unit for unit in units if unit.name in constraints]
        self.parameters, self.constraints = parameters, constraints
        self.metric, self.network = metric, network
        self.strength, self.strengthened = strength, 1.0
        # Σ η since the task began, one number a parameter group; and what it was when each tier
        # was last visited.
        self.travelled = [0.0] * len(metric.optimizer.param_groups)
        self.visited = [list(self.travelled) for _ in range(TIERS)]
        self.intervals = [longest]  # to choose from
        while self.intervals[-1] > 1:
            self.intervals.append(self.intervals[-1] // 2)
        self.interval, self.waiting = longest, 0  # steps from pull to pull, and since the last
        self.pulls = 0
        self.states = {unit.name: PullState() for unit in self.held}
        self.narrow = {unit.name for unit in self.held if is_narrow(unit, parameters)}
        # Parameters that the optimiser moves, by the gradients last seen: these may be cleared by
        # the time that a task ends.
        self.moved: set[str] | None = None

    def count(self) -> None:
        """Count one step of the optimiser, at its present learning rates.

        Raises:
            StateError: the optimiser has another number of parameter groups than at the beginning.
        """
        if self.moved is None:
            self.moved = self._with_gradient()
        rates = self.metric.rates()
        if len(rates) != len(self.travelled):
            raise StateError(
                f"the optimiser has {len(rates)} parameter groups and had {len(self.travelled)} "
                "when the task began: add parameters between tasks"
            )
        for i, rate in enumerate(rates):
            self.travelled[i] += rate
        self.waiting += 1

    def since(self, tier: int) -> list[float]:
        """Return Σ η since a tier was last visited.

        Args:
            tier: 0 for the quickest.

        Returns:
            One number a parameter group; all 0 right after a visit.
        """
        return [float(a - b) for a, b in zip(self.travelled, self.visited[tier], strict=True)]

    def due(self) -> int:
        """Return the number of tiers that a pull is to visit now.

        Returns:
            0 between pulls, else 1 … ``TIERS``; all at a task's first pull.
        """
        if self.waiting < self.interval:
            return 0
        return next((j for j in range(TIERS) if self.pulls % 2**j), TIERS)

    @torch.no_grad()
    def pull_(self, tiers: int) -> bool:
        """Pull every held unit, in place; tiers left out gather their steps.

        Args:
            tiers: how many to visit, from the quickest.

        Returns:
            False if there were steps and units to pull, and the optimiser moved none of them.
        """
        waited = [self.since(tier) for tier in range(tiers)]
        travelled = waited[0] if any(waited[0]) else waited[-1]
        whole = sum(travelled)
        # A pull out of turn, as at a task's end, comes after other than the interval's steps.
        in_turn = tiers == TIERS and self.waiting == self.interval
        taken: list[tuple[Tensor, int]] | None = [] if in_turn else None
        self.waiting = 0
        if whole == 0:
            return True
        self.moved = self._with_gradient() or self.moved
        shares = [sum(steps) / whole for steps in waited]
        shared: dict[str, Way | None] = {}
        pulled = [self._pull_unit_(u, travelled, shares, shared, taken) for u in self.held]
        if self.network is not None and any(waited[0]):
            self._pull_network_(self.network, waited[0])
        self.pulls += 1
        for tier in range(tiers):
            self.visited[tier] = list(self.travelled)
        if taken:
            self._choose_interval(taken)
        return any(pulled) or not pulled

    def _choose_interval(self, taken: list[tuple[Tensor, int]]) -> None:
        """Take the longest interval of which a pull takes back few enough directions."""
        found, directions = zip(*taken, strict=True)
        shares = (torch.stack(found).sum(0) / sum(directions)).tolist()
        pairs = zip(self.intervals, shares, strict=True)
        self.interval = next((i for i, share in pairs if share <= _SHARE), 1)

    def _with_gradient(self) -> set[str]:
        return {name for name, p in self.parameters.items() if p.grad is not None}

    def _pull_unit_(
        self,
        unit: Unit,
        travelled: list[float],
        shares: list[float],
        shared: dict[str, Way | None],
        taken: list[tuple[Tensor, int]] | None,
    ) -> bool:
        """Pull one unit, in place, and count the directions that a pull takes back, if asked to.

        Returns:
            Whether the optimiser has stepped it.
        """
        metric = self.metric.read(unit, self.parameters, travelled, self.moved, shared)
        if metric is None:
            return False
        constraint, state = self.constraints[unit.name], self.states[unit.name]
        weight, narrow = unit.gather(self.parameters), unit.name in self.narrow
        if narrow:
            weight = weight.to(constraint.anchor.dtype)
            if state.left is not None:
                weight = weight + state.left
        strength = self.strength * self.strengthened
        with full_precision(weight.device):
            y = correction(
                constraint, weight, metric, strength=strength, state=state, shares=shares
            )
            if taken is not None:
                factors = [interval / self.interval for interval in self.intervals]
                taken.append(taken_back(constraint, metric, strength, state, factors))
        if narrow:
            state.left = write_rounded_(unit, self.parameters, weight - y)
        else:
            unit.subtract_(self.parameters, y)
        return True

    def _pull_network_(self, network: NetworkConstraint, travelled: list[float]) -> None:
        units = {n: Unit(n, Part(n), None, matrix=False) for n in self.parameters}
        read = {
            n: self.metric.read(u, self.parameters, travelled, self.moved) for n, u in units.items()
        }
        metric = {name: D for name, D in read.items() if D is not None}
        for name, y in network.correction(self.parameters, metric).items():
            units[name].subtract_(self.parameters, y)

    @property
    def holds(self) -> bool:
        """Whether there is anything to pull."""
        return bool(self.held) or self.network is not None

    def strengthen_(self, factor: float) -> None:
        """Multiply γ from the next pull on, which visits all tiers and chooses them anew.

        Args:
            factor: above 1.
        """
        self.strengthened *= factor
        self.pulls = 0

    def marks(self) -> Marks:
        """Return what a pull changes beside the weights.

        Returns:
            A copy, for ``restore``.
        """
        counts = (self.interval, self.waiting, self.pulls)
        return copy.deepcopy(self.states), list(self.visited), counts

    def restore(self, marks: Marks) -> None:
        """Forget the pulls made since ``marks`` were taken; the weights are the caller's.

        Args:
            marks: from ``marks``.
        """
        self.states, self.visited, (self.interval, self.waiting, self.pulls) = marks

    def state_dict(self) -> State:
        """Return what pulls depend on beside weights, gradients, constraints and optimiser.

        Returns:
            Plain state, copied.
        """
        return {
            "travelled": [float(total) for total in self.travelled],
            "visited": [[float(total) for total in totals] for totals in self.visited],
            "interval": self.interval,
            "waiting": self.waiting,
            "pulls": self.pulls,
            "strengthened": float(self.strengthened),
            "moved": sorted(self._with_gradient() or self.moved or ()),
            "units": {name: state.state_dict() for name, state in self.states.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state.

        Args:
            state: from ``state_dict``, of a task with the same units.

        Raises:
            StateError: units, parameter groups or shapes differ.
        """
        totals = [entry(state, "travelled", "task"), *entry(state, "visited", "task")]
        groups = len(self.travelled)
        if len(totals) != TIERS + 1 or any(len(total) != groups for total in totals):
            raise StateError(
                f"the saved task counts {len(totals[0])} parameter groups in {len(totals) - 1} "
                f"tiers, the optimiser has {groups} in {TIERS}: load it beside the optimiser that "
                "it was saved with"
            )
        units = entry(state, "units", "task")
        same_names(units, self.states, "task")
        states = {
            name: PullState.from_state(saved, self.constraints[name], name)
            for name, saved in units.items()
        }
        self.states, self.moved = states, set(entry(state, "moved", "task")) or None
        self.travelled, *self.visited = [[float(t) for t in total] for total in totals]
        saved = int(state.get("interval", self.interval))
        self.interval = max(1, min(saved, self.intervals[0]))
        self.waiting = max(0, min(int(state.get("waiting", 0)), self.interval))
        self.pulls = int(entry(state, "pulls", "task"))
        self.strengthened = float(entry(state, "strengthened", "task"))
