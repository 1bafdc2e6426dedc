"""Principal directions and their flatness, measured at a task's end and held in the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flatcl.core.batches import chunked, joined
from flatcl.core.gradients import Forward
from flatcl.core.lowrank import LowRankConstraint, merge_low_rank
from flatcl.core.measure import TaskEnd
from flatcl.core.metric import Metric
from flatcl.errors import StateError
from flatcl.fluctuations import (
    Flatness,
    LossSurface,
    PrincipalDirections,
    cross_entropy,
    flatness,
    principal_directions,
)
from flatcl.fluctuations.surface import Loss
from flatcl.published.options import PublishedOptions
from flatcl.published.snapshots import TailSnapshots, flattened

_RESOLVED = 1e-4  # nats, below which single precision is too coarse for e times the loss


class PublishedLDC:
    """The published constraint, as ``Landscape(network=…)`` takes it.

    Attributes:
        held: of all tasks that have ended, λ not included; None before the first.
        measured: principal directions and flatness of the latest task.

    Args:
        options: None for the defaults.
        loss: from outputs and targets to one loss a sample [n].
    """

    def __init__(
        self, options: PublishedOptions | None = None, *, loss: Loss = cross_entropy
    ) -> None:
        self.options, self.loss = options or PublishedOptions(), loss
        self.held: LowRankConstraint | None = None
        self.measured: tuple[PrincipalDirections, Flatness] | None = None
        self._shapes: dict[str, torch.Size] = {}
        self._tail = TailSnapshots(self.options, None)

    def begin_task(self, parameters: Mapping[str, Tensor], steps: int | None) -> None:
        """Take up the model's layout; parameters that have grown are free where they are new.

        Args:
            parameters: by name.
            steps: of the task, if known; snapshots before its window are then spared.
        """
        shapes = {name: p.shape for name, p in parameters.items()}
        if self.held is not None and shapes != self._shapes:
            self.held = self.held.grown_to(self._shapes, parameters)
        self._shapes = shapes
        self._tail = TailSnapshots(self.options, steps)

    def watch(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Take a snapshot of the weights, if one is due.

        Args:
            step: counted from 1.
            parameters: by name.
        """
        if self.options.strength > 0:
            self._tail.offer(step, parameters)

    def energy(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return λ Σ [p_i · (w − w_t)]² / F_i², up to a constant from the second task on.

        Args:
            parameters: by name.

        Returns:
            A scalar, nats.
        """
        if self.held is None:
            return next(iter(parameters.values())).new_zeros(())
        return self.options.strength * self.held.energy(flattened(parameters))

    def correction(
        self, parameters: Mapping[str, Tensor], metric: Mapping[str, Metric]
    ) -> dict[str, Tensor]:
        """Return the exact proximal correction of every parameter that the optimiser steps.

        Args:
            parameters: by name.
            metric: sD by name.

        Returns:
            y by name, w.
        """
        if self.held is None:
            return {}
        values = (
            set() if any(isinstance(D, Tensor) for D in metric.values()) else {*metric.values()}
        )
        if len(values) == 1 and len(metric) == len(parameters):
            whole: Metric = float(values.pop())
        else:
            parts = {n: metric.get(n, 0.0) * torch.ones_like(p) for n, p in parameters.items()}
            whole = flattened(parts)
        y = self.held.correction(flattened(parameters), whole, strength=self.options.strength)
        pieces = torch.split(y, [p.numel() for p in parameters.values()])
        named = zip(parameters.items(), pieces, strict=True)
        return {n: part.view_as(p) for (n, p), part in named if n in metric}

    def end_task(self, end: TaskEnd) -> None:
        """Find the task's directions and their flatness, and add them to what is held.

        Args:
            end: of the task; its batches must have targets second.

        Raises:
            StateError: there are no batches with targets, or fewer than two snapshots.
        """
        if self.options.strength == 0:
            return
        snapshots = self._tail.snapshots()
        if len(snapshots) < 2:
            raise StateError(
                f"{len(snapshots)} snapshots of the weights were taken: train longer, or choose a "
                "larger window"
            )
        found = principal_directions(torch.stack(snapshots), self.options.directions)
        surface = self._surface(end)
        F = flatness(surface, found.directions, tolerance=self.options.tolerance)
        self.measured = found, F
        self._tail = TailSnapshots(self.options, None)  # here, where nothing can fail any more
        width = F.width
        kept = width.isfinite()
        weights = flattened(end.parameters)
        new = LowRankConstraint(
            found.directions[kept.to(found.directions.device)],
            (2.0 / width[kept].square()).to(found.directions),
            weights.clone(),
        )
        if not len(new.stiffness):
            return
        self.held = new if self.held is None else merge_low_rank(
            self.held, new, cap=self.options.cap
        )[0]  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return what is held between tasks.

        Returns:
            Tensors, and the parameters' shapes as lists by name; empty before the first task ended.
        """
        if self.held is None:
            return {}
        shapes = {name: list(shape) for name, shape in self._shapes.items()}
        return {**vars(self.held), "shapes": shapes}

    def load_state_dict(self, state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Take up a saved state.

        Args:
            state: from ``state_dict``.
            parameters: of the model, by name, as many as were saved or more.

        Raises:
            StateError: a tensor is missing, or shapes do not fit.
        """
        if not state:
            self.held = None
            return
        missing = {"directions", "stiffness", "anchor", "shapes"} - set(state)
        if missing:
            raise StateError(f"the saved published constraint lacks {sorted(missing)}")
        Q, kappa, anchor = (state[name] for name in ("directions", "stiffness", "anchor"))
        shapes = {name: torch.Size(shape) for name, shape in state["shapes"].items()}
        P = sum(shape.numel() for shape in shapes.values())
        if Q.shape != (len(kappa), P) or anchor.shape != (P,):
            raise StateError(
                f"the saved published constraint has shapes that do not fit: {tuple(Q.shape)}, "
                f"{tuple(kappa.shape)}, {tuple(anchor.shape)} for {P} weights"
            )
        device = next(iter(parameters.values())).device
        held = LowRankConstraint(Q.to(device), kappa.to(device), anchor.to(device))
        now = {name: p.shape for name, p in parameters.items()}
        self.held = held if shapes == now else held.grown_to(shapes, parameters)
        self._shapes = now

    def _surface(self, end: TaskEnd) -> LossSurface:
        parts: Sequence[Tensor] = ()
        if end.batches is not None:
            device = next(iter(end.parameters.values())).device
            chunks = chunked(
                end.batches, inputs=self.options.inputs, size=self.options.inputs, device=device
            )
            alike = joined(chunks, len(chunks))
            if len(alike) > 1:
                shapes = [tuple(parts[0].shape[1:]) for parts in alike]
                raise StateError(
                    f"inputs have shapes {shapes}: LDC as published measures the loss on inputs "
                    "of one shape; pad them alike"
                )
            parts = alike[0]
        if len(parts) < 2:
            raise StateError(
                "LDC as published measures the loss at a task's end: call end_task(batches) with "
                "batches (inputs, targets, …), for instance the task's loader"
            )
        called = _Indexed(end.model, end.forward, parts)
        chosen = [f"model.{name}" for name in end.parameters]
        indices = torch.arange(len(parts[0]), device=parts[0].device)
        surface = LossSurface(called, indices, parts[1], parameters=chosen, loss=self.loss)
        # At the tolerance asked for, single precision serves as long as it resolves the loss.
        loss, _ = surface.loss_with_error(surface.reference)
        return surface if loss < _RESOLVED else surface.to(self._dtype(end.parameters))

    @staticmethod
    def _dtype(parameters: Mapping[str, Tensor]) -> torch.dtype:
        dtype = torch.float32
        for p in parameters.values():
            dtype = torch.promote_types(dtype, p.dtype)
        return dtype


class _Indexed(nn.Module):
    """A network as a function of samples' indices, so that a whole batch is one input."""

    def __init__(self, model: nn.Module, forward: Forward, parts: Sequence[Tensor]) -> None:
        super().__init__()
        self.model, self._forward, self._parts = model, forward, parts

    def forward(self, indices: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        return self._forward(
            [
                p[indices].to(weight.dtype) if p.is_floating_point() else p[indices]
                for p in self._parts
            ]
        )
