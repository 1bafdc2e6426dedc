"""One task's stiffness, measured in the basis it will share with the earlier tasks.

Two passes over gradients. The first gathers second moments of both sides; with the partial traces
of the constraint held so far they give the merged basis at once, so that a task costs one
eigendecomposition a side. The second takes the variance of every coordinate in that frozen basis,
which is the exact diagonal of this task's curvature there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flatcl.core.batches import chunked, joined
from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.gradients import (
    Forward,
    evaluation_mode,
    outputs_of,
    probe_gradients,
)
from flatcl.core.layers import Unit
from flatcl.core.merge import spectrum_in
from flatcl.core.moments import EigenMoments, Gradient, stacked
from flatcl.core.options import LDCOptions
from flatcl.core.saved import State
from flatcl.core.shared_basis import merged_basis, side_moments
from flatcl.core.stiffness import (
    OutputDraw,
    damp,
    label_directions,
    output_directions,
    stiffness_from_probe,
)
from flatcl.errors import StateError

_CHUNKS_A_BASIS_BATCH = 6
_ROWS = 128  # projected at a time: a product with fewer rows waits for the basis to be read
# Deviation of the probe's output directions, C^−_UNIT for C outputs. ½ would make it the Hessian of
# cross-entropy where all probabilities are equal; heads of few outputs are then held too loosely
# beside heads of many. ¾ lets one strength serve both: measured, benchmarks/DEFAULTS.md.
_UNIT = 0.75


@dataclass(frozen=True)
class Found:
    """What a measurement found.

    Attributes:
        bases: unit's name → merged basis, None for a unit held entry by entry.
        stiffness: unit's name → k of this task in that basis, nats/w².
        scale: standard deviation of the probe's output directions, None for source "sgd".
    """

    bases: dict[str, KroneckerBasis | None]
    stiffness: dict[str, Tensor]
    scale: float | None = None


@dataclass(frozen=True)
class TaskEnd:
    """What a measurement may look at when a task has ended.

    Attributes:
        model: at the task's final weights.
        parameters: its trainable parameters by name.
        travelled: displacement of each over the task, w.
        batches: of the task, or None.
        forward: from a batch to outputs [..., C].
        options: of LDC.
        scale: of the probe's output directions, fixed by the first task; None there.
        generator: of random directions and perturbations.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    travelled: Mapping[str, Tensor]
    batches: Iterable[Sequence[Tensor] | Tensor] | None
    forward: Forward
    options: LDCOptions
    scale: float | None
    generator: torch.Generator

    def inputs(self) -> list[list[Tensor]]:
        """Return the batches cut into the probe's chunks, on the model's device.

        Returns:
            Chunks; cutting them again changes nothing.

        Raises:
            StateError: no batches were given.
        """
        if self.batches is None:
            raise StateError(
                'source="probe" looks at some inputs of the task just learned: call '
                "end_task(batches) with an iterable of them, for instance the task's loader"
            )
        return chunked(
            self.batches,
            inputs=self.options.probe_inputs,
            size=self.options.probe_batch,
            device=next(iter(self.parameters.values())).device,
        )


class Measurement(Protocol):
    """How a source measures one task's stiffness."""

    def watch(self, step: int, parameters: Mapping[str, Tensor], batch_size: int | None) -> None:
        """Look at one training step, just made."""

    def stiffness(self, end: TaskEnd) -> Found:
        """Return the task's stiffness, the model being at the task's final weights."""

    def state_dict(self) -> State:
        """Return what has been watched so far, as plain state."""

    def load_state_dict(self, state: Mapping[str, Any], views: Mapping[str, Tensor]) -> None:
        """Take up a saved state; ``views`` are the weights by unit's name."""


