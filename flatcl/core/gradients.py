"""What is watched: training gradients at the optimiser's step, or a probe's random gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flatcl.core.layers import Unit
from flatcl.core.moments import Gradient
from flatcl.core.stiffness import OutputDraw, output_directions
from flatcl.core.taps import ProbeGraph, dense, tapped
from flatcl.errors import DataError

_POOL = 8  # normal deviates in the probe's pool, in units of the weights that it perturbs

Forward = Callable[[Sequence[Tensor]], Tensor]
"""Maps a batch, its tensors in the order of the loader, to the network's outputs [..., C].

The first dimension of the batch counts inputs. The last of the outputs is what one softmax runs
over; the loss is taken as a mean over all the others, tokens or pixels. Where a model has it
otherwise, this is the place to say so:

- classes in dimension 1, as in segmentation: ``lambda batch: model(batch[0]).movedim(1, -1)``;
- outputs that stand each for itself, as in regression of several numbers or with several labels an
  input: ``lambda batch: model(batch[0]).unsqueeze(-1)``. Without it, a common shift of all outputs
  counts as no change, which it is to a softmax alone;
- a loss that curves more in an output than a softmax does, as mean squared error does (by 2, not
  by ¼): multiply the outputs by the root of the ratio, or raise the strength by the ratio.
"""


def training_gradients(units: Sequence[Unit], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """Return each unit's gradient as the optimiser saw it, zeros where there was none.

    Args:
        units: the model's units.
        parameters: its parameters by name; ``.grad`` is read, never written.

    Returns:
        One tensor a unit, in the unit's view, nats/w.
    """
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else dense(p.grad)
        for name, p in parameters.items()
    }
    return [unit.gather(gradients) for unit in units]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode; each module's own mode comes back, whatever happens.

    Recurrent layers stay in training mode with their dropout off, which computes the same: cuDNN
    differentiates them in no other.

    Args:
        model: any module.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    recurrent = [(m, m.dropout) for m in model.modules() if isinstance(m, nn.RNNBase)]
    model.eval()
    try:
        for layer, _ in recurrent:
            layer.training, layer.dropout = True, 0.0
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, dropout in recurrent:
            layer.dropout = dropout


def outputs_of(forward: Forward, batch: Sequence[Tensor]) -> Tensor:
    """Return the network's outputs for a batch, one row a prediction.

    Args:
        forward: from a batch to outputs.
        batch: its tensors.

    Returns:
        [..., C]; outputs [inputs] of a single number each become [inputs, 1].

    Raises:
        DataError: they are no tensor of floating-point numbers with a dimension for the inputs.
    """
    outputs: object = forward(batch)
    if not isinstance(outputs, Tensor):
        raise DataError(
            f"the model returned a {type(outputs).__name__}; the probe needs the tensor of "
            "outputs: pass forward=, for instance lambda batch: model(batch[0])[0]"
        )
    if outputs.dim() == 0 or not outputs.is_floating_point():
        raise DataError(
            f"the model returned {outputs.dtype} of shape {tuple(outputs.shape)}; the probe needs "
            "floating-point outputs [inputs, ..., C]: pass forward= that returns them"
        )
    return outputs.unsqueeze(-1) if outputs.dim() == 1 else outputs


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
    draw: OutputDraw = output_directions,
) -> Iterator[list[Gradient]]:
    """Yield, for each chunk, the gradient of Σ_n r_n · f(x_n) at freshly perturbed weights.

    Margin-free: unlike the loss's gradient it does not vanish when the loss does, and it covers
    outputs that no label has named yet. Where an input has several rows of outputs, tokens or
    pixels, r is smaller, so that k is a mean over them as the loss is. Perturbations are Gaussian
    on matrices only. Weights and buffers are as before at each yield, modes once the generator has
    ended or is closed; ``.grad`` is never touched.

    Args:
        model: the network.
        units: whose gradients are wanted.
        parameters: the model's parameters by name.
        chunks: batches of inputs.
        forward: from a chunk to outputs [..., C].
        widths: standard deviation of each unit's perturbation, w; 0 for none.
        scale: standard deviation of r where an input has one row, if ``draw`` heeds it.
        generator: of r and of the perturbations, on the CPU.
        draw: makes r of the outputs; its rows are independent and of zero mean.

    Yields:
        One gradient a unit, in its view; by its factors where that is cheaper.

    Raises:
        DataError: the outputs do not fit, or have no gradient.
    """
    leaves = [parameters[name] for name in dict.fromkeys(n for u in units for n in u.names)]
    originals = [leaf.detach().clone() for leaf in leaves]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    noise = _Noise(units, parameters, widths, generator)
    mixes: bool | None = None
    with evaluation_mode(model), _alone(model), tapped(model, units, parameters) as taps:
        for chunk in chunks:
            try:
                taps.clear()
                noise.perturb_()
                with torch.enable_grad():
                    outputs = outputs_of(forward, chunk)
                    if not outputs.requires_grad:
                        raise DataError(
                            "the outputs have no gradient: forward= must not run under no_grad, "
                            "nor end_task or fit under inference_mode"
                        )
                    inputs, rows = len(chunk[0]), outputs[..., 0].numel()
                    r = draw(outputs.detach(), scale, generator)
                    if rows != inputs:
                        r = r * (inputs / rows) ** 0.5
                    graph = ProbeGraph(outputs, r, units, parameters, taps)
                    if mixes is None:
                        mixes = len(outputs) == inputs and graph.mixes(inputs)
                    rowwise = len(outputs) == inputs and not mixes
                    gradients = graph.gradients(inputs if rowwise else None)
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(leaves, originals)
                    for buffer, kept in buffers:
                        buffer.copy_(kept)
            yield gradients


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Keep ``DistributedDataParallel`` from waiting for a backward pass that never reaches it."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


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
        leaves = {name: parameter.detach() for name, parameter in parameters.items()}
        self.leaves = [
            (part.of(leaves), width)
            for unit, width in zip(units, widths, strict=True)
            if unit.matrix and width > 0
            for part in unit.parts
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
