"""What will have been forgotten: the rise of the earlier experiences' loss, without their data.

The constraint's energy ½ xᵀKx is a quadratic forecast in the probe's unit. It falls short by orders
of magnitude where the outputs do not change in proportion to the weights; how far that goes is
measured on the present task's inputs (``flatcl.core.growth``), and energy · growth is the forecast.
It stays in the probe's unit: at a saturated softmax the loss's own curvature in the outputs is next
to nothing, and displacements that forget anything leave saturation behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatcl.core.checkpoint import bytes_of, decode_constraint, encode_constraint
from flatcl.core.constraint import Constraint
from flatcl.core.growth import Constraints, Network, few
from flatcl.core.saved import State
from flatcl.errors import StateError

Batches: TypeAlias = "Iterable[Sequence[Tensor] | Tensor]"

TRUSTED_GROWTH = 3.0  # above it the forecast leans on inputs that are not the earlier ones


@dataclass(frozen=True)
class Spent:
    """What one task has cost the tasks before it.

    Attributes:
        energy: of their merged constraint at the task's end, nats; the sum over them.
        growth: see ``flatcl.core.growth``; NaN where no inputs were at hand.
        earlier: number of those tasks.
    """

    energy: float
    growth: float
    earlier: int

    @property
    def rise(self) -> float:
        """The forecast for one of the earlier tasks on average, nats."""
        return self.energy * _known(self.growth) / self.earlier if self.earlier else 0.0


@dataclass(frozen=True)
class Forecast:
    """A forecast of forgetting.

    Attributes:
        rises: for each earlier experience, oldest first, the predicted rise of its loss since it
            was learned, nats a row of the outputs.
        spent: for each task since the first, the present one last if it runs, what it cost the
            tasks before it.
        growths: for each, the largest growth on its way; NaN if not measured.
        exact: True if each rise comes of the experience's own constraint (``per_task=True``), and
            counts steps of several tasks in one direction as one way; False if every task's cost
            is shared equally among those before it and the costs are added.
        trusted: False where the network was too far from linear, or where that was not checked.
            True does not vouch for the scale: it was up to five times too low on rotated digits,
            whose tasks resemble one another (benchmarks/FORECAST.md).
        reason: why it is not trusted; empty if it is.
    """

    rises: tuple[float, ...]
    growths: tuple[float, ...]
    spent: tuple[Spent, ...]
    exact: bool
    trusted: bool
    reason: str

    @property
    def mean(self) -> float:
        """Mean of the rises, nats; 0 without an earlier experience."""
        return sum(self.rises) / len(self.rises) if self.rises else 0.0


def _known(growth: float) -> float:
    return 1.0 if math.isnan(growth) else growth


def _largest(growths: Sequence[float]) -> float:
    """Return the largest, 1 if there is none, NaN if one was not measured."""
    return math.nan if any(map(math.isnan, growths)) else max(growths, default=1.0)


def _judged(growths: Sequence[float], *, complete: bool) -> str:
    """Return why a forecast with such growths is not to be trusted, or nothing."""
    if not complete:
        return "what some tasks cost was not recorded (a state saved without its history)"
    worst = _largest(growths)
    if math.isnan(worst):
        return (
            "it was not checked how linear the network is over the way made: call "
            "forecast(batches) with inputs of the present task, end_task(batches) at a task's end"
        )
    if worst > TRUSTED_GROWTH:
        return (
            f"on the present task's inputs the outputs changed {worst:.1f} times as much as a "
            f"linear network's would have (trusted up to {TRUSTED_GROWTH:g}): the earlier tasks' "
            "loss may have risen several times more or less than predicted"
        )
    return ""


@dataclass
class History:
    """What is kept between tasks for the forecast: two numbers a task.

    Attributes:
        spent: one entry a task that has ended.
        own: with ``per_task``, the constraint of each task alone, by unit's name.
        growths: with ``per_task``, each task's growth at the last task's end, NaN if not measured.
    """

    spent: list[Spent] = field(default_factory=list)
    own: list[dict[str, Constraint]] = field(default_factory=list)
    growths: list[float] = field(default_factory=list)

    def record(
        self,
        network: Network,
        held: Constraints,
        batches: Batches | None,
        own: dict[str, Constraint] | None,
    ) -> None:
        """Note what the task that ends now has cost those before it.

        Args:
            network: at the task's final weights.
            held: the constraint of the tasks before it, not yet merged with its own.
            batches: of the task, or None.
            own: the task's own constraint, to be kept; None to keep none.
        """
        inputs = None if batches is None else few(batches, network.device)
        self.spent.append(self._cost(network, held, inputs, len(self.spent)))
        if own is not None:
            self.growths = [*self._own_growths(network, inputs), 1.0]
            self.own.append(own)

    def forecast(
        self,
        network: Network,
        held: Constraints,
        batches: Batches | None,
        *,
        tasks: int,
        running: bool,
    ) -> Forecast:
        """Return the forecast at the present weights.

        Args:
            network: as it is now.
            held: the merged constraint of all tasks that have ended.
            batches: inputs of the running task, or None.
            tasks: how many have ended.
            running: whether one runs.

        Returns:
            The forecast.
        """
        inputs = few(batches, network.device) if batches is not None and running and tasks else None
        spent = list(self.spent)
        if running and tasks:
            spent.append(self._cost(network, held, inputs, tasks))
        exact = len(self.own) == tasks > 0
        if exact:
            growths = self._own_growths(network, inputs) if running else self.growths
            energies = [float(network.energy(own)) for own in self.own]
            rises = [e * _known(g) for e, g in zip(energies, growths, strict=True)]
        else:
            ways = [[s for s in spent if s.earlier > j] for j in range(tasks)]
            rises = [math.fsum(s.rise for s in way) for way in ways]
            growths = [_largest([s.growth for s in way]) for way in ways]
        reason = _judged(growths, complete=exact or len(self.spent) == tasks)
        return Forecast(tuple(rises), tuple(growths), tuple(spent[1:]), exact, not reason, reason)

    def bytes_held(self) -> int:
        """Return the bytes of the tasks' own constraints.

        Returns:
            Bytes; 0 unless ``per_task``.
        """
        return sum(bytes_of(own) for own in self.own)

    def state_dict(self) -> State:
        """Return the history as tensors and dicts, for ``torch.save``.

        Returns:
            What ``from_state`` reads.
        """
        own = [{n: encode_constraint(c) for n, c in held.items()} for held in self.own]
        return {
            "spent": torch.tensor(
                [[s.energy, s.growth, s.earlier] for s in self.spent], dtype=torch.float64
            ),
            "growths": torch.tensor(self.growths, dtype=torch.float64),
            "own": {str(number): held for number, held in enumerate(own)},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None, views: Mapping[str, Tensor]) -> History:
        """Return what ``state_dict`` held.

        Args:
            state: its result; None for a state saved without a history.
            views: the model's weights by unit's name, whose device the constraints go to.

        Returns:
            The history, empty for None.

        Raises:
            StateError: a constraint does not fit the model.
        """
        if state is None:
            return cls()
        own = []
        for held in state["own"].values():
            found = {n: decode_constraint(saved, n) for n, saved in held.items()}
            for name in found:
                if name not in views:
                    raise StateError(
                        f"the saved history holds {name}, which the model does not have: load it "
                        "into the model that it was saved with"
                    )
                found[name].grown_to(views[name])  # refuses a shape that does not fit
            own.append({n: c.to(views[n].device) for n, c in found.items()})
        spent = [Spent(e, g, int(n)) for e, g, n in state["spent"].tolist()]
        return cls(spent, own, state["growths"].tolist())

    @staticmethod
    def _cost(
        network: Network,
        held: Constraints,
        inputs: Sequence[Sequence[Tensor]] | None,
        earlier: int,
    ) -> Spent:
        if not held:
            return Spent(0.0, 1.0, 0)
        growth = math.nan if inputs is None else network.growth(held, inputs)
        return Spent(float(network.energy(held)), growth, earlier)

    def _own_growths(
        self, network: Network, inputs: Sequence[Sequence[Tensor]] | None
    ) -> list[float]:
        if inputs is None:
            return [math.nan] * len(self.own)
        return [network.growth(own, inputs) for own in self.own]
