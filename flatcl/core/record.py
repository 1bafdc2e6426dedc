"""What a landscape does with a task that has ended: measure it, note its cost, merge it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flatcl.core.constraint import Constraint
from flatcl.core.distributed import Peers
from flatcl.core.forecast import History
from flatcl.core.gaussians import InputGaussians
from flatcl.core.growth import Network
from flatcl.core.measure import Measurement, ProbeMeasurement, TaskEnd, combined
from flatcl.core.pull import by_falling_stiffness
from flatcl.core.sample import Sample
from flatcl.core.variants import varied
from flatcl.core.witnesses import Witnesses

_log = logging.getLogger("flatcl")


@dataclass
class Kept:
    """What is kept of tasks, being added to at a task's end.

    In collections of its own, so that an exception leaves the landscape's as they were.

    Attributes:
        constraints: by unit's name; each is never written to.
        history: of the tasks.
        inputs: of the tasks.
        probe_scale: of the probe's output directions; None before the first, and for source "sgd".
    """

    constraints: dict[str, Constraint]
    history: History
    inputs: InputGaussians
    probe_scale: float | None

    def measure_(
        self, network: Network, measurement: Measurement, end: TaskEnd, peers: Peers
    ) -> None:
        """Merge a task into the constraints, and add its cost to the history.

        Args:
            network: at the task's final weights.
            measurement: of the task.
            end: what it may look at; batches that may be read twice.
            peers: the processes whose constraints must agree.
        """
        found = measurement.stiffness(end)
        found = varied(found, self.constraints, end.options, end.generator)
        views = {unit.name: unit.gather(network.parameters).detach() for unit in network.units}
        probed = isinstance(measurement, ProbeMeasurement)
        self.history.record(network, self.constraints, list(end.batches or ()) if probed else None)
        for unit in network.units:
            held = self.constraints.get(unit.name)
            merged, lost = combined(unit, held, found, views[unit.name])
            self.constraints[unit.name] = by_falling_stiffness(merged)
            peers.adopt_constraint_(self.constraints[unit.name])
            _log.debug("%s: %.3f of the old constraint lies off the new basis", unit.name, lost)
        self.probe_scale = found.scale

    def take_in_(self, end: TaskEnd, peers: Peers, earlier: int) -> None:
        """Keep what rehearsal and forecast need of a task's inputs: moments and witnesses.

        Args:
            end: of the task.
            peers: the processes that must keep the same.
            earlier: number of the tasks before it.
        """
        sample = None
        if end.batches is not None:
            sample = Sample.of(end.model, end.forward, end.inputs())
        if sample is not None and end.options.use_pseudo_inputs:
            self.inputs.take_in(sample, sum(p.numel() for p in end.model.parameters()))
            peers.adopt_(self.inputs.tensors())
        if end.options.witnesses:
            number = max(1, end.options.witnesses // (earlier + 1))
            found = None
            if sample is not None:
                found = Witnesses.drawn(end.model, end.forward, sample, number, earlier)
            if found is not None:
                peers.adopt_(found.tensors())
            self.history.testify(found, number, earlier)
