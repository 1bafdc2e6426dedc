"""Source "sgd": stiffness from the training gradients of a task's last part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.gradients import training_gradients
from flatcl.core.layers import Unit
from flatcl.core.measure import Found, TaskEnd
from flatcl.core.moments import EigenMoments, KroneckerMoments
from flatcl.core.options import LDCOptions
from flatcl.core.precision import full_precision
from flatcl.core.saved import (
    State,
    decode_coordinates,
    decode_sides,
    encode_coordinates,
    encode_sides,
    entry,
)
from flatcl.core.shared_basis import merged_basis, side_moments
from flatcl.core.stiffness import damp, stiffness_from_training
from flatcl.errors import StateError

# With the length unknown, a new window whenever the task has grown by this.
_GROWTH = 1.25
_FIRST_WINDOW = 8


@dataclass
class TrainingMeasurement:
    """Source "sgd": the minibatch gradients of the task's last part, at no extra pass.

    With the length known: last 20 %, first half for the basis, second for the variance. With the
    length unknown: windows that end whenever the task has grown by a quarter; in each, the basis of
    the window before serves the variance, and the latest window that is at least half full counts.
    """

    units: Sequence[Unit]
    constraints: Mapping[str, Constraint]
    steps: int | None
    options: LDCOptions
    sides: dict[str, KroneckerMoments] = field(default_factory=dict)
    current: dict[str, EigenMoments] = field(default_factory=dict)
    previous: dict[str, EigenMoments] = field(default_factory=dict)
    boundary: int = 0
    opened: bool = False

    def watch(self, step: int, parameters: Mapping[str, Tensor], batch_size: int | None) -> None:
        """Record one step's gradients, if the step lies in a window.

        Args:
            step: counted from 1.
            parameters: with the gradients that the optimiser saw in ``.grad``.
            batch_size: B of the mean that was differentiated.

        Raises:
            StateError: the batch size is missing.
        """
        if self.steps is not None and step <= self.steps - self._tail(self.steps):
            return
        if batch_size is None:
            raise StateError('source="sgd" weighs gradients by batch size: call step(batch_size=…)')
        if not self.opened:
            self._open(step, parameters)
        elif step > self.boundary and (self.steps is None or not self.current):
            self._roll(step, parameters)
        for unit, G in zip(self.units, training_gradients(self.units, parameters), strict=True):
            with full_precision(G.device):
                if unit.name in self.sides and (self.steps is None or not self.current):
                    self.sides[unit.name].add(G, weight=float(batch_size))
                if unit.name in self.current:
                    self.current[unit.name].add(G, weight=float(batch_size))

    def _open(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        self.sides = self._empty(self._views(parameters))
        self.opened = True
        self.boundary = (
            step + _FIRST_WINDOW - 1
            if self.steps is None
            else self.steps - self._tail(self.steps) // 2
        )

    def _views(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {unit.name: unit.gather(parameters).detach() for unit in self.units}

    def _empty(self, views: Mapping[str, Tensor]) -> dict[str, KroneckerMoments]:
        found = {u.name: side_moments(u, views[u.name], self.options) for u in self.units}
        return {name: moments for name, moments in found.items() if moments is not None}

    @staticmethod
    def _tail(steps: int) -> int:
        """Return the length of the last part that is watched: 20 %, more in a short task."""
        return min(steps, max(steps // 5, 2 * _FIRST_WINDOW))

    def _roll(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Freeze the basis of the window that has just ended and open the next."""
        self.previous = self.current
        views = self._views(parameters)
        self.current = {n: EigenMoments.zeros(self._basis(n), v) for n, v in views.items()}
        self.sides = self._empty(views)
        self.boundary = max(step + _FIRST_WINDOW, int(_GROWTH * step))

    def _basis(self, name: str) -> KroneckerBasis | None:
        if name not in self.sides:
            return None
        sides, old = self.sides[name], self.constraints.get(name)
        with full_precision(sides.device):
            return merged_basis(old, sides, damping=self.options.use_damping)

    def state_dict(self) -> State:
        """Return the windows so far.

        Returns:
            Plain state, copied.
        """
        return {
            "boundary": self.boundary,
            "opened": self.opened,
            "sides": {name: encode_sides(moments) for name, moments in self.sides.items()},
            "current": {name: encode_coordinates(m) for name, m in self.current.items()},
            "previous": {name: encode_coordinates(m) for name, m in self.previous.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], views: Mapping[str, Tensor]) -> None:
        """Take up saved windows.

        Args:
            state: from ``state_dict``, of a task with the same units.
            views: the model's weights, by unit's name, each in its unit's view.

        Raises:
            StateError: a unit is unknown, an entry is missing or a shape differs.
        """
        what = 'task\'s windows (source="sgd")'
        found = {key: entry(state, key, what) for key in ("sides", "current", "previous")}
        empty = self._empty(views)
        strangers = sorted({name for names in found.values() for name in names} - set(views))
        strangers += sorted(set(found["sides"]) - set(empty))
        if strangers:
            raise StateError(
                f"the saved {what} hold {strangers[0]}, which the model does not have: load them "
                "into the model that they were saved with"
            )
        sides = {n: decode_sides(s, empty[n], what) for n, s in found["sides"].items()}
        current, previous = (
            {n: decode_coordinates(s, views[n], what) for n, s in found[key].items()}
            for key in ("current", "previous")
        )
        self.boundary = int(entry(state, "boundary", what))
        self.opened = bool(entry(state, "opened", what))
        self.sides, self.current, self.previous = sides, current, previous

    def stiffness(self, end: TaskEnd) -> Found:
        """Return the task's stiffness from what was watched; no pass over data is made.

        Args:
            end: of the task; unused.

        Returns:
            Bases and stiffness.

        Raises:
            StateError: the task ended before its last window had two gradients.
        """
        best = self.current
        counts = [next(iter(m.values())).count if m else 0 for m in (self.current, self.previous)]
        if counts[0] < max(2, counts[1] // 2):
            best = self.previous if counts[1] >= 2 else self.current
        if not best or max(counts) < 2:
            told = "" if self.steps is None else f" (it was said to last {self.steps} steps)"
            raise StateError(
                f"the task ended before enough of its last gradients were seen{told}: train "
                'longer, begin_task() without steps if it may stop early, or use source="probe"'
            )
        bases = {name: moments.basis for name, moments in best.items()}
        k = {name: stiffness_from_training(moments) for name, moments in best.items()}
        for unit in self.units:
            if unit.matrix:
                k[unit.name] = damp(k[unit.name], self.options.use_damping, bases[unit.name])
        return Found(bases, k)
