"""The seam for constraints on a whole network, beside the units' own or in their place.

A unit's constraint cannot hold a direction that crosses layers. What can, and what else is to be
pulled to old weights together with them, is any object with the methods below: handed to
``Landscape(network=…)``, it is told when tasks begin and end and what the weights are after every
step, and is asked for its energy and for its share of every pull. With ``strength=0`` it stands in
the units' place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from flatcl.core.measure import TaskEnd
from flatcl.core.metric import Metric


class NetworkConstraint(Protocol):
    """What a landscape asks of a constraint over all parameters.

    Parameters come by name, as ``model.named_parameters()`` has them, in the model's order.
    """

    def begin_task(self, parameters: Mapping[str, Tensor], steps: int | None) -> None:
        """Look at the model afresh, which may have grown; ``steps`` if the length is known."""

    def watch(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Look at the weights after a step, counted from 1, before any pull."""

    def energy(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the energy, a scalar in nats; 0 while nothing is held."""

    def correction(
        self, parameters: Mapping[str, Tensor], metric: Mapping[str, Metric]
    ) -> Mapping[str, Tensor]:
        """Return y by parameter, the pull's correction, to be subtracted from the weights.

        ``metric`` has sD over the steps since the last pull, in the parameter's shape or a number;
        parameters that the optimiser did not step are left out of it and have no y.
        """

    def end_task(self, end: TaskEnd) -> None:
        """Measure the task and merge it with the earlier ones, the weights being final."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is held between tasks: tensors, numbers, strings, dicts."""

    def load_state_dict(self, state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Take up a saved state, or raise a StateError and change nothing."""
