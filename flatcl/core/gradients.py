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

_POOL = 8  # normal deviates in the probe's pool, in units of the weights that it perturbs

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


def tensors_of(batch: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """Return the tensors of a batch.

    Args:
        batch: a tensor of inputs, or a sequence of tensors, inputs first.

    Returns:
        Its tensors.

    Raises:
        DataError: it is no tensor nor a sequence of tensors.
    """
    parts = [batch] if isinstance(batch, Tensor) else list(batch)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise DataError(
            f"a batch is a {type(batch).__name__} without tensors; pass tensors of inputs, or "
            "sequences (inputs, …) of tensors"
        )
    return parts


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
        DataError: there is no input at all.
    """
    chunks: list[list[Tensor]] = []
    left = inputs
    for batch in batches:
        parts = tensors_of(batch)
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
    outputs that no label has named yet. Perturbations are Gaussian on matrices only. Weights and
    buffers are as before at each yield, modes once the generator has ended or is closed; ``.grad``
    is never touched.

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
    originals = [leaf.detach().clone() for leaf in leaves]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    noise = _Noise(units, parameters, widths, generator)
    with evaluation_mode(model), _tapped(model, units, parameters) as taps:
        for chunk in chunks:
            try:
                taps.clear()
                noise.perturb_()
                with torch.enable_grad():
                    outputs = forward(chunk)
                    r = output_directions(outputs.detach(), scale, generator)
                    gradients = _gradients(outputs, r, len(chunk[0]), units, parameters, taps)
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(leaves, originals)
                    for buffer, kept in buffers:
                        buffer.copy_(kept)
            yield gradients


_Taps: TypeAlias = "dict[str, list[tuple[Tensor, Tensor]]]"


@contextmanager
def _tapped(
    model: nn.Module, units: Sequence[Unit], parameters: Mapping[str, Tensor]
) -> Iterator[_Taps]:
    """Catch inputs and outputs of Linear layers while the body runs, by the weight's name.

    Yields:
        The calls of each layer.
    """
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
    inputs: int,
    units: Sequence[Unit],
    parameters: Mapping[str, Tensor],
    taps: _Taps,
) -> list[Gradient]:
    """Return each unit's gradient of Σ r · outputs, by factors for a Linear layer called once.

    Rows of the factors are independent where each input has one row in the layer and one in the
    outputs, as r is drawn anew for every row of the outputs; a network that mixes the rows of a
    batch in evaluation mode is not foreseen. Otherwise factors are used where they are cheaper,
    fewer rows than outputs.
    """
    samples = inputs if r[..., 0].numel() == inputs else None
    once = {}
    for name, calls in taps.items():
        rows = calls[0][0].numel() // calls[0][0].shape[-1]
        if len(calls) == 1 and (rows == samples or rows < len(parameters[name])):
            once[name] = calls[0]
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
            D = at_outputs[unit.name].reshape(len(A), -1)
            gradients.append(OuterProduct(D, A, independent=len(A) == samples))
        else:
            gradients.append(unit.gather(by_name))
    return gradients


class _Noise:
    """Gaussian perturbations of the matrix units, fresh for each chunk.

    Normal deviates would cost as much as the forward pass, so that each perturbation is a window
    at a random offset in one pool of them: exactly Gaussian, and two perturbations share values
    only at other entries.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        parameters: Mapping[str, Tensor],
        widths: Sequence[float],
        generator: torch.Generator,
    ) -> None:
        self.leaves = [
            (parameters[name], width)
            for unit, width in zip(units, widths, strict=True)
            if unit.matrix and width > 0
            for name in unit.names
        ]
        self.generator = generator
        self.span = sum(leaf.numel() for leaf, _ in self.leaves)
        if self.leaves:
            pool = torch.randn(_POOL * self.span, generator=generator)
            self.pool = pool.to(self.leaves[0][0].device)

    @torch.no_grad()
    def perturb_(self) -> None:
        """Add a perturbation to the weights."""
        if not self.leaves:
            return
        start = int(
            torch.randint((_POOL - 1) * self.span + 1, (1,), generator=self.generator).item()
        )
        for leaf, width in self.leaves:
            window = self.pool[start : start + leaf.numel()].view(leaf.shape)
            leaf.add_(window.to(leaf), alpha=width)
            start += leaf.numel()
