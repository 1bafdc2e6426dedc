"""How an optimiser turns gradients into steps: the metric D, W ← W − D g.

One small function an optimiser. D is summed over the steps since the last pull, so that a
changing learning rate is counted as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatcl.core.layers import Unit

# sD of one unit: a number for an isotropic metric, else a tensor in the unit's view; w²/nats.
Metric: TypeAlias = "float | Tensor"
_Group: TypeAlias = Mapping[str, object]

# Entries that never had a gradient (dead inputs) have v = 0 and an unbounded D. Without a gradient
# their fixed point does not depend on D, so a floor on D⁻¹, as a share of its mean over the
# parameter, only keeps the solve well conditioned.
_FLOOR = 0.03


class StepMetric:
    """Reads sD of every parameter from an optimiser, s counted in steps since given marks.

    Args:
        optimizer: any torch optimiser; SGD (with momentum), Adam and AdamW are known exactly, any
            other counts as plain SGD at its learning rate, with one warning.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        known = _KNOWN.get(type(optimizer).__name__)
        if known is None:
            warnings.warn(
                f"the metric of {type(optimizer).__name__} is not known; LDC takes its learning "
                "rate as plain SGD's: with SGD, Adam or AdamW the pull is exact",
                stacklevel=3,
            )
            known = _scalar
        self._direction = known

    def read(
        self,
        unit: Unit,
        parameters: Mapping[str, Tensor],
        travelled: list[float],
        shared: dict[str, Metric | None] | None = None,
    ) -> Metric | None:
        """Return sD of a unit, or None if the optimiser has not stepped it.

        Args:
            unit: whose metric is wanted.
            parameters: the model's parameters by name.
            travelled: Σ η over the steps since the last pull, one number a group.
            shared: filled with what was read of parameters that several units share, and looked
                up there; None reads afresh.

        Returns:
            A number where one holds for the whole unit, else a tensor in the unit's view.
        """
        parts: dict[str, Metric] = {}
        for part in unit.parts:
            name = part.parameter
            if shared is None or part.rows is None:
                metric = self._of(parameters[name], travelled)
            else:
                if name not in shared:
                    shared[name] = self._of(parameters[name], travelled)
                metric = shared[name]
            if metric is None:
                return None
            parts[name] = metric
        values = list(parts.values())
        if all(isinstance(v, float) and v == values[0] for v in values):
            return values[0]
        return unit.gather(
            {
                name: v if isinstance(v, Tensor) else torch.full_like(parameters[name], v)
                for name, v in parts.items()
            }
        )

    def _of(self, parameter: Tensor, travelled: list[float]) -> Metric | None:
        found = None if parameter.grad is None else self._group_of(parameter)
        if found is None:
            return None
        group, total = found[0], travelled[found[1]]
        direction = self._direction(group, self.optimizer.state.get(parameter, {}), parameter)
        return None if direction is None else direction * total

    def _group_of(self, parameter: Tensor) -> tuple[_Group, int] | None:
        for i, group in enumerate(self.optimizer.param_groups):
            if any(p is parameter for p in group["params"]):
                return group, i
        return None


def _scalar(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    return 1.0


def _sgd(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    # A constant gradient is stepped by η (1 − dampening) / (1 − β) once the buffer has filled.
    momentum, dampening = float(group["momentum"]), float(group["dampening"])  # type: ignore[arg-type]
    return (1.0 - dampening) / (1.0 - momentum) if 0 < momentum < 1 else 1.0


def _adam(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    if "exp_avg_sq" not in state:
        return None
    moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    beta, eps = float(group["betas"][1]), float(group["eps"])  # type: ignore[index,arg-type]
    unbiased = moment / (1.0 - beta ** state["step"].to(moment.device))
    inverse = unbiased.sqrt_().add_(eps)
    return 1.0 / torch.maximum(inverse, _FLOOR * inverse.mean())


_KNOWN: dict[str, Callable[[_Group, Mapping[str, Tensor], Tensor], Metric | None]] = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adam,
}
