"""What is watched: training gradients at the optimiser's step, or a probe's random gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from flatcl.core.layers import Unit
from flatcl.core.moments import Gradient, OuterProduct
from flatcl.core.stiffness import output_directions
from flatcl.errors import DataError

Forward = Callable[[Sequence[Tensor]], Tensor]
"""Maps a batch, its tensors in the order of the loader, to the network's outputs [..., C]."""


def training_gradients(units: Sequence[Unit], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """Return each unit's gradient as the optimiser saw it, zeros where there was none.

    Args:
        units: the model's units.
        parameters: its parameters by name; ``.grad`` is read, never written.

    Returns:
        One tensor a unit, in the unit's view, nats/w.
    """
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()
    }
    return [unit.gather(gradients) for unit in units]


def chunked(
    batches: Iterable[Sequence[Tensor] | Tensor], *, inputs: int, size: int, device: torch.device
) -> list[list[Tensor]]:
    """Return the first inputs of an iterable of batches, cut into chunks for the probe.

    Args:
        batches: each a tensor of inputs, or a sequence of tensors of equal length, inputs first.
        inputs: how many inputs to take, at most.
        size: inputs a chunk, at most.
        device: where the chunks go.

    Returns:
        Chunks, each a list of tensors as in the batch.

    Raises:
        DataError: a batch is no tensor nor a sequence of tensors, or there is no input at all.
    """
    chunks: list[list[Tensor]] = []
    left = inputs
    for batch in batches:
        parts = [batch] if isinstance(batch, Tensor) else list(batch)
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise DataError(
                f"a batch is a {type(batch).__name__} without tensors; pass tensors of inputs, or "
                "sequences (inputs, …) of tensors"
            )
        taken = min(left, len(parts[0]))
        for start in range(0, taken, size):
            stop = min(start + size, taken)
            chunks.append([part[start:stop].to(device) for part in parts])
        left -= taken
        if left <= 0:
            break
    if not chunks:
        raise DataError("the task's batches are empty: the probe needs at least one input")
    return chunks


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode; each module's own mode comes back, whatever happens.

    Args:
        model: any module.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def probe_gradients(
    model: nn.Module,
    units: Sequence[Unit],
    parameters: Mapping[str, Tensor],
    chunks: Sequence[Sequence[Tensor]],
    *,
    forward: Forward,
    widths: Sequence[float],
    scale: float,
    generator: torch.Generator,
) -> Iterator[list[Gradient]]:
    """Yield, for each chunk, the gradient of Σ_n r_n · f(x_n) at freshly perturbed weights.

    Margin-free: unlike the loss's gradient it does not vanish when the loss does, and it covers
    outputs that no label has named yet. Perturbations are Gaussian on matrices only; weights,
    buffers, modes and ``.grad`` are as before whenever this generator is not running.

    Args:
        model: the network.
        units: whose gradients are wanted.
        parameters: the model's parameters by name.
        chunks: batches of inputs.
        forward: from a chunk to outputs [..., C].
        widths: standard deviation of each unit's perturbation, w; 0 for none.
        scale: standard deviation of r.
        generator: of r and of the perturbations, on the CPU.

    Yields:
        One gradient a unit, in its view; by its factors where that is cheaper.
    """
    names = [name for unit in units for name in unit.names]
    leaves = [parameters[name] for name in names]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    originals = [leaf.detach().clone() for leaf in leaves]
    for chunk in chunks:
        with evaluation_mode(model), _tapped(model, units, parameters) as taps:
            try:
                with torch.no_grad():
                    _perturb_(units, parameters, widths, generator)
                with torch.enable_grad():
                    outputs = forward(chunk)
                    r = output_directions(outputs.detach(), scale, generator)
                    gradients = _gradients(outputs, r, units, parameters, taps)
            finally:
                with torch.no_grad():
                    for leaf, original in zip(leaves, originals, strict=True):
                        leaf.copy_(original)
                    for name, buffer in model.named_buffers():
                        if name in buffers:
                            buffer.copy_(buffers[name])
        yield gradients


_Taps: TypeAlias = "dict[str, list[tuple[Tensor, Tensor]]]"


@contextmanager
def _tapped(
    model: nn.Module, units: Sequence[Unit], parameters: Mapping[str, Tensor]
) -> Iterator[_Taps]:
    """Catch inputs and outputs of Linear layers while the body runs, by the weight's name."""
    held = {id(parameters[unit.name]): unit.name for unit in units if unit.matrix}
    taps: _Taps = {}
    handles = []

    def catch(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        taps.setdefault(held[id(layer.weight)], []).append((inputs[0].detach(), output))
        return output.clone()  # an activation in place must not overwrite what is caught

    try:
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and id(layer.weight) in held:
                handles.append(layer.register_forward_hook(catch))
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _gradients(
    outputs: Tensor,
    r: Tensor,
    units: Sequence[Unit],
    parameters: Mapping[str, Tensor],
    taps: _Taps,
) -> list[Gradient]:
    """Return each unit's gradient of Σ r · outputs, by factors for a Linear layer called once."""
    once = {
        name: calls[0]
        for name, calls in taps.items()
        if len(calls) == 1 and calls[0][0].numel() // calls[0][0].shape[-1] < len(parameters[name])
    }
    rest = [name for unit in units if unit.name not in once for name in unit.names]
    wanted = [z for _, z in once.values()] + [parameters[name] for name in rest]
    found = torch.autograd.grad(outputs, wanted, r, allow_unused=True)
    filled = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
    at_outputs = dict(zip(once, filled, strict=False))
    by_name = dict(zip(rest, filled[len(once) :], strict=True))
    gradients: list[Gradient] = []
    for unit in units:
        if unit.name in once:
            A = once[unit.name][0].reshape(-1, once[unit.name][0].shape[-1])
            if unit.bias is not None:
                A = torch.cat([A, A.new_ones(len(A), 1)], dim=1)
            gradients.append(OuterProduct(at_outputs[unit.name].reshape(len(A), -1), A))
        else:
            gradients.append(unit.gather(by_name))
    return gradients


def _perturb_(
    units: Sequence[Unit],
    parameters: Mapping[str, Tensor],
    widths: Sequence[float],
    generator: torch.Generator,
) -> None:
    for unit, width in zip(units, widths, strict=True):
        if width <= 0 or not unit.matrix:
            continue
        for name in unit.names:
            leaf = parameters[name]
            noise = torch.randn(leaf.shape, generator=generator).to(leaf)
            leaf.add_(noise, alpha=width)
