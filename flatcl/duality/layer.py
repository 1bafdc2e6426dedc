"""One layer within its network: what enters it, and the loss as a function of what leaves it.

The layer multiplies its input at every place (a Linear layer's only one, a token, a patch of a
convolution) by one matrix W. Activities are [N, L, in], with L places; a trained bias is W's last
column, the weight of an input that is always 1; a frozen one stays in the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from flatcl.core.gradients import evaluation_mode
from flatcl.core.layers import named_layers
from flatcl.core.wrappers import uncompiled, unwrapped
from flatcl.duality.checks import check_pairs
from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations.loss import Loss, ask_one_a_sample, cross_entropy

_LARGEST = 4096  # weights of a block whose Hessian is held densely: 134 MB in float64


class DualLayer:
    """A Linear or Conv2d layer of a network, seen from its input and from its output.

    The network is in evaluation mode whenever it is called, and is not changed: its parameters and
    buffers are copied, in ``dtype``, when this is made.

    Args:
        model: any network in which samples do not mix; called with the inputs alone.
        name: of the layer, as in ``named_modules``; a wrapper's words may be left out.
        loss: from outputs and targets to one loss a sample.
        dtype: floating; small differences of small losses need float64.
        batch: samples evaluated together.

    Raises:
        OptionError: there is no such layer, it is of another kind, it has no trainable weight, or
            ``batch`` is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        *,
        loss: Loss = cross_entropy,
        dtype: torch.dtype = torch.float64,
        batch: int = 500,
    ) -> None:
        if not isinstance(batch, int) or batch < 1:
            raise OptionError(f"batch is {batch!r}: give a whole number, 1 or more")
        self.model, self.name, self.loss = unwrapped(model), name, loss
        self.dtype, self.batch = dtype, batch
        self._layer = layer = _supported(model, name)
        bias = layer.bias
        self.has_bias = bias is not None and bias.requires_grad
        held = [*self.model.named_parameters(), *self.model.named_buffers()]
        self._fixed = {name: self._cast(t.detach().clone()) for name, t in held}
        weight = self._cast(layer.weight.detach()).flatten(1)
        if bias is not None and self.has_bias:
            weight = torch.cat([weight, self._cast(bias.detach())[:, None]], 1)
        self.weight = weight
        """W [out, in], or [out, in + 1] with a trained bias."""

    @property
    def size(self) -> int:
        """Weights of the block, P."""
        return self.weight.numel()

    def activity(self, inputs: Tensor) -> Tensor:
        """Return what the layer's matrix multiplies.

        Args:
            inputs: of the network [N, …].

        Returns:
            A [N, L, in], or [N, L, in + 1] with a trained bias.
        """
        found: list[Tensor] = []
        with torch.no_grad():
            for x in torch.split(inputs, self.batch):
                with self._tapped(lambda a, z: found.append(self._rows(a))):
                    self._outputs(x)
        return torch.cat(found)

    def losses(self, inputs: Tensor, targets: Tensor, shift: Tensor | None = None) -> Tensor:
        """Return each sample's loss, the layer's output being shifted.

        Args:
            inputs: of the network [N, …].
            targets: what ``loss`` takes [N, …].
            shift: added to the layer's output [N, L, out]; nothing if None.

        Returns:
            [N], nats. A DataError is raised where inputs, targets and shifts differ in number.
        """
        check_pairs(inputs, targets)
        _check_shift(inputs, shift)
        xs, ys = torch.split(inputs, self.batch), torch.split(targets, self.batch)
        shifts = [None] * len(xs) if shift is None else torch.split(shift, self.batch)
        with torch.no_grad():
            parts = zip(xs, ys, shifts, strict=True)
            return torch.cat([self._losses(x, y, s) for x, y, s in parts])

    def along(self, inputs: Tensor, targets: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return first and second derivative of each sample's loss along its own shift.

        With a weight move ΔW and shift ΔW A these are ∇ℓ·Δw and Δwᵀ h Δw.

        Args:
            inputs: of the network [N, …].
            targets: what ``loss`` takes [N, …].
            shift: of the layer's output [N, L, out].

        Returns:
            Both [N], nats. A DataError is raised where inputs, targets and shifts differ in number.
        """
        check_pairs(inputs, targets)
        _check_shift(inputs, shift)
        first, second = [], []
        parts = (torch.split(t, self.batch) for t in (inputs, targets, shift))
        for x, y, s in zip(*parts, strict=True):
            with torch.enable_grad():
                t = torch.zeros(len(x), dtype=self.dtype, device=s.device, requires_grad=True)
                total = self._losses(x, y, t[:, None, None] * s).sum()
                (slope,) = torch.autograd.grad(total, t, create_graph=True)
                bend = torch.zeros_like(slope)
                if slope.requires_grad:
                    (bend,) = torch.autograd.grad(slope.sum(), t)
            first.append(slope.detach())
            second.append(bend)
        return torch.cat(first), torch.cat(second)

    def hessian(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the Hessian of the mean loss by the layer's weights.

        The output z = W a is linear in W, so that the block is exactly ⟨Σ ∂²ℓ/∂z_l∂z_m ⊗ a_l a_mᵀ⟩
        over samples and pairs of places l, m: one backward pass for each entry of z serves all
        samples at once.

        Args:
            inputs: of the network [N, …].
            targets: what ``loss`` takes [N, …].

        Returns:
            [P, P], symmetric, nats/w², weights in the order of ``weight.flatten()``.

        Raises:
            OptionError: the block has more weights than a dense matrix should.
        """
        check_pairs(inputs, targets)
        if self.size > _LARGEST:
            raise OptionError(
                f"layer {self.name!r} has {self.size} weights, a dense Hessian at most {_LARGEST}: "
                "look at a smaller layer, or at your own directions (generalization_gap's basis)"
            )
        out, width = self.weight.shape
        total = self.weight.new_zeros(out, width, out, width)
        parts = (torch.split(t, self.batch) for t in (inputs, targets))
        for x, y in zip(*parts, strict=True):
            a = self.activity(x)
            shift = a.new_zeros(*a.shape[:2], out, requires_grad=True)
            with torch.enable_grad():
                losses = self._losses(x, y, shift)
                (slope,) = torch.autograd.grad(losses.sum(), shift, create_graph=True)
                for place in range(a.shape[1]):
                    for unit in range(out):
                        bend = _bend(slope[:, place, unit].sum(), shift)
                        right = torch.einsum("nmq,nmj->nqj", bend, a).flatten(1)
                        total[unit] += (a[:, place].mT @ right).view(width, out, width)
        block = total.view(self.size, self.size) / len(inputs)
        return (block + block.mT) / 2

    def curvature(self, inputs: Tensor, targets: Tensor, directions: Tensor) -> Tensor:
        """Return dᵀ H d of the mean loss along directions of the layer's weights, for any size.

        Args:
            inputs: of the network [N, …].
            targets: what ``loss`` takes [N, …].
            directions: [P, n], weights in the order of ``weight.flatten()``.

        Returns:
            [n], nats/w².
        """
        if self.size <= _LARGEST:
            return ((self.hessian(inputs, targets) @ directions) * directions).sum(0)
        a = self.activity(inputs)
        moves = directions.T.reshape(-1, *self.weight.shape)
        return torch.stack([self.along(inputs, targets, a @ d.mT)[1].mean() for d in moves])

    def _losses(self, x: Tensor, y: Tensor, shift: Tensor | None) -> Tensor:
        def shifted(a: Tensor, z: Tensor) -> Tensor | None:
            return None if shift is None else z + self._like_output(shift, z)

        with self._tapped(shifted):
            losses = self.loss(self._outputs(x), self._cast(y))
        ask_one_a_sample(losses, len(x))
        if not losses.isfinite().all():
            raise NonFiniteError("a sample's loss is NaN or infinite: lower the learning rate")
        return losses

    def _outputs(self, x: Tensor) -> Tensor:
        # The curvature differentiates twice, which a compiled graph does not allow.
        with uncompiled(), evaluation_mode(self.model):
            outputs: Tensor = functional_call(self.model, self._fixed, (self._cast(x),))
        return outputs

    @contextmanager
    def _tapped(self, tap: Callable[[Tensor, Tensor], Tensor | None]) -> Iterator[None]:
        calls = 0

        def hook(layer: nn.Module, inputs: tuple[Any, ...], z: Tensor) -> Tensor | None:
            nonlocal calls
            calls += 1
            return tap(inputs[0], z)

        handle = self._layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        if calls != 1:
            raise OptionError(
                f"layer {self.name!r} was called {calls} times in one pass: its weights must act "
                "exactly once"
            )

    def _rows(self, a: Tensor) -> Tensor:
        layer = self._layer
        if isinstance(layer, nn.Conv2d):
            padding: Any = layer.padding
            patches = functional.unfold(a, layer.kernel_size, layer.dilation, padding, layer.stride)
            rows = patches.mT
        else:
            rows = a.reshape(len(a), -1, a.shape[-1])
        if self.has_bias:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
        return rows

    def _like_output(self, shift: Tensor, z: Tensor) -> Tensor:
        return (shift.mT if isinstance(self._layer, nn.Conv2d) else shift).reshape(z.shape)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def _bend(slope: Tensor, shift: Tensor) -> Tensor:
    if not slope.requires_grad:  # a loss that is linear in the layer's output
        return torch.zeros_like(shift)
    (bend,) = torch.autograd.grad(slope, shift, retain_graph=True)
    return bend


def _supported(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    layers = dict(named_layers(model))
    known = [n for n, m in layers.items() if isinstance(m, (nn.Linear, nn.Conv2d))]
    layer = layers.get(name, dict(model.named_modules()).get(name))
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        kind = "no layer" if layer is None else f"a {type(layer).__name__}"
        raise OptionError(
            f"{name!r} is {kind}; the duality is that of Linear and Conv2d layers: "
            f"{', '.join(map(repr, known)) or 'there is none'}"
        )
    if isinstance(layer, nn.Conv2d) and (
        layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        raise OptionError(
            f"layer {name!r} has groups {layer.groups} and padding {layer.padding!r} of "
            f"{layer.padding_mode}: only one group and a number of zeros are one matrix on patches"
        )
    if not layer.weight.requires_grad:
        raise OptionError(f"layer {name!r} is frozen: its weights do not move, take another one")
    return layer


def _check_shift(inputs: Tensor, shift: Tensor | None) -> None:
    if shift is not None and len(shift) != len(inputs):
        raise DataError(f"{len(shift)} shifts for {len(inputs)} inputs: give as many")
