"""Passes of samples through a network, and what its layers see and answer in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.methods._layers import Layer, input_rows, output_rows, trainable
from flatcl.core.gradients import evaluation_mode
from flatcl.errors import NonFiniteError, OptionError
from flatcl.host import ensure_avalanche

ensure_avalanche()
from avalanche.models import avalanche_forward  # noqa: E402

Watch: TypeAlias = Callable[[str, Layer, Tensor, Tensor], None]


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


def layer_calls(
    model: nn.Module, layers: Mapping[str, Layer], batch: Sequence[Tensor]
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return a network's outputs, and each layer's inputs and outputs on the way to them.

    With them the gradients of single samples are found; what they cannot tell apart is refused.

    Args:
        model: the network, in evaluation mode.
        layers: of ``layers_of``.
        batch: inputs first, task labels last, on the model's device.

    Returns:
        Outputs [B, …]; by name, of the layers that were used, rows [B, L, columns] as in
        ``input_rows`` and the output [B, …] as the graph holds it.

    Raises:
        OptionError: a layer is used twice, sees other than one row of places a sample, or its
            weights are used without it.
    """
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, layer: Layer, x: Tensor, y: Tensor) -> None:
        if name in calls:
            raise OptionError(f"layer {name!r} is used twice: give each use a layer of its own")
        calls[name] = input_rows(layer, x.detach()), y

    with watched(layers, watch):
        outputs = avalanche_forward(model, batch[0], batch[-1])
    check_finite(outputs)
    for name, (rows, _) in calls.items():
        if len(rows) != len(outputs):
            raise OptionError(f"layer {name!r} mixes samples: their gradients cannot be told apart")
    idle = [p for name, layer in layers.items() if name not in calls for p in trainable(layer)]
    if idle:
        found = torch.autograd.grad(outputs.sum(), idle, retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in found):
            raise OptionError("a layer's weights are used without calling the layer: call it")
    return outputs, calls


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
        model: the network, as ``layer_calls`` takes it.
        layers: of ``layers_of``.
        batch: inputs first, task labels last.
        scalar: sums one number a sample over the outputs.

    Returns:
        Rows [B, L, columns] and [B, L, out] by layer, without the layers that were not used.
    """
    with evaluation_mode(model), torch.enable_grad():
        logits, calls = layer_calls(model, layers, batch)
        outputs = [output for _, output in calls.values()]
        gradients = torch.autograd.grad(
            scalar(logits), outputs, allow_unused=True, materialize_grads=True
        )
    return {
        name: (rows, output_rows(layers[name], gradient))
        for (name, (rows, _)), gradient in zip(calls.items(), gradients, strict=True)
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
