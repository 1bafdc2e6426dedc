"""The options of LDC as published."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flatcl.core.options import LDCOptions
from flatcl.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """How LDC as published measures and holds; every number is a choice of flatcl's.

    Attributes:
        strength: λ, nats; 0 holds nothing.
        interval: steps from one pull to the next.
        directions: N_c, principal directions that a task adds.
        window: share of a task's steps, its last, whose weights give the directions.
        snapshots: of the weights in that window, at least, where it has so many steps, and at most
            twice as many.
        inputs: of the task, drawn once, on which the loss is taken to measure flatness.
        tolerance: relative, of flatness.
        cap: directions held for all tasks together; the stiffest count.
        seed: of the inputs' choice.

    Raises:
        OptionError: a value is out of its range.
    """

    strength: float = 1.0
    interval: int = 5
    directions: int = 50
    window: float = 0.2
    snapshots: int = 100
    inputs: int = 200
    tolerance: float = 0.05
    cap: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        number = (int, float)
        if not isinstance(self.strength, number) or not 0 <= self.strength < math.inf:
            raise OptionError(f"strength is {self.strength!r}; it must be finite, 0 or more")
        for name, least in (("directions", 1), ("cap", 1), ("inputs", 1), ("snapshots", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(f"{name} is {value!r}; give a whole number, {least} or more")
        if not isinstance(self.window, number) or not 0 < self.window <= 1:
            raise OptionError(f"window is {self.window!r}; it must be above 0, 1 at most")
        if not isinstance(self.tolerance, number) or not 0 < self.tolerance < 1:
            raise OptionError(f"tolerance is {self.tolerance!r}; it must be between 0 and 1")
        self.of_landscape()  # interval and seed are checked there

    def of_landscape(self) -> LDCOptions:
        """Return the options of a landscape that holds nothing else.

        Returns:
            Strength 0: no unit of its own, no centre.
        """
        return LDCOptions(
            strength=0.0, interval=self.interval, probe_inputs=self.inputs, seed=self.seed
        )
