"""A network's layers as matrices [out, in + 1]: their inputs, weights and gradients.

A Linear layer maps each row of its input by one matrix, a convolution each patch. A bias is the
matrix's last column, the weight of an input that is always 1. Frozen parameters have no columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatcl.errors import OptionError

Layer: TypeAlias = nn.Linear | nn.Conv2d


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Return the layers with trainable parameters, by name.

    Args:
        model: of Linear and Conv2d layers; others may have no trainable parameters.

    Returns:
        The layers, in the model's order.

    Raises:
        OptionError: a trainable parameter is of another kind of layer, or of two layers.
    """
    layers: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        shown = repr(name or "the model itself")
        if type(module) not in (nn.Linear, nn.Conv2d):  # a subclass may compute something else
            raise OptionError(
                f"layer {shown} is a {type(module).__name__}: only Linear "
                "and Conv2d layers are known, freeze it or take another method"
            )
        if isinstance(module, nn.Conv2d) and (
            module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str)
        ):
            raise OptionError(
                f"layer {shown} has groups {module.groups} and padding {module.padding!r} of "
                f"{module.padding_mode}: only one group and a number of zeros are known"
            )
        if seen & {id(p) for p in own}:
            raise OptionError(f"layer {shown} shares a parameter with another: untie them")
        seen |= {id(p) for p in own}
        layers[name] = cast("Layer", module)
    if not layers:
        raise OptionError("the model has no trainable parameter: unfreeze one")
    return layers


def trainable(layer: Layer) -> list[Tensor]:
    """Return the parameters that the columns of the layer's matrix belong to.

    Args:
        layer: of ``layers_of``.

    Returns:
        Its weight and its bias, without those that are frozen.
    """
    return [p for p in (layer.weight, layer.bias) if p is not None and p.requires_grad]


def to_matrix(tensors: Sequence[Tensor]) -> Tensor:
    """Return values of a layer's trainable parameters as one matrix.

    Args:
        tensors: in the order and of the shapes of ``trainable``.

    Returns:
        [out, columns].
    """
    return torch.cat(
        [tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in tensors], 1
    )


def from_matrix(matrix: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return a layer's matrix as values of its trainable parameters.

    Args:
        matrix: [out, columns].
        like: tensors of the shapes wanted.

    Returns:
        Views of the matrix.
    """
    widths = [tensor.numel() // len(tensor) for tensor in like]
    parts = matrix.split(widths, 1)
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def matrix_of(layer: Layer, *, attached: bool = False) -> Tensor:
    """Return a copy of a layer's trainable parameters as one matrix.

    Args:
        layer: of ``layers_of``.
        attached: whether gradients flow from the copy to the parameters.

    Returns:
        [out, columns].
    """
    own = trainable(layer)
    return to_matrix(own if attached else [p.detach() for p in own])


@torch.no_grad()
def assign_(layer: Layer, matrix: Tensor) -> None:
    """Write a matrix into a layer's trainable parameters.

    Args:
        layer: of ``layers_of``.
        matrix: [out, columns].
    """
    own = trainable(layer)
    for parameter, value in zip(own, from_matrix(matrix, own), strict=True):
        parameter.copy_(value)


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """Return what the layer's matrix multiplies.

    Args:
        layer: of ``layers_of``.
        x: its input [B, …].

    Returns:
        [B, L, columns], L the places (of a convolution, or between batch and features) that share
        the matrix.
    """
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding
        assert not isinstance(padding, str)  # layers_of refused it
        patches = functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
        rows = patches.transpose(1, 2)
    else:
        rows = x.reshape(len(x), -1, x.shape[-1])
    parts = [rows] if layer.weight.requires_grad else []
    if layer.bias is not None and layer.bias.requires_grad:
        parts.append(rows.new_ones(*rows.shape[:2], 1))
    return torch.cat(parts, 2)


def output_rows(layer: Layer, y: Tensor) -> Tensor:
    """Return what the layer's matrix gives, or its gradient.

    Args:
        layer: of ``layers_of``.
        y: its output [B, …].

    Returns:
        [B, L, out], places as in ``input_rows``.
    """
    if isinstance(layer, nn.Conv2d):
        return y.flatten(2).transpose(1, 2)
    return y.reshape(len(y), -1, y.shape[-1])
