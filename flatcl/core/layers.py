"""Which parameters are held, and their matrix view.

ONE layout everywhere else: a Linear or Conv layer is W [out, in (+1)], in = channels · kernel
positions, its bias (if trained) the last column, fed by a constant input 1. Every other trained
parameter keeps its own shape and is held entry by entry (a *diagonal* unit).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatcl.errors import OptionError

_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Unit:
    """A group of parameters that one constraint holds.

    Attributes:
        name: the weight's name in ``model.named_parameters()``; the key of all state.
        bias: the name of the bias that is the matrix's last column, or None.
        matrix: True for a matrix view [out, in (+1)], False for entry-by-entry.
    """

    name: str
    bias: str | None
    matrix: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return (self.name,) if self.bias is None else (self.name, self.bias)

    def gather(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the unit's view of tensors keyed by parameter name.

        Args:
            tensors: parameters, gradients or optimiser state, each in its parameter's shape.

        Returns:
            [out, in (+1)] for a matrix, else the parameter's shape. A copy if there is a bias.
        """
        weight = tensors[self.name]
        if not self.matrix:
            return weight
        flat = weight.reshape(weight.shape[0], -1)
        if self.bias is None:
            return flat
        return torch.cat([flat, tensors[self.bias].unsqueeze(1)], dim=1)

    @torch.no_grad()
    def write_(self, parameters: Mapping[str, Tensor], view: Tensor) -> None:
        """Set the unit's parameters to ``view``, in place.

        Args:
            parameters: the model's parameters by name.
            view: as ``gather`` returns it; cast to each parameter's dtype.
        """
        for name, part in self._parts(parameters, view):
            parameters[name].copy_(part)

    @torch.no_grad()
    def subtract_(self, parameters: Mapping[str, Tensor], view: Tensor) -> None:
        """Subtract ``view`` from the unit's parameters, in place: zeros change no bit.

        Args:
            parameters: the model's parameters by name.
            view: as ``gather`` returns it; cast to each parameter's dtype.
        """
        for name, part in self._parts(parameters, view):
            parameters[name].sub_(part.to(parameters[name].dtype))

    def _parts(self, parameters: Mapping[str, Tensor], view: Tensor) -> list[tuple[str, Tensor]]:
        shape = parameters[self.name].shape
        if self.bias is None:
            return [(self.name, view.reshape(shape))]
        return [(self.name, view[:, :-1].reshape(shape)), (self.bias, view[:, -1])]


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's trainable parameters by name, shared ones once.

    Args:
        model: any module.

    Returns:
        Name → parameter (the leaf that an optimiser moves).
    """
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def matrix_views(model: nn.Module) -> list[Unit]:
    """Return how each trainable parameter is held: Linear and Conv layers as matrices.

    A convolution with groups and a layer whose weight is not a leaf (parametrisations, weight norm)
    fall to the diagonal, under the leaf's name.

    Args:
        model: the model as it is now; call again after a head has been added or has grown.

    Returns:
        Units that cover every trainable parameter exactly once.

    Raises:
        OptionError: the model has no trainable parameter.
    """
    parameters = trained_parameters(model)
    if not parameters:
        raise OptionError(
            "the model has no trainable parameter, so there is nothing to hold: "
            "check requires_grad of its parameters"
        )
    name_of = {id(p): name for name, p in parameters.items()}
    left = dict.fromkeys(parameters)
    units: list[Unit] = []
    for layer in model.modules():
        if not isinstance(layer, _MATRIX_LAYERS) or getattr(layer, "groups", 1) != 1:
            continue
        weight = name_of.get(id(layer.weight))
        if weight is None or weight not in left:
            continue
        bias = name_of.get(id(layer.bias)) if layer.bias is not None else None
        units.append(Unit(weight, bias if bias in left else None, matrix=True))
        for name in units[-1].names:
            del left[name]
    units.extend(Unit(name, None, matrix=False) for name in left)
    return units
