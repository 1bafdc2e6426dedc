"""The probe's gradients, by their factors where a layer's inputs and outputs give them.

A Linear layer's gradient is Dᵀ A, gradients at its outputs times its inputs. Both are caught by a
forward hook, and count only where the graph proves that they are all: a fused kernel passes hooks
by, and a weight may be used a second time, by another layer or in plain code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flatcl.core.layers import Unit
from flatcl.core.moments import Gradient, OuterProduct
from flatcl.errors import DataError

Taps: TypeAlias = "dict[str, list[tuple[Tensor, Tensor]]]"
"""Weight's name → inputs [..., in] and outputs [..., out] of each call of its layer."""


@contextmanager
def tapped(
    model: nn.Module, units: Sequence[Unit], parameters: Mapping[str, Tensor]
) -> Iterator[Taps]:
    """Catch inputs and outputs of Linear layers while the body runs, by the weight's name.

    Args:
        model: the network.
        units: how its parameters are held.
        parameters: its parameters by name.

    Yields:
        The calls of each layer.
    """
    held = {
        id(parameters[unit.weight.parameter]): unit.weight.parameter
        for unit in units
        if unit.matrix and unit.weight.rows is None and not unit.weight.transposed
    }
    taps: Taps = {}
    handles = []

    def catch_as(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def catch(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not inputs:  # passed by keyword
                return None
            taps.setdefault(name, []).append((inputs[0].detach(), output))
            return output.clone()  # an activation in place must not overwrite what is caught

        return catch

    try:
        for layer in model.modules():
            name = held.get(id(layer._parameters.get("weight")))
            if name is not None and _is_plain_linear(layer):
                # First of the hooks, so that another one's change of the output is not caught.
                handles.append(layer.register_forward_hook(catch_as(name), prepend=True))
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _is_plain_linear(layer: nn.Module) -> bool:
    """Return whether the layer's outputs are W x + b and nothing else."""
    own = "forward" in layer.__dict__
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward and not own


class ProbeGraph:
    """Outputs of one forward pass, and the gradients of Σ r · outputs in every unit.

    Args:
        outputs: [..., C], with their graph.
        r: [..., C], the output directions.
        units: whose gradients are wanted.
        parameters: the model's parameters by name.
        taps: caught in the pass.
    """

    def __init__(
        self,
        outputs: Tensor,
        r: Tensor,
        units: Sequence[Unit],
        parameters: Mapping[str, Tensor],
        taps: Taps,
    ) -> None:
        self.outputs, self.r = outputs, r
        self.units, self.parameters = units, parameters
        self.calls = {n: calls[0] for n, calls in taps.items() if len(calls) == 1}
        if self.calls:
            self._drop_unproven()

    def _drop_unproven(self) -> None:
        """Keep the layers whose one call is their weight's and bias's one place in the graph."""
        uses, nodes = _uses(self.outputs)
        alone = {
            unit.weight.parameter: all(uses[id(self.parameters[name])] == 1 for name in unit.names)
            for unit in self.units
        }
        self.calls = {
            name: (A, z)
            for name, (A, z) in self.calls.items()
            if alone[name] and z.grad_fn in nodes
        }

    def mixes(self, inputs: int) -> bool:
        """Return whether the network mixes the inputs of a batch, in the layers with a row each.

        Directions at half of the outputs move no more than as many rows of a layer, unless an
        output depends on several of them.

        Args:
            inputs: number of inputs; the outputs' first dimension.

        Returns:
            True if rows of a layer may not be taken as independent.
        """
        zs = [z for A, z in self.calls.values() if _rows(A) == inputs]
        if not zs or inputs < 2:
            return False
        # A draw of its own: the landscape's random numbers stay where they are.
        half = torch.rand(inputs, generator=torch.Generator().manual_seed(0)) < 0.5
        half[0], half[-1] = True, False
        r = self.r * half.to(self.r).view(-1, *[1] * (self.r.dim() - 1))
        found = torch.autograd.grad(self.outputs, zs, r, retain_graph=True, allow_unused=True)
        moved = [g.reshape(inputs, -1).ne(0).any(1).sum() for g in found if g is not None]
        return any(int(rows) > int(half.sum()) for rows in moved)

    def gradients(self, samples: int | None) -> list[Gradient]:
        """Return each unit's gradient of Σ r · outputs, by factors where that is cheaper.

        Args:
            samples: rows of a layer that are independent of one another because each belongs to
                one input with an output direction of its own; None if there are none such.

        Returns:
            One gradient a unit, in its view.

        Raises:
            DataError: the outputs depend on no parameter.
        """
        once = {
            name: (A, z)
            for name, (A, z) in self.calls.items()
            if _rows(A) == samples or _rows(A) < len(self.parameters[name])
        }
        factored = [unit.weight.parameter in once for unit in self.units]
        rest = dict.fromkeys(
            name
            for unit, by_factors in zip(self.units, factored, strict=True)
            if not by_factors
            for name in unit.names
        )
        wanted = [z for _, z in once.values()] + [self.parameters[name] for name in rest]
        found = torch.autograd.grad(self.outputs, wanted, self.r, allow_unused=True)
        if all(g is None for g in found):
            raise DataError(
                "the outputs depend on none of the model's parameters: forward= must call the "
                "model that the landscape was given (a copy of the landscape has a copy of it)"
            )
        filled = [
            torch.zeros_like(w) if g is None else dense(g)
            for w, g in zip(wanted, found, strict=True)
        ]
        at_outputs = dict(zip(once, filled, strict=False))
        by_name = dict(zip(rest, filled[len(once) :], strict=True))
        gradients: list[Gradient] = []
        for unit, by_factors in zip(self.units, factored, strict=True):
            if not by_factors:
                gradients.append(unit.gather(by_name))
                continue
            inputs = once[unit.weight.parameter][0]
            A = inputs.reshape(-1, inputs.shape[-1])
            if unit.bias is not None:
                A = torch.cat([A, A.new_ones(len(A), 1)], dim=1)
            D = at_outputs[unit.weight.parameter].reshape(len(A), -1)
            gradients.append(OuterProduct(D, A, independent=len(A) == samples))
        return gradients


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor; an embedding's may be sparse.

    Args:
        gradient: any.

    Returns:
        The same, dense.
    """
    return gradient.to_dense() if gradient.is_sparse else gradient


def _rows(inputs: Tensor) -> int:
    return inputs.numel() // max(1, inputs.shape[-1])


def _uses(outputs: Tensor) -> tuple[Counter[int], set[Any]]:
    """Return how often each leaf enters the graph of the outputs, by its id, and all its nodes."""
    uses: Counter[int] = Counter()
    nodes: set[Any] = {outputs.grad_fn}
    waiting: list[Any] = [outputs.grad_fn]
    while waiting:
        for after, _ in waiting.pop().next_functions:
            if type(after).__name__ == "AccumulateGrad":
                uses[id(after.variable)] += 1
            elif after is not None and after not in nodes:
                nodes.add(after)
                waiting.append(after)
    return uses, nodes
