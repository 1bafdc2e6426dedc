"""Witnesses of forgetting: pseudo-inputs, and what the network said of them when a task ended.

Per group of a task's inputs (predicted class and task label, ``sample``) they have the group's mean
and, up to sampling, its whole covariance: with x_i the n inputs of a group and m their mean,

    x̃ = m + n^(−1/2) Σ_i z_i (x_i − m),   z_i independent normal deviates.

A group has 16 inputs at least; a task without one has no witnesses.

The rise of the task's loss since is then forecast without a quadratic, as the divergence

    ⟨KL(p(x̃) ‖ q(x̃))⟩,   p then, q now,

the rise of the cross-entropy if p were the truth. They are read by the forecast alone and never
trained on: where a loss has been lowered on inputs, it says little of others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatcl.core.gradients import Forward
from flatcl.core.predictions import predictions_at
from flatcl.core.sample import Sample
from flatcl.core.saved import State, entry


@dataclass(frozen=True)
class Witnesses:
    """Those of one task.

    Attributes:
        parts: pseudo-inputs [n, …] in random order, with the batch's other parts.
        expected: log p [n, …, C] at the task's end.
    """

    parts: list[Tensor]
    expected: Tensor

    @classmethod
    def drawn(
        cls, model: nn.Module, forward: Forward, sample: Sample, number: int, seed: int
    ) -> Witnesses | None:
        """Draw witnesses of a task, groups in proportion to their sizes.

        Args:
            model: the network at the task's end.
            forward: from a batch to outputs [..., C].
            sample: of the task's inputs.
            number: n ≥ 1.
            seed: of the draw; they take no part in training, whose random state is left alone.

        Returns:
            The witnesses; None where the sample has no group that is large enough.
        """
        groups = sample.large_groups()
        if not groups:
            return None
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.tensor([len(places) for places in groups], dtype=torch.float64)
        chosen = torch.multinomial(sizes, number, replacement=True, generator=generator)
        rows = sample.rows()
        found = rows.new_empty((number, rows.shape[1]))
        rest = [part[:1].expand(number, *part.shape[1:]).clone() for part in sample.parts[1:]]
        for group, places in enumerate(groups):
            at = (chosen == group).nonzero()[:, 0]
            z = torch.randn(len(at), len(places), generator=generator).to(rows)
            mean = rows[places].mean(0)
            at = at.to(rows.device)
            found[at] = mean + z @ (rows[places] - mean) / len(places) ** 0.5
            for whole, part in zip(rest, sample.parts[1:], strict=True):
                whole[at] = part[places[:1]]
        inputs = sample.parts[0]
        parts = [found.reshape(number, *inputs.shape[1:]).to(inputs.dtype), *rest]
        return cls(parts, predictions_at(model, forward, parts))

    def fewer(self, number: int) -> Witnesses:
        """Return some of them, in memory of their own.

        Args:
            number: how many, at most.

        Returns:
            The first.
        """
        if number >= len(self.expected):
            return self
        return Witnesses([p[:number].clone() for p in self.parts], self.expected[:number].clone())

    def rise(self, model: nn.Module, forward: Forward) -> tuple[float, float]:
        """Return the forecast rise of the task's loss since it ended.

        Args:
            model: the network as it is now; a head may have grown.
            forward: from a batch to outputs [..., C].

        Returns:
            ⟨KL⟩ and its standard error over the witnesses, nats; infinite for a single witness.
        """
        now = predictions_at(model, forward, self.parts)[..., : self.expected.shape[-1]]
        each = (self.expected.exp() * (self.expected - now)).sum(-1).double()
        each = each.reshape(len(each), -1).mean(1)
        error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.inf
        return float(each.mean()), error

    def to(
        self, device: torch.device, cast: Mapping[torch.dtype, torch.dtype] | None = None
    ) -> Witnesses:
        """Return the witnesses on a device.

        Args:
            device: where they shall be.
            cast: dtypes of their inputs by that which takes their place; others stay.

        Returns:
            The same there.
        """
        dtype = self.parts[0].dtype
        inputs = self.parts[0].to(device, (cast or {}).get(dtype, dtype))
        rest = [part.to(device) for part in self.parts[1:]]
        return Witnesses([inputs, *rest], self.expected.to(device))

    def tensors(self) -> list[Tensor]:
        """Return all that is kept, to be counted or sent between processes in place.

        Returns:
            Parts and predictions.
        """
        return [*self.parts, self.expected]

    def state_dict(self) -> State:
        """Return them as plain state.

        Returns:
            What ``from_state`` reads; never written to.
        """
        return {"parts": self.parts, "expected": self.expected}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Witnesses:
        """Return what ``state_dict`` encoded.

        Args:
            state: its result.
            device: of the model.

        Returns:
            The witnesses.
        """
        what = "witnesses"
        parts = [part.to(device) for part in entry(state, "parts", what)]
        return cls(parts, entry(state, "expected", what).to(device))
