"""Linear and convolutional layers as matrices that meet their inputs: what projections need."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatcl.errors import OptionError


def layers_of(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers that train, by name.

    Args:
        model: any network.

    Returns:
        Its Linear and Conv2d layers with a parameter that requires a gradient.

    Raises:
        OptionError: another layer has parameters that train, or a convolution has groups or
            pads otherwise than with a number of zeros.
    """
    layers: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, module in model.named_modules():
        if not any(weight.requires_grad for weight in module.parameters(recurse=False)):
            continue
        plain = isinstance(module, nn.Conv2d) and (
            module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
        if not (plain or isinstance(module, nn.Linear)):
            raise OptionError(
                f"{name or 'the model'} is {module}: its parameters train, and only Linear "
                "and Conv2d (groups=1, padded with a number of zeros) can be projected: freeze it"
            )
        layers[name] = module
    return layers


def inputs_of(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """Return a batch of inputs, as the columns of :func:`matrix_of` meet them.

    Args:
        layer: that is called.
        x: what it is called with, samples first.

    Returns:
        [samples, places, d]: a convolution has a place for each of its patches, Linear one, or
        one for each of its further dimensions.
    """
    if isinstance(layer, nn.Conv2d):
        patches = functional.unfold(
            x,
            layer.kernel_size,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
        )
        x = patches.transpose(1, 2)
    x = x.reshape(len(x), -1, x.shape[-1])
    parts = [x] if layer.weight.requires_grad else []
    if layer.bias is not None and layer.bias.requires_grad:
        parts.append(torch.ones_like(x[:, :, :1]))
    return torch.cat(parts, dim=2)


def matrix_of(layer: nn.Linear | nn.Conv2d, *, attached: bool = False) -> Tensor:
    """Return a copy of a layer's parameters that train.

    Args:
        layer: Linear or Conv2d.
        attached: whether gradients flow from the copy to the parameters.

    Returns:
        [out, d], the bias as the last column.
    """
    parts = [weight.flatten(1) for weight in _trained(layer)]
    return torch.cat(parts if attached else [part.detach() for part in parts], dim=1)


def assign_(layer: nn.Linear | nn.Conv2d, matrix: Tensor) -> None:
    """Write a matrix of the form of :func:`matrix_of` into a layer.

    Args:
        layer: Linear or Conv2d.
        matrix: [out, d].
    """
    start = 0
    for weight in _trained(layer):
        width = weight[0].numel()
        weight.copy_(matrix[:, start : start + width].view_as(weight))
        start += width


def _trained(layer: nn.Linear | nn.Conv2d) -> Iterator[Tensor]:
    if layer.weight.requires_grad:
        yield layer.weight
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias[:, None]
