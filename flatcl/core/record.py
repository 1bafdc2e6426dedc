"""What a landscape does with a task that has ended: measure it, note its cost, merge it."""

from __future__ import annotations

import logging
from dataclasses import replace

from flatcl.core.constraint import Constraint
from flatcl.core.forecast import History
from flatcl.core.growth import Network
from flatcl.core.measure import Measurement, ProbeMeasurement, TaskEnd, combined, own_constraint
from flatcl.core.pull import by_falling_stiffness

_log = logging.getLogger("flatcl")


def record_(
    constraints: dict[str, Constraint],
    history: History,
    network: Network,
    measurement: Measurement,
    end: TaskEnd,
) -> float | None:
    """Merge a task into the constraints held, and add it to the history.

    Args:
        constraints: of the tasks before it, by unit's name; updated.
        history: of those tasks; updated.
        network: at the task's final weights.
        measurement: of the task.
        end: what it may look at.

    Returns:
        The scale of the probe's output directions, None for source "sgd".
    """
    inputs = None
    # Both read the batches, which may be an iterator; source "sgd" leaves them alone.
    if end.batches is not None and isinstance(measurement, ProbeMeasurement):
        inputs = end.inputs()
        end = replace(end, batches=inputs)
    found = measurement.stiffness(end)
    views = {unit.name: unit.gather(network.parameters).detach() for unit in network.units}
    own = None
    if end.options.per_task:
        own = {name: own_constraint(name, found, view) for name, view in views.items()}
    history.record(network, constraints, inputs, own)
    for unit in network.units:
        merged, lost = combined(unit, constraints.get(unit.name), found, views[unit.name])
        constraints[unit.name] = by_falling_stiffness(merged)
        _log.debug("%s: %.3f of the old constraint lies off the new basis", unit.name, lost)
    return found.scale
