"""How far the quadratic forecast holds: the growth of a displacement's effect on the outputs.

With f_a the outputs at W* + a x,

    growth = ⟨‖f_1 − f_0‖²⟩ / (⟨‖f_ε − f_0‖²⟩ / ε²),   ε = 1/8,

1 for a linear network. Units that switch on along the way make it large.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatcl.core.batches import chunked, joined
from flatcl.core.constraint import Constraint
from flatcl.core.gradients import Forward, evaluation_mode
from flatcl.core.layers import Unit

INPUTS = 256  # on which the growth is measured
_STEP = 0.125

Constraints = Mapping[str, Constraint]


@dataclass(frozen=True)
class Network:
    """A model as the forecast looks at it.

    Attributes:
        model: the network.
        units: how its parameters are held.
        parameters: its trainable parameters by name.
        forward: from a batch to outputs [..., C].
    """

    model: nn.Module
    units: Sequence[Unit]
    parameters: Mapping[str, Tensor]
    forward: Forward

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def energy(self, constraints: Constraints) -> Tensor:
        """Return Σ ½ xᵀKx of the present weights over the units held.

        Args:
            constraints: by unit's name; rows that an output layer has gained since are free.

        Returns:
            A scalar, nats, on the model's device.
        """
        total = next(iter(self.parameters.values())).new_zeros(())
        for unit in self.units:
            if unit.name in constraints:
                view = unit.gather(self.parameters).detach()
                constraint = constraints[unit.name].grown_to(view)
                total = total + constraint.energy(view.to(constraint.anchor.dtype))
        return total

    @torch.no_grad()
    def growth(self, constraints: Constraints, batches: Sequence[Sequence[Tensor]]) -> float:
        """Return by how much the change of the outputs outgrew the linear one since the anchor.

        Weights and buffers are put back bit for bit; torch's random state is left alone.

        Args:
            constraints: whose anchors the displacement counts from.
            batches: inputs of any task, present ones as a rule.

        Returns:
            The growth, 1 for a linear network or no displacement; infinite where the outputs
            changed at the end of the way only.
        """
        leaves = list(self.parameters.values())
        kept = [leaf.detach().clone() for leaf in leaves]
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        moves = []
        for unit in self.units:
            if unit.name in constraints:
                view = unit.gather(self.parameters).detach().clone()
                anchor = constraints[unit.name].grown_to(view).anchor
                moves.append((unit, anchor, view.to(anchor.dtype) - anchor))
        devices = [leaves[0].device] if leaves[0].device.type == "cuda" else []
        try:
            with evaluation_mode(self.model), torch.random.fork_rng(devices=devices):
                end = self._outputs(batches)
                for unit, anchor, _ in moves:
                    unit.write_(self.parameters, anchor)
                start = self._outputs(batches)
                for unit, anchor, x in moves:
                    unit.write_(self.parameters, anchor + _STEP * x)
                near = self._outputs(batches)
        finally:
            torch._foreach_copy_(leaves, kept)
            for buffer, value in buffers:
                buffer.copy_(value)
        whole, first = _change(end, start), _change(near, start) / _STEP**2
        if first == 0.0:
            return math.inf if whole > 0.0 else 1.0
        return whole / first

    def _outputs(self, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [self.forward(batch).detach().clone() for batch in batches]


def _change(after: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Return Σ ‖f′ − f‖², what all outputs of a row share taken out: a softmax ignores it."""
    total = 0.0
    for a, b in zip(after, before, strict=True):
        d = (a - b).nan_to_num(0.0, 0.0, 0.0)  # outputs masked by −∞ do not change
        if d.shape[-1] > 1:
            d = d - d.mean(-1, keepdim=True)
        total += float(d.square().sum())
    return total


def few(batches: Iterable[Sequence[Tensor] | Tensor], device: torch.device) -> list[list[Tensor]]:
    """Return the first ``INPUTS`` inputs in as few batches as their shapes allow.

    Args:
        batches: each a tensor of inputs, or a sequence of tensors of equal length, inputs first.
        device: where they go.

    Returns:
        One batch where all inputs are of one shape.
    """
    chunks = chunked(batches, inputs=INPUTS, size=INPUTS, device=device)
    return joined(chunks, len(chunks))