def combined(
    unit: Unit, old: Constraint | None, found: Found, anchor: Tensor
) -> tuple[Constraint, float]:
    """Return the unit's one constraint for all tasks so far, anchored at the present weights.

    Args:
        unit: the unit.
        old: the constraint held so far, or None.
        found: this task's measurement.
        anchor: W* [out, in], the weights at this task's end; copied.

    Returns:
        The constraint, and the share of the old one's squared Frobenius norm that lies off the
        merged basis and is lost (0 where none was held).
    """
    basis, k = found.bases[unit.name], found.stiffness[unit.name]
    lost = 0.0
    if old is not None:
        kept = spectrum_in(old, basis)
        norm = float(old.squared_norm())
        within = float(Constraint(basis, kept, anchor).squared_norm())
        lost = max(0.0, 1.0 - within / norm) if norm > 0 else 0.0
        k = k + kept
    wide = torch.promote_types(anchor.dtype, torch.float32)
    return Constraint(basis, k, anchor.detach().to(wide, copy=True)), lost


def _scale(end: TaskEnd, chunk: Sequence[Tensor]) -> float:
    """Return the unit fixed by the first task: it must not change as a head grows."""
    if end.scale is not None:
        return end.scale
    with evaluation_mode(end.model), torch.no_grad():
        outputs = outputs_of(end.forward, chunk)
    return float(max(2, outputs.shape[-1]) ** -_UNIT)


@dataclass
class ProbeMeasurement:
    """Sources "probe" and "fisher": output directions at weights perturbed to finite width."""

    units: Sequence[Unit]
    constraints: Mapping[str, Constraint]

    def watch(self, step: int, parameters: Mapping[str, Tensor], batch_size: int | None) -> None:
        """Do nothing: the probe looks at the task's end only."""

    def state_dict(self) -> State:
        """Return nothing: the probe looks at the task's end only.

        Returns:
            An empty dict.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any], views: Mapping[str, Tensor]) -> None:
        """Do nothing: the probe looks at the task's end only."""

    def stiffness(self, end: TaskEnd) -> Found:
        """Return the task's stiffness from two passes over the same inputs.

        Args:
            end: of the task; its batches are needed.

        Returns:
            Bases, stiffness and the scale in force.
        """
        chunks = end.inputs()
        scale = _scale(end, chunks[0])
        inputs = sum(len(chunk[0]) for chunk in chunks)
        # Only matrices are perturbed: see probe_gradients.
        widths = [
            end.options.width * float(view.norm()) / max(1, view.numel()) ** 0.5
            for view in (unit.gather(end.travelled) for unit in self.units)
        ]

        def gradients_of(
            parts: Sequence[Sequence[Tensor]], draw: OutputDraw
        ) -> Iterable[list[Gradient]]:
            return probe_gradients(
                end.model,
                self.units,
                end.parameters,
                parts,
                forward=end.forward,
                widths=widths,
                scale=scale,
                generator=end.generator,
                draw=draw,
            )

        draw = label_directions if end.options.source == "fisher" else output_directions
        of_basis = label_directions if end.options.directions == "fisher" else draw
        found = {u.name: side_moments(u, u.gather(end.parameters), end.options) for u in self.units}
        sides = {name: moments for name, moments in found.items() if moments is not None}
        # The bases need fewer perturbations than the variances: larger batches serve.
        larger = joined(chunks, _CHUNKS_A_BASIS_BATCH)
        for gradients in stacked(gradients_of(larger, of_basis), rows=_ROWS):
            for unit, G in zip(self.units, gradients, strict=True):
                if unit.name in sides:
                    sides[unit.name].add(G)
        bases: dict[str, KroneckerBasis | None] = {unit.name: None for unit in self.units}
        for name, moments in sides.items():
            moments.total = inputs
            bases[name] = merged_basis(
                self.constraints.get(name), moments, damping=end.options.use_damping
            )
        coordinates = {
            unit.name: EigenMoments.zeros(bases[unit.name], unit.gather(end.parameters).detach())
            for unit in self.units
        }
        for gradients in stacked(gradients_of(chunks, draw), rows=_ROWS):
            for unit, G in zip(self.units, gradients, strict=True):
                coordinates[unit.name].add(G)
        stiffness = {}
        for unit in self.units:
            k = stiffness_from_probe(coordinates[unit.name], inputs)
            if unit.matrix:
                k = damp(k, end.options.use_damping, bases[unit.name])
            stiffness[unit.name] = k
        return Found(bases, stiffness, scale)
