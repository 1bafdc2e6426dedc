"""What will have been forgotten: the rise of the earlier experiences' loss, without their data.

There are two ways to it. The constraint's energy ½ xᵀKx is a quadratic forecast in the probe's
unit. It falls short by orders of magnitude where the outputs do not change in proportion to the
weights; how far that goes is measured on the present task's inputs (``flatcl.core.growth``), and
energy · growth is the forecast. It stays in the probe's unit: at a saturated softmax the loss's own
curvature in the outputs is next to nothing, and displacements that forget anything leave saturation
behind. What rehearsal spares the earlier tasks it does not know of.

With witnesses (``flatcl.core.witnesses``) the network itself is asked, and the quadratic serves as
a second opinion: where the two disagree the forecast is flagged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatcl.core.growth import Constraints, Network, few
from flatcl.core.saved import State
from flatcl.core.unheld import doubt_of
from flatcl.core.witnesses import Witnesses

Batches: TypeAlias = "Iterable[Sequence[Tensor] | Tensor]"

TRUSTED_GROWTH = 3.0  # above it the quadratic leans on inputs that are not the earlier ones
TRUSTED_RATIO = 3.0  # of the two forecasts
TRUSTED_ERROR = 0.3  # standard error over the witnesses, as a share of their mean
_NEGLIGIBLE = 1e-3  # nats


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
            was learned, nats a row of the outputs: by its witnesses, or else by the quadratic. The
            loss is a softmax's, or a sigmoid's where there is one output; another one's, mean
            squared error for instance, is not what witnesses tell.
        quadratic: the same by energy · growth, every task's cost shared equally among those before
            it and the costs added; NaN where nothing is known of some costs.
        spent: for each task since the first, the present one last if it runs, what it cost the
            tasks before it; between tasks last what moved the weights since, if anything did.
        reasons: for each experience why its rise is not to be trusted; empty if it is.
    """

    rises: tuple[float, ...]
    quadratic: tuple[float, ...]
    spent: tuple[Spent, ...]
    reasons: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean of the rises, nats; 0 without an earlier experience."""
        return sum(self.rises) / len(self.rises) if self.rises else 0.0

    @property
    def trusted(self) -> bool:
        """Whether every rise is. benchmarks/FORECAST.md tells what that is worth."""
        return not any(self.reasons)

    @property
    def reason(self) -> str:
        """Why not, for the oldest experience whose rise is not; empty if all are."""
        return next(filter(None, self.reasons), "")


def _known(growth: float) -> float:
    return 1.0 if math.isnan(growth) else growth


def _doubt_of_quadratic(way: Sequence[Spent], *, complete: bool) -> str:
    """Return why the quadratic is not to be trusted, or nothing."""
    if not complete:
        return "what some tasks cost was not recorded (a state saved without its history)"
    growths = [s.growth for s in way]
    if any(map(math.isnan, growths)):
        return (
            "it was not checked how linear the network is over the way made: call "
            "forecast(batches) with inputs of the present task, end_task(batches) at a task's end"
        )
    if (worst := max(growths, default=1.0)) > TRUSTED_GROWTH:
        return (
            f"on the present task's inputs the outputs changed {worst:.1f} times as much as a "
            f"linear network's would have (trusted up to {TRUSTED_GROWTH:g}): the earlier tasks' "
            "loss may have risen several times more or less than predicted"
        )
    return ""


def _doubt_of_witnesses(rise: float, error: float, quadratic: float) -> str:
    """Return why what witnesses say is not to be trusted, or nothing."""
    if error > max(TRUSTED_ERROR * rise, _NEGLIGIBLE):
        return (
            f"the witnesses differ: {rise:.2g} ± {error:.1g} nats, standard error (trusted up to "
            f"{100 * TRUSTED_ERROR:.0f} %); keep more of them"
        )
    if math.isnan(quadratic):
        return "there is no constraint, or no history, to hold the witnesses against"
    low, high = sorted((rise, quadratic))
    if high > max(TRUSTED_RATIO * low, low + _NEGLIGIBLE):
        return (
            f"witnesses say {rise:.2g} nats, the constraint {quadratic:.2g} (trusted up to a "
            f"factor of {TRUSTED_RATIO:g})"
        )
    return ""


@dataclass
class History:
    """What is kept between tasks for the forecast: three numbers a task, and witnesses.

    Attributes:
        spent: one entry a task that has ended.
        witnesses: of each, None where there are none of it; empty if none were asked for.
    """

    spent: list[Spent] = field(default_factory=list)
    witnesses: list[Witnesses | None] = field(default_factory=list)

    def record(self, network: Network, held: Constraints, batches: Batches | None) -> None:
        """Note what the task that ends now has cost those before it.

        Args:
            network: at the task's final weights.
            held: the constraint of the tasks before it, not yet merged with its own.
            batches: of the task, or None.
        """
        inputs = None if batches is None else few(batches, network.device)
        self.spent.append(self._cost(network, held, inputs, len(self.spent)))

    def testify(self, found: Witnesses | None, number: int, earlier: int) -> None:
        """Take up the witnesses of a task that ends now.

        Args:
            found: of the task, None if there are none.
            number: how many of each earlier task stay.
            earlier: number of those tasks; they have none if they ended without.
        """
        without = [None] * (earlier - len(self.witnesses))
        self.witnesses = [*without, *(w and w.fewer(number) for w in self.witnesses), found]

    def forecast(
        self,
        network: Network,
        held: Constraints,
        batches: Batches | None,
        *,
        tasks: int,
        running: bool,
        unheld: Mapping[str, float],
    ) -> Forecast:
        """Return the forecast at the present weights.

        Args:
            network: as it is now.
            held: the merged constraint of all tasks that have ended.
            batches: inputs of the running task, or None.
            tasks: how many have ended.
            running: whether one runs.
            unheld: what some of them are not held in, from ``unreached``.

        Returns:
            The forecast.
        """
        inputs = few(batches, network.device) if batches is not None and tasks else None
        spent, complete = list(self.spent), len(self.spent) == tasks
        present = self._cost(network, held, inputs, tasks)
        if tasks and (running or present.energy != 0.0):  # weights may be moved between tasks too
            spent.append(present)
        rises, quadratic, reasons = [], [], []
        for task in range(tasks):
            way = [s for s in spent if s.earlier > task]
            energy = math.fsum(s.rise for s in way)
            quadratic.append(energy if complete else math.nan)
            witnesses = self.witnesses[task] if len(self.witnesses) == tasks else None
            if witnesses is None:
                rises.append(energy)
                doubt = _doubt_of_quadratic(way, complete=complete)
                reasons.append(doubt_of(unheld, task) or doubt)
            else:
                rise, error = witnesses.rise(network.model, network.forward)
                rises.append(rise)
                reasons.append(_doubt_of_witnesses(rise, error, quadratic[-1]))
            if not (math.isfinite(rises[-1]) or reasons[-1]):
                reasons[-1] = f"it is {rises[-1]}: the weights, or the outputs, are not finite"
        return Forecast(tuple(rises), tuple(quadratic), tuple(spent[1:]), tuple(reasons))

    def to(
        self, device: torch.device, cast: Mapping[torch.dtype, torch.dtype] | None = None
    ) -> History:
        """Return the history with its witnesses on a device, in lists of its own.

        Args:
            device: where they shall be.
            cast: dtypes of their inputs by that which takes their place.

        Returns:
            The same; what is added there is not added here.
        """
        return History(
            list(self.spent), [found and found.to(device, cast) for found in self.witnesses]
        )

    def bytes_held(self) -> int:
        """Return the bytes of the witnesses.

        Returns:
            Bytes; 0 without any.
        """
        kept = [t for found in self.witnesses if found is not None for t in found.tensors()]
        return sum(t.numel() * t.element_size() for t in kept)

    def state_dict(self) -> State:
        """Return the history as tensors and dicts, for ``torch.save``.

        Returns:
            What ``from_state`` reads.
        """
        return {
            "spent": torch.tensor(
                [[s.energy, s.growth, s.earlier] for s in self.spent], dtype=torch.float64
            ),
            "witnesses": [found and found.state_dict() for found in self.witnesses],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None, device: torch.device) -> History:
        """Return what ``state_dict`` held.

        Args:
            state: its result; None for a state saved without a history.
            device: of the model.

        Returns:
            The history, empty for None.
        """
        if state is None:
            return cls()
        spent = [Spent(e, g, int(n)) for e, g, n in state["spent"].tolist()]
        witnesses = [
            found and Witnesses.from_state(found, device) for found in state.get("witnesses", ())
        ]
        return cls(spent, witnesses)

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
