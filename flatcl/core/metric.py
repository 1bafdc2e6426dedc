"""How an optimiser turns gradients into steps: the metric D, W ← W − D g.

One small function an optimiser: how far it goes along a gradient that stays the same. D is summed
over the steps since the last pull, so that a changing learning rate or momentum counts as it was.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatcl.core.layers import Unit

# sD of one unit: a number for an isotropic metric, else a tensor in the unit's view; w²/nats.
Metric: TypeAlias = "float | Tensor"
# The same of one parameter: for a rate of 1, and Σ η over the steps.
Way: TypeAlias = "tuple[Metric, float]"
_Group: TypeAlias = Mapping[str, object]

# Entries that never had a gradient (dead inputs) have v = 0 and an unbounded D. Without a gradient
# their fixed point does not depend on D, so a floor on D⁻¹, as a share of its mean over the
# parameter, only keeps the solve well conditioned.
_FLOOR = 0.03
# The same over a weight and its bias together: a bias ahead of a normalisation has no gradient but
# rounding's, in all its entries.
_JOINT_FLOOR = 1e-3


class StepMetric:
    """Reads sD of every parameter from an optimiser, s counted in steps since given marks.

    Args:
        optimizer: any torch optimiser; those with a diagonal metric (SGD with momentum, the Adam
            family, RMSprop, Adagrad, Adadelta) are known exactly, any other counts as plain SGD at
            its learning rate, with one warning.
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

    def rates(self) -> list[float]:
        """Return η of each parameter group now, times what its momentum adds up to.

        Returns:
            One number a group.
        """
        return [float(group["lr"]) * _gain(group) for group in self.optimizer.param_groups]

    def read(
        self,
        unit: Unit,
        parameters: Mapping[str, Tensor],
        travelled: list[float],
        moved: Container[str] | None = None,
        shared: dict[str, Way | None] | None = None,
    ) -> Metric | None:
        """Return sD of a unit, or None if the optimiser has not stepped it.

        Args:
            unit: whose metric is wanted.
            parameters: the model's parameters by name.
            travelled: sum of ``rates`` over the steps since the last pull, one number a group.
            moved: names of the parameters that the latest step moved; None: those with a gradient.
            shared: filled with what was read of parameters that several units share, and looked
                up there; None reads afresh.

        Returns:
            A number where one holds for the whole unit, else a tensor in the unit's view.
        """
        parts: dict[str, Way] = {}
        for part in unit.parts:
            name = part.parameter
            if parameters[name].grad is None if moved is None else name not in moved:
                return None
            if shared is None or part.rows is None:
                way = self._of(parameters[name], travelled)
            else:
                if name not in shared:
                    shared[name] = self._of(parameters[name], travelled)
                way = shared[name]
            if way is None:
                return None
            parts[name] = way
        steps = {total for _, total in parts.values()}
        ways = [way for way, _ in parts.values()]
        if len(steps) == 1 and all(isinstance(w, float) and w == ways[0] for w in ways):
            return ways[0] * steps.pop()
        D = unit.gather({n: _filled(parameters[n], way) for n, (way, _) in parts.items()})
        if len(parts) > 1:  # before learning rates, which tell nothing of gradients
            D = torch.minimum(D, 1.0 / (_JOINT_FLOOR * (1.0 / D).mean()))
        if len(steps) == 1:
            return D * steps.pop()
        rates = {name: _filled(parameters[name], total) for name, (_, total) in parts.items()}
        return D * unit.gather(rates)

    def _of(self, parameter: Tensor, travelled: list[float]) -> Way | None:
        found = self._group_of(parameter)
        if found is None:
            return None
        direction = self._direction(found[0], self.optimizer.state.get(parameter, {}), parameter)
        return None if direction is None else (direction, travelled[found[1]])

    def _group_of(self, parameter: Tensor) -> tuple[_Group, int] | None:
        for i, group in enumerate(self.optimizer.param_groups):
            if any(p is parameter for p in group["params"]):
                return group, i
        return None


def _gain(group: _Group) -> float:
    # A constant gradient is stepped by η (1 − dampening) / (1 − β) once the buffer has filled. SGD
    # and RMSprop have a group entry of that name; the average that Adam takes has gain 1.
    momentum, dampening = float(group.get("momentum", 0)), float(group.get("dampening", 0))  # type: ignore[arg-type]
    return (1.0 - dampening) / (1.0 - momentum) if 0 < momentum < 1 else 1.0


def _scalar(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    return 1.0


def _filled(like: Tensor, value: Metric) -> Tensor:
    return value if isinstance(value, Tensor) else _wide(torch.full_like(like, value))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _inverse(denominator: Tensor) -> Tensor:
    return 1.0 / torch.maximum(denominator, _FLOOR * denominator.mean())


def _adam(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    if "exp_avg_sq" not in state:
        return None
    moment = _wide(state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"])
    beta, eps = float(group["betas"][1]), float(group["eps"])  # type: ignore[index,arg-type]
    unbiased = moment / (1.0 - beta ** state["step"].to(moment.device))
    return _inverse(unbiased.sqrt_().add_(eps))


def _radam(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    # Adam times a rectification; plain momentum during the first steps.
    if "exp_avg_sq" not in state:
        return None
    beta, eps = float(group["betas"][1]), float(group["eps"])  # type: ignore[index,arg-type]
    step = float(state["step"])
    last, unbiased = 2.0 / (1.0 - beta) - 1.0, float(1.0 - beta**step)
    length = last - 2.0 * step * beta**step / unbiased
    if length <= 5.0:
        return 1.0
    rectified: float = (length - 4) * (length - 2) * last / ((last - 4) * (last - 2) * length)
    D = _inverse(_wide(state["exp_avg_sq"]).sqrt().add_(eps))
    return D * math.sqrt(rectified * unbiased)


def _adamax(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    return _inverse(_wide(state["exp_inf"])) if "exp_inf" in state else None


def _rmsprop(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    if "square_avg" not in state:
        return None
    moment = _wide(state["square_avg"])
    if group.get("centered"):
        moment = (moment - _wide(state["grad_avg"]).square()).clamp_min_(0.0)
    return _inverse(moment.sqrt().add_(float(group["eps"])))  # type: ignore[arg-type]


def _adagrad(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    if "sum" not in state:
        return None
    decay = 1.0 + (float(state["step"]) - 1.0) * float(group["lr_decay"])  # type: ignore[arg-type]
    return _inverse(_wide(state["sum"]).sqrt().add_(float(group["eps"]))) / decay  # type: ignore[arg-type]


def _adadelta(group: _Group, state: Mapping[str, Tensor], parameter: Tensor) -> Metric | None:
    if "square_avg" not in state:
        return None
    eps = float(group["eps"])  # type: ignore[arg-type]
    D = _inverse(_wide(state["square_avg"]).add(eps).sqrt_())
    return D * _wide(state["acc_delta"]).add(eps).sqrt_()


_KNOWN: dict[str, Callable[[_Group, Mapping[str, Tensor], Tensor], Metric | None]] = {
    "SGD": _scalar,
    "Adam": _adam,
    "AdamW": _adam,
    "NAdam": _adam,  # its two weights, of the gradient and of the average, sum to 1
    "RAdam": _radam,
    "Adamax": _adamax,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
    "Adadelta": _adadelta,
}
