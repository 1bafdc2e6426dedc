"""The loss as a function of one block of weights, everything else held fixed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from copy import copy
from functools import reduce

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from flatcl.core.gradients import evaluation_mode
from flatcl.core.wrappers import uncompiled, unwrapped
from flatcl.errors import DataError, OptionError
from flatcl.fluctuations.loss import Loss, ask_one_a_sample, cross_entropy
from flatcl.fluctuations.watch import Selection, paths, selected

__all__ = ["Loss", "LossSurface", "cross_entropy"]

_ENTRIES = 2**24  # of the rows that are evaluated together, at most
_ROWS = 64


class LossSurface:
    """A network's mean loss over fixed data, as a function of a block of its weights.

    The block is flattened to a vector [P], parameters in the model's order, entries row-major. All
    weights and buffers are copied at construction, in ``dtype``: the model may go on training, and
    neither its weights, nor its buffers, nor its modes are ever changed. The network is evaluated
    in evaluation mode, since a loss that depends on the batch has no surface.

    Args:
        model: maps inputs to outputs.
        inputs: [N, ...].
        targets: [N, ...].
        parameters: the block: patterns over parameter names, modules, or several of them.
        loss: of each sample.
        dtype: of the arithmetic; float64 resolves losses near 0 and small curvatures.
        batch: samples evaluated together.
        rows: points evaluated together by ``torch.vmap``, fewer for large blocks; 1 does without
            ``vmap``, for networks that it cannot take.

    Raises:
        OptionError: no trainable parameter matches, or batch or rows is below 1.
        DataError: there are no samples, or inputs and targets differ in number.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        *,
        parameters: Selection = "*",
        loss: Loss = cross_entropy,
        dtype: torch.dtype = torch.float64,
        batch: int = 500,
        rows: int = _ROWS,
    ) -> None:
        if len(inputs) == 0 or len(inputs) != len(targets):
            raise DataError(
                f"{len(inputs)} inputs and {len(targets)} targets: a loss needs as many of each, "
                "and at least one"
            )
        if batch < 1 or rows < 1:
            raise OptionError(f"batch {batch}, rows {rows}: both must be 1 or more")
        self.model = model = unwrapped(model)
        self.loss, self.dtype, self.batch = loss, dtype, batch
        self.inputs, self.targets = self._cast(inputs), self._cast(targets)
        block = selected(model, parameters)
        self.shapes = {name: p.shape for name, p in block.items()}
        self._paths = paths(model, block)
        self.size = sum(p.numel() for p in block.values())
        self.rows = max(1, min(rows, _ENTRIES // self.size))
        held = [*model.named_parameters(), *model.named_buffers()]
        self._fixed = {name: self._cast(t.detach().clone()) for name, t in held}
        self.reference = self.flatten(self._fixed)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs)

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the block's tensors as one vector.

        Args:
            tensors: by name, with a wrapper's words or without; there may be more of them.

        Returns:
            [P], w.
        """
        found = [tensors[name if name in tensors else at] for name, at in self._paths.items()]
        parts = [tensor.detach().reshape(-1) for tensor in found]
        return torch.cat(parts).to(self.dtype)

    def subset(self, size: int, generator: torch.Generator) -> LossSurface:
        """Return the surface of a random part of the data, drawn without replacement.

        Args:
            size: samples; all of them if there are no more.
            generator: of the choice, on the CPU.

        Returns:
            A surface with the same weights.
        """
        part = copy(self)
        if size < len(self):
            chosen = torch.randperm(len(self), generator=generator)[:size].to(self.inputs.device)
            part.inputs, part.targets = self.inputs[chosen], self.targets[chosen]
        return part

    def around(self, snapshots: Tensor) -> LossSurface:
        """Return the same surface with a window's mean for its centre.

        Args:
            snapshots: [T, P], w; weights outside the block stay as the model has them.

        Returns:
            A surface of the same data.
        """
        other = copy(self)
        other.reference = self._cast(snapshots.mean(0, dtype=torch.float64))
        return other

    def to(self, dtype: torch.dtype) -> LossSurface:
        """Return the same surface in another arithmetic, for what needs speed before digits.

        Args:
            dtype: floating.

        Returns:
            A surface of the same data.
        """
        other = copy(self)
        other.dtype = dtype
        other.inputs, other.targets = other._cast(self.inputs), other._cast(self.targets)
        other._fixed = {name: other._cast(t) for name, t in self._fixed.items()}
        other.reference = self.reference.to(dtype)
        return other

    def losses(self, points: Tensor) -> Tensor:
        """Return the mean loss at each of several points.

        Args:
            points: [n, P], w.

        Returns:
            [n], float64, nats.
        """
        return self._sums(points, self._total) / len(self)

    def sample_losses(self, point: Tensor) -> Tensor:
        """Return each sample's loss at one point.

        Args:
            point: [P], w.

        Returns:
            [N], nats.
        """
        point = self._points(point)[0]
        with torch.no_grad(), uncompiled(), evaluation_mode(self.model):
            return torch.cat([self._samples(point, x, y) for x, y in self._batches()])

    def loss_with_error(self, point: Tensor) -> tuple[float, float]:
        """Return the mean loss at a point, and its standard error as a sample of more data.

        Args:
            point: [P], w.

        Returns:
            Loss and standard error, nats.
        """
        losses = self.sample_losses(point).double()
        error = float(losses.std()) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
        return float(losses.mean()), error

    def gradient(self, point: Tensor) -> Tensor:
        """Return the gradient of the mean loss.

        Args:
            point: [P], w.

        Returns:
            [P], nats/w.
        """
        point = self._points(point)[0]
        with uncompiled(), evaluation_mode(self.model):
            parts = [grad(self._total)(point, x, y) for x, y in self._batches()]
        return torch.stack(parts).sum(0) / len(self)

    def minibatch_gradients(self, point: Tensor, chosen: Tensor) -> Tensor:
        """Return the gradients of several minibatches' mean losses at one point.

        Args:
            point: [P], w.
            chosen: indices of the samples [n, b].

        Returns:
            [n, P], nats/w.
        """
        point = self._points(point)[0]
        slope = grad(self._total)
        x, y = self.inputs[chosen], self.targets[chosen]
        with uncompiled(), evaluation_mode(self.model):
            if self.rows == 1:
                found = torch.stack([slope(point, a, b) for a, b in zip(x, y, strict=True)])
            else:
                found = vmap(slope, in_dims=(None, 0, 0), chunk_size=self.rows)(point, x, y)
        return found / chosen.shape[1]

    def hessian_products(self, point: Tensor, vectors: Tensor) -> Tensor:
        """Return the Hessian of the mean loss times each of several vectors.

        Args:
            point: [P], w.
            vectors: [n, P].

        Returns:
            [n, P], nats/w² times the vectors' unit.
        """
        point = self._points(point)[0]

        def product(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
            slope = grad(lambda w: self._total(w, x, y))
            return _derivative(slope, point, v)

        return self._sums(vectors, product) / len(self)

    def sample_slopes(self, point: Tensor, vectors: Tensor) -> Tensor:
        """Return the derivative of each sample's loss along each of several vectors.

        Args:
            point: [P], w.
            vectors: [n, P].

        Returns:
            [n, N], nats/w times the vectors' unit.
        """
        point = self._points(point)[0]

        def slopes(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return _derivative(lambda w: self._samples(w, x, y), point, v)

        with torch.no_grad(), uncompiled(), evaluation_mode(self.model):
            parts = [self._rowwise(slopes, self._points(vectors), x, y) for x, y in self._batches()]
        return torch.cat(parts, dim=1)

    def _sums(self, rows: Tensor, f: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        rows = self._points(rows)
        with torch.no_grad(), uncompiled(), evaluation_mode(self.model):
            parts = (self._rowwise(f, rows, x, y).double() for x, y in self._batches())
            return reduce(Tensor.add_, parts)

    def _rowwise(
        self, f: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor, x: Tensor, y: Tensor
    ) -> Tensor:
        if self.rows == 1:
            return torch.stack([f(row, x, y) for row in rows])
        found: Tensor = vmap(f, in_dims=(0, None, None), chunk_size=self.rows)(rows, x, y)
        return found

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = (torch.split(t, self.batch) for t in (self.inputs, self.targets))
        yield from zip(*parts, strict=True)

    def _total(self, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._samples(vector, x, y).sum()

    def _samples(self, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = torch.split(vector, [shape.numel() for shape in self.shapes.values()])
        block = {
            self._paths[name]: part.reshape(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        losses = self.loss(functional_call(self.model, {**self._fixed, **block}, (x,)), y)
        ask_one_a_sample(losses, len(x))
        return losses

    def _points(self, points: Tensor) -> Tensor:
        rows = points.detach().to(self.reference).reshape(-1, points.shape[-1])
        if rows.shape[1] != self.size:
            block = ", ".join(self.shapes)
            raise DataError(
                f"points have {rows.shape[1]} weights, the block {block} has {self.size}"
            )
        return rows

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def _derivative(f: Callable[[Tensor], Tensor], point: Tensor, v: Tensor) -> Tensor:
    """Return the derivative of f along v, by forward mode."""
    with warnings.catch_warnings():  # torch warns of itself
        warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
        found: Tensor = jvp(f, (point,), (v,))[1]
    return found
