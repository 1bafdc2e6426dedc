"""Which parameters are held, and their matrix view.

ONE layout everywhere else: a unit is a matrix W [out, in (+1)], its bias (if trained) the last
column, fed by a constant input 1; ``layouts`` says which matrices a layer has. Every other trained
parameter keeps its own shape and is held entry by entry (a *diagonal* unit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from flatcl.core.layouts import entry_by_entry, layer_matrices
from flatcl.errors import OptionError


@dataclass(frozen=True)
class Part:
    """The part of one parameter that belongs to a unit.

    Attributes:
        parameter: its name, see ``named_parameters``.
        rows: first and last + 1 along the first dimension, None for all.
        transposed: True if the parameter is [in, out, …], as in a transposed convolution.
    """

    parameter: str
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the part of a tensor, sharing its memory.

        Args:
            tensors: by parameter name, each in its parameter's shape.

        Returns:
            [out, …] for a weight, [out] for a bias.
        """
        tensor = tensors[self.parameter]
        if self.rows is not None:
            tensor = tensor[self.rows[0] : self.rows[1]]
        return tensor.transpose(0, 1) if self.transposed else tensor


@dataclass(frozen=True)
class Unit:
    """A group of numbers that one constraint holds.

    Attributes:
        name: the key of all state: the weight's name, "name[label]" for a part of it.
        weight: where its numbers lie.
        bias: where the bias lies that is the matrix's last column, or None.
        matrix: True for a matrix view [out, in (+1)], False for entry-by-entry.
    """

    name: str
    weight: Part
    bias: Part | None
    matrix: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        """Where its numbers lie, the weight first."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters that it has a part in."""
        return tuple(part.parameter for part in self.parts)

    def gather(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the unit's view of tensors keyed by parameter name.

        Args:
            tensors: parameters, gradients or optimiser state, each in its parameter's shape.

        Returns:
            [out, in (+1)] for a matrix, else the part's shape. A copy if there is a bias.
        """
        weight = self.weight.of(tensors)
        if not self.matrix:
            return weight
        flat = weight.reshape(weight.shape[0], -1)
        if self.bias is None:
            return flat
        return torch.cat([flat, self.bias.of(tensors).unsqueeze(1)], dim=1)

    @torch.no_grad()
    def write_(self, parameters: Mapping[str, Tensor], view: Tensor) -> None:
        """Set the unit's parameters to ``view``, in place.

        Args:
            parameters: the model's parameters by name.
            view: as ``gather`` returns it; cast to each parameter's dtype.
        """
        for place, values in self._places(parameters, view):
            place.copy_(values)

    @torch.no_grad()
    def subtract_(self, parameters: Mapping[str, Tensor], view: Tensor) -> None:
        """Subtract ``view`` from the unit's parameters, in place: zeros change no bit.

        Args:
            parameters: the model's parameters by name.
            view: as ``gather`` returns it; cast to each parameter's dtype.
        """
        for place, values in self._places(parameters, view):
            place.sub_(values.to(place.dtype))

    def _places(
        self, parameters: Mapping[str, Tensor], view: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        weight = self.weight.of(parameters)
        if self.bias is None:
            yield weight, view.reshape(weight.shape)
        else:
            yield weight, view[:, :-1].reshape(weight.shape)
            yield self.bias.of(parameters), view[:, -1]


def named_parameters(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the model's parameters under the names that they have without a wrapper.

    ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile`` put a name of their own into
    every name; a state saved with one must load without it.

    Args:
        model: any module.
        remove_duplicate: whether a shared parameter comes once, under its first name.

    Yields:
        Name and parameter.
    """
    plain = _plain_names(model)
    for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
        yield plain(name), parameter


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's modules under the names that they have without a wrapper.

    Args:
        model: any module.

    Yields:
        Name and module, shared ones once; the model and its wrappers are all named "".
    """
    plain = _plain_names(model)
    for name, module in model.named_modules():
        yield plain(name), module


def _plain_names(model: nn.Module) -> Callable[[str], str]:
    """Return what takes a wrapper's words out of a name."""
    inserted = set()
    for path, module in model.named_modules(remove_duplicate=False):
        stem = f"{path}." if path else ""
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            inserted.add(f"{stem}module")
        elif "_orig_mod" in module._modules:  # the mark of torch.compile, whose class is private
            inserted.add(f"{stem}_orig_mod")

    def plain(name: str) -> str:
        words = name.split(".") if inserted else []
        kept = [word for i, word in enumerate(words) if ".".join(words[: i + 1]) not in inserted]
        return ".".join(kept) if inserted else name

    return plain


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's trainable parameters by name, shared ones once.

    Args:
        model: any module.

    Returns:
        Name → parameter (the leaf that an optimiser moves).
    """
    return {name: p for name, p in named_parameters(model) if p.requires_grad}


def matrix_views(model: nn.Module) -> list[Unit]:
    """Return how each trainable parameter is held: the layers' matrices as such.

    The matrices are those of ``layouts.layer_matrices``, and every other parameter of two
    dimensions (a low-rank adapter's) that ``layouts.entry_by_entry`` does not name. What is left is
    held entry by entry: vectors, normalisation layers, embeddings, depthwise convolutions, and
    layers whose weight is not a leaf (parametrisations, weight norm), under the leaf's name.

    Args:
        model: the model as it is now; call again after a head has been added or has grown.

    Returns:
        Units that cover every trainable number exactly once.

    Raises:
        OptionError: the model has no trainable parameter, or one without a shape, or a complex one.
    """
    parameters = trained_parameters(model)
    if not parameters:
        raise OptionError(
            "the model has no trainable parameter, so there is nothing to hold: "
            "check requires_grad of its parameters"
        )
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise OptionError(f"{name} has no shape yet: pass one batch through the model first")
        if parameter.is_complex():
            raise OptionError(
                f"{name} is {parameter.dtype}: hold its real and imaginary parts as two real "
                "parameters, or freeze it"
            )
    name_of = {id(p): name for name, p in parameters.items()}
    taken: dict[str, list[tuple[int, int]]] = {name: [] for name in parameters}

    def claim(tensor: Tensor | None, rows: tuple[int, int] | None, transposed: bool) -> Part | None:
        # What is not trained, or already another unit's (a shared parameter), is not taken.
        if tensor is None or id(tensor) not in name_of:
            return None
        name = name_of[id(tensor)]
        start, stop = rows or (0, len(tensor))
        if any(start < b and a < stop for a, b in taken[name]):
            return None
        taken[name].append((start, stop))
        return Part(name, rows, transposed)

    units: list[Unit] = []
    for layer in model.modules():
        for found in layer_matrices(layer):
            weight = claim(found.weight, found.rows, found.transposed) if found.out else None
            if weight is not None:
                label = "" if found.label is None else f"[{found.label}]"
                bias = claim(found.bias, found.bias_rows, False)
                units.append(Unit(weight.parameter + label, weight, bias, matrix=True))
    entries = entry_by_entry(model)
    for name, p in parameters.items():
        if taken[name] or id(p) in entries or p.dim() != 2 or min(p.shape) < 2:
            continue
        taken[name].append((0, len(p)))
        units.append(Unit(name, Part(name), None, matrix=True))
    for name, p in parameters.items():
        units.extend(_rest(name, p, taken[name]))
    return units


def _rest(name: str, parameter: Tensor, taken: list[tuple[int, int]]) -> Iterator[Unit]:
    """Yield units, entry by entry, for what no matrix has taken of a parameter."""
    if not taken:
        yield Unit(name, Part(name), None, matrix=False)
        return
    start = 0
    for first, last in [*sorted(taken), (len(parameter), len(parameter))]:
        if start < first:
            part = Part(name, (start, first))
            yield Unit(f"{name}[{start}:{first}]", part, None, matrix=False)
        start = last
