"""The centre of the fluctuation: the mean of the weights over a task's last part.

Sampled only right after pulls. Between pulls the weights run off along stiff directions and come
back, a sawtooth; a mean that includes mid-tooth instants puts the run-off into the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flatcl.core.saved import State, entry, same_names, tensor_like

_SEGMENTS = 4  # the window is known to within 1/_SEGMENTS of itself


@dataclass
class TailMean:
    """Running mean of tensors over the last share of a stream whose length is not known.

    Samples are summed in segments of equal length; when the window holds more than
    ``2 · _SEGMENTS`` of them, neighbours are joined, and segments that have left it are dropped. So
    early stopping needs no warning, and memory is a few copies of the weights in mid-task, none
    afterwards.

    Attributes:
        share: of the steps that the mean covers, e.g. 0.1 for the last tenth.
        segments: (first step, count, sums) of each segment, oldest first.
        span: steps a segment covers.
    """

    share: float = 0.1
    segments: list[tuple[int, int, list[Tensor]]] = field(default_factory=list)
    span: int = 1

    @torch.no_grad()
    def add(self, step: int, tensors: list[Tensor]) -> None:
        """Add one sample.

        Args:
            step: its step, counted from 1, not falling from call to call.
            tensors: the weights now; summed in float32 or wider.
        """
        if self.segments and step < self.segments[-1][0] + self.span:
            first, count, sums = self.segments[-1]
            torch._foreach_add_(sums, [t.to(s.dtype) for t, s in zip(tensors, sums, strict=True)])
            self.segments[-1] = (first, count + 1, sums)
            return
        start = self._start(step)
        self.segments = [s for s in self.segments if s[0] + self.span > start]
        if len(self.segments) >= 2 * _SEGMENTS:
            self._join()
        wide = [torch.promote_types(t.dtype, torch.float32) for t in tensors]
        copies = [t.detach().to(d, copy=True) for t, d in zip(tensors, wide, strict=True)]
        self.segments.append((step, 1, copies))

    def mean(self, steps: int) -> list[Tensor] | None:
        """Return the mean over the samples of the last ``share`` of ``steps`` steps.

        Args:
            steps: the task's length.

        Returns:
            The means, or None if nothing was sampled. The latest sample always counts.
        """
        if not self.segments:
            return None
        start = self._start(steps)
        tail = [s for s in self.segments if s[0] >= start] or self.segments[-1:]
        count = sum(c for _, c, _ in tail)
        totals = [t.clone() for t in tail[0][2]]
        for _, _, sums in tail[1:]:
            torch._foreach_add_(totals, sums)
        torch._foreach_div_(totals, count)
        return totals

    def _start(self, steps: int) -> int:
        return steps - int(self.share * steps) + 1

    def _join(self) -> None:
        self.span *= 2
        joined: list[tuple[int, int, list[Tensor]]] = []
        for first, count, sums in self.segments:
            if joined and first < joined[-1][0] + self.span:
                a, b, c = joined[-1]
                torch._foreach_add_(c, sums)
                joined[-1] = (a, b + count, c)
            else:
                joined.append((first, count, sums))
        self.segments = joined


class Centre:
    """The mean of a model's weights, and of the running statistics that go with them.

    Args:
        named: the model's own tensors by name.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.names, self.targets = list(named), list(named.values())
        self.tail = TailMean()

    def sample(self, step: int) -> None:
        """Add the present weights to the mean.

        Args:
            step: of the task, counted from 1.
        """
        self.tail.add(step, self.targets)

    @torch.no_grad()
    def install_(self, steps: int) -> None:
        """Set the model to the mean over the task's last part; without samples, leave it.

        Args:
            steps: the task's length.
        """
        means = self.tail.mean(steps)
        if means is not None:
            for target, mean in zip(self.targets, means, strict=True):
                target.copy_(mean)

    def state_dict(self) -> State:
        """Return the samples so far.

        Returns:
            Plain state, copied.
        """
        return {
            "span": self.tail.span,
            "segments": [
                {
                    "first": first,
                    "count": count,
                    "sums": {n: t.clone() for n, t in zip(self.names, sums, strict=True)},
                }
                for first, count, sums in self.tail.segments
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up saved samples.

        Args:
            state: from ``state_dict``, of a model with the same parameters.
        """
        own = dict(zip(self.names, self.targets, strict=True))
        segments = []
        for saved in entry(state, "segments", "task's centre"):
            sums = entry(saved, "sums", "task's centre")
            same_names(sums, own, "task's centre")
            kept = [tensor_like(sums, name, own[name], "task's centre") for name in self.names]
            segments.append((int(saved["first"]), int(saved["count"]), kept))
        self.tail.span = int(entry(state, "span", "task's centre"))
        self.tail.segments = segments
