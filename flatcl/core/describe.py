"""What is held of a model, and what is not: one line for every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatcl.core.checkpoint import bytes_of
from flatcl.core.choice import COMPLETE, Ranks, ranks
from flatcl.core.constraint import Constraint
from flatcl.core.gaussians import RANK, InputGaussians
from flatcl.core.layers import Unit, named_parameters
from flatcl.core.layouts import entry_by_entry
from flatcl.core.options import LDCOptions


@dataclass(frozen=True)
class Holding:
    """How one parameter is held, or the inputs.

    Attributes:
        name: of the parameter.
        shape: of the parameter, or of an input.
        held: in words, or why it is not.
        bytes: of bases, stiffness and anchor; those of a bias count with its matrix.
    """

    name: str
    shape: tuple[int, ...]
    held: str
    bytes: int


@dataclass(frozen=True)
class Description:
    """How every parameter of a model is held; prints as a table.

    Attributes:
        holdings: one a parameter, in the model's order; then what else is held, of inputs for
            instance.
    """

    holdings: tuple[Holding, ...]

    @property
    def total(self) -> int:
        """Bytes held between tasks."""
        return sum(holding.bytes for holding in self.holdings)

    def __str__(self) -> str:
        rows = [("parameter", "shape", "held", "bytes")]
        for h in self.holdings:
            shape = " × ".join(map(str, h.shape)) or "1"
            rows.append((h.name, shape, h.held, f"{h.bytes:,}"))
        rows.append(("total", "", "", f"{self.total:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([*(cell.ljust(n) for cell, n in zip(row, widths[:3], strict=False)), last])
            for row in rows
            for last in [row[3].rjust(widths[3])]
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def describe(
    model: nn.Module,
    units: Sequence[Unit],
    constraints: Mapping[str, Constraint],
    options: LDCOptions,
    inputs: InputGaussians,
    others: Sequence[Holding] = (),
) -> Description:
    """Return how every parameter of a model is held, frozen and shared ones too.

    Args:
        model: the model as it is now.
        units: how its trained parameters are held.
        constraints: those in force, by unit's name; for a unit without one, the bytes are those
            that it will have.
        options: of LDC; ``strength``, ``basis`` and ``rank`` count.
        inputs: Gaussians of the earlier tasks' inputs.
        others: what else is held.

    Returns:
        One line a parameter, one for the inputs if there are any, and the others.
    """
    first: dict[int, str] = {}
    entries = entry_by_entry(model)
    parameters = {name: p.detach() for name, p in named_parameters(model)}
    holdings = []
    for name, p in named_parameters(model, remove_duplicate=False):
        shape = tuple(p.shape)
        if first.setdefault(id(p), name) != name:
            holdings.append(Holding(name, shape, f"shared with {first[id(p)]}", 0))
        elif not p.requires_grad:
            kind = "frozen" if p.is_floating_point() or p.is_complex() else f"{p.dtype}, frozen"
            holdings.append(Holding(name, shape, kind.removeprefix("torch."), 0))
        elif options.strength == 0:
            holdings.append(Holding(name, shape, "free: strength is 0", 0))
        else:
            own = [unit for unit in units if unit.weight.parameter == name]
            views = [unit.gather(parameters) for unit in own]
            words = []
            if own:
                words.append(_words(own, views, options, _reason(p, entries)))
            words += _columns([u for u in units if u.bias and u.bias.parameter == name])
            size = sum(
                bytes_of({u.name: constraints[u.name]})
                if u.name in constraints
                else _bytes_to_come(u, view, options)
                for u, view in zip(own, views, strict=True)
            )
            holdings.append(Holding(name, shape, "; ".join(words), size))
    if inputs.groups:
        held = f"{len(inputs.groups)} Gaussians of rank {RANK}"
        holdings.append(Holding("inputs", inputs.shape, held, inputs.bytes_held()))
    return Description((*holdings, *others))


def _words(units: Sequence[Unit], views: Sequence[Tensor], options: LDCOptions, reason: str) -> str:
    """Return how the units of one parameter are held; they are all of one kind."""
    held = _ranks(units[0], views[0], options)
    if held is None:
        return f"entry by entry{' (by option)' if units[0].matrix else reason}"
    shape = tuple(views[0].shape)
    size = f"kronecker [{shape[0]}, {shape[1]}]"
    if held != COMPLETE:
        kept = held.directions(shape)
        size += f", leading {kept[0]} × {kept[1]} and the rest together"
    return size if len(units) == 1 else f"{len(units)} × {size}"


def _ranks(unit: Unit, view: Tensor, options: LDCOptions) -> Ranks | None:
    """Return how the sides of a unit are held, None for entry by entry."""
    if not unit.matrix:
        return None
    return ranks(options.basis, options.rank, unit.name, tuple(view.shape))


def _columns(units: Sequence[Unit]) -> list[str]:
    """Return whose last column a bias is."""
    if not units:
        return []
    if len(units) == 1:
        return [f"last column of {units[0].name}"]
    return [f"last columns of {units[0].name} … {units[-1].name}"]


def _reason(parameter: Tensor, entries: Mapping[int, str]) -> str:
    """Return why a parameter is no matrix, "" for a vector: it could not be one."""
    if id(parameter) in entries:
        return f" ({entries[id(parameter)]})"
    return "" if parameter.dim() < 2 else " (no matrix of a known layer)"


def _bytes_to_come(unit: Unit, view: Tensor, options: LDCOptions) -> int:
    held = _ranks(unit, view, options)
    numbers = 2 * view.numel()  # stiffness and anchor
    if held is not None:
        kept = held.directions(tuple(view.shape))
        coordinates = [r + (r < d) for d, r in zip(view.shape, kept, strict=True)]
        numbers = view.numel() + coordinates[0] * coordinates[1]
        numbers += sum(d * r for d, r in zip(view.shape, kept, strict=True))
    return numbers * torch.promote_types(view.dtype, torch.float32).itemsize
