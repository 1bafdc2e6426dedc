"""What a landscape does with a task that has ended: measure it, note its cost, merge it."""

from __future__ import annotations

import logging

from flatcl.core.constraint import Constraint
from flatcl.core.distributed import Peers
from flatcl.core.forecast import History
from flatcl.core.growth import Network
from flatcl.core.measure import Measurement, ProbeMeasurement, TaskEnd, combined
from flatcl.core.pull import by_falling_stiffness
from flatcl.core.variants import varied

_log = logging.getLogger("flatcl")


def record_(
    constraints: dict[str, Constraint],
    history: History,
    network: Network,
    measurement: Measurement,
    end: TaskEnd,
    peers: Peers,
) -> float | None:
    """Merge a task into the constraints held, and add it to the history.

    Args:
        constraints: of the tasks before it, by unit's name; updated.
        history: of those tasks; updated.
        network: at the task's final weights.
        measurement: of the task.
        end: what it may look at; batches that may be read twice.
        peers: the processes whose constraints must agree.

    Returns:
        The scale of the probe's output directions, None for source "sgd".
    """
    found = measurement.stiffness(end)
    found = varied(found, constraints, end.options, end.generator)
    views = {unit.name: unit.gather(network.parameters).detach() for unit in network.units}
    probed = isinstance(measurement, ProbeMeasurement)
    history.record(network, constraints, list(end.batches or ()) if probed else None)
    for unit in network.units:
        merged, lost = combined(unit, constraints.get(unit.name), found, views[unit.name])
        constraints[unit.name] = by_falling_stiffness(merged)
        peers.adopt_constraint_(constraints[unit.name])
        _log.debug("%s: %.3f of the old constraint lies off the new basis", unit.name, lost)
    return found.scale
