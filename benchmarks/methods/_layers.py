"""A network's layers as matrices [out, in + 1]: their inputs, weights and gradients.

A Linear layer maps each row of its input by one matrix, a convolution each patch. A bias is the
matrix's last column, the weight of an input that is always 1. Frozen parameters have no columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from flatcl.core.gradients import evaluation_mode
from flatcl.errors import NonFiniteError, OptionError
from flatcl.host import ensure_avalanche

ensure_avalanche()
from avalanche.models import avalanche_forward  # noqa: E402

Layer: TypeAlias = nn.Linear | nn.Conv2d
Watch: TypeAlias = Callable[[str, Layer, Tensor, Tensor], None]


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
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            raise OptionError(
                f"layer {name or 'the model itself'!r} is a {type(module).__name__}: only Linear "
                "and Conv2d layers are known, freeze it or take another method"
            )
        if isinstance(module, nn.Conv2d) and (
            module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str)
        ):
            raise OptionError(
                f"layer {name!r} has groups {module.groups} and padding {module.padding!r} of "
                f"{module.padding_mode}: only one group and a number of zeros are known"
            )
        if seen & {id(p) for p in own}:
            raise OptionError(f"layer {name!r} shares a parameter with another: untie them")
        seen |= {id(p) for p in own}
        layers[name] = module
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


@contextmanager
def watched(layers: Mapping[str, Layer], watch: Watch) -> Iterator[None]:
    """Call ``watch`` with each layer's name, itself, its input and its output as it is used.

    Args:
        layers: of ``layers_of``.
        watch: what is called.

    Yields:
        Nothing.
    """
    handles = []
    for name, layer in layers.items():

        def hook(module: Any, inputs: Any, output: Tensor, name: str = name) -> Tensor:
            watch(name, module, inputs[0], output)
            return output.clone()  # an activation in place must not overwrite what was watched

        handles.append(layer.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_finite(outputs: Tensor) -> None:
    """Raise a NonFiniteError if an output of the network is NaN or infinite.

    Args:
        outputs: of the network at the end of a task.
    """
    if not torch.isfinite(outputs).all():
        raise NonFiniteError("the network's outputs are not finite at the end of a task: lower lr")


def sample_rows(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batch: Sequence[Tensor],
    scalar: Callable[[Tensor], Tensor],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each layer's inputs, and the gradients at its outputs, of every sample.

    A sample's gradient of its number with respect to a layer's matrix is the sum over places of
    the product of both. Modules are in evaluation mode meanwhile.

    Args:
        model: the network; samples must not act on one another.
        layers: of ``layers_of``.
        batch: inputs first, task labels last.
        scalar: sums one number a sample over the outputs.

    Returns:
        Rows [B, L, columns] and [B, L, out] by layer, without the layers that were not used.

    Raises:
        OptionError: a layer is used twice.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(name: str, layer: Layer, x: Tensor, y: Tensor) -> None:
        if name in inputs:
            raise OptionError(f"layer {name!r} is used twice: give each use a layer of its own")
        inputs[name], outputs[name] = input_rows(layer, x.detach()), y

    with evaluation_mode(model), torch.enable_grad(), watched(layers, watch):
        logits = avalanche_forward(model, batch[0], batch[-1])
        check_finite(logits)
        gradients = torch.autograd.grad(scalar(logits), list(outputs.values()))
    return {
        name: (inputs[name], output_rows(layers[name], gradient))
        for name, gradient in zip(outputs, gradients, strict=True)
    }


def task_batches(strategy: Any, size: int, *, count: int | None = None) -> Iterator[list[Tensor]]:
    """Yield batches (inputs, targets, …, task labels) of the task just trained.

    Args:
        strategy: an Avalanche strategy in ``after_training_exp``.
        size: samples a batch.
        count: how many samples, drawn at random without repetition; None for all, in order.

    Yields:
        Batches on the strategy's device.
    """
    data = strategy.experience.dataset
    chosen = None if count is None else torch.randperm(len(data))[:count].tolist()
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=size,
        sampler=chosen,
        collate_fn=data.collate_fn,
        generator=torch.Generator(),  # the loader's own draws are not the run's
    )
    for batch in loader:
        yield [part.to(strategy.device) for part in batch]
