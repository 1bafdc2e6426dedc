"""Watching a training: which parameters, at which steps, and the rows of one step.

A row [P] is one snapshot: the chosen parameters, flattened one after the other in the model's
order. ``Watch`` makes the rows; what becomes of them is its children's business, on disk in
``flatcl.fluctuations.record``, in a sketch here.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from operator import index
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from flatcl.core.layers import named_parameters, trained_parameters
from flatcl.errors import NonFiniteError, OptionError, StateError
from flatcl.fluctuations.pca import PrincipalDirections, StreamingDirections

Quantity: TypeAlias = Literal["weights", "increments", "gradients"]
Selection: TypeAlias = "str | nn.Module | Sequence[str | nn.Module]"

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
DTYPES = {torch.float32: "float32", torch.float64: "float64"}


class Watch(ABC):
    """What all recorders share: which parameters, at which steps, and the rows of one step."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Selection,
        quantities: Sequence[Quantity],
        every: int,
        epoch_steps: int | None,
    ) -> None:
        if not quantities or not set(quantities) <= set(QUANTITIES):
            raise OptionError(
                f"quantities is {quantities!r}; it must be a tuple of {', '.join(QUANTITIES)}"
            )
        if every < 1 or (epoch_steps is not None and epoch_steps < 1):
            raise OptionError(f"every {every}, epoch_steps {epoch_steps}: both must be 1 or more")
        if epoch_steps is not None and every > 1 and math.gcd(every, epoch_steps) > 1:
            near = (n for d in range(1, every) for n in (every + d, every - d))
            better = next(n for n in near if math.gcd(n, epoch_steps) == 1)
            warnings.warn(
                f"every = {every} and epoch_steps = {epoch_steps} share the divisor "
                f"{math.gcd(every, epoch_steps)}: in an epoch of reshuffled batches the variance "
                "depends on the phase, and this stride sees some phases only; the nearest stride "
                f"that sees all is {better}",
                stacklevel=3,
            )
        chosen = selected(model, parameters)
        self.names = tuple(chosen)
        self.shapes = tuple(tuple(p.shape) for p in chosen.values())
        self.quantities = tuple(q for q in QUANTITIES if q in quantities)
        self.every = index(every)  # NumPy's integers are no JSON
        self.epoch_steps = None if epoch_steps is None else index(epoch_steps)
        self.dtype = torch.float32  # or wider: a sum over half-precision rows would lose digits
        for parameter in chosen.values():
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)
        if self.dtype not in DTYPES:
            raise OptionError(f"the parameters are {self.dtype}; only real ones can be recorded")
        self.steps = 0
        self.snapshots = 0
        self._model, self._paths = model, paths(model, chosen)
        self._sizes = [math.prod(shape) for shape in self.shapes]
        device = next(iter(chosen.values())).device

        def row() -> Tensor:
            return torch.empty(sum(self._sizes), dtype=self.dtype, device=device)

        self._rows = {quantity: row() for quantity in self.quantities}
        self._before = row() if "increments" in self.quantities else None
        self._remember()

    @torch.no_grad()
    def step(self) -> None:
        """Count one step of the optimiser: call it after ``optimizer.step()``, before zero_grad.

        A value that is not finite is a NonFiniteError, and nothing of its step is kept; a
        parameter that is gone or has another shape is a StateError.
        """
        self.steps += 1
        try:
            if self.steps % self.every == 0:
                for quantity, row in self._rows.items():
                    self._read_(row, quantity)
                self._keep(self._rows)
                self.snapshots += 1
        finally:  # the next increment is one step's, whatever became of this one
            self._remember()

    @abstractmethod
    def _keep(self, rows: Mapping[Quantity, Tensor]) -> None:
        """Take one snapshot; the rows are overwritten by the next."""

    def _remember(self) -> None:
        """Keep the weights if the next step's increment is to be recorded."""
        if self._before is not None and (self.steps + 1) % self.every == 0:
            self._fill_(self._before)

    def _read_(self, row: Tensor, quantity: Quantity) -> None:
        self._fill_(row, gradients=quantity == "gradients")
        if quantity == "increments":
            assert self._before is not None
            row.sub_(self._before)
        if not bool(torch.isfinite(row).all()):
            parts = zip(self.names, torch.split(row, self._sizes), strict=True)
            bad = next(name for name, part in parts if not bool(part.isfinite().all()))
            raise NonFiniteError(
                f"{quantity} of {bad} are not finite at step {self.steps}: the training diverged; "
                "lower its rate"
            )
        if quantity == "gradients" and not bool(row.any()):
            warnings.warn(
                f"the gradients are all 0 at step {self.steps}: call the recorder's step() before "
                "optimizer.zero_grad()",
                stacklevel=4,
            )

    @torch.no_grad()
    def _fill_(self, row: Tensor, *, gradients: bool = False) -> None:
        parts = zip(self._paths.items(), self.shapes, torch.split(row, self._sizes), strict=True)
        for (name, path), shape, part in parts:
            try:  # by name, since a model may have put another parameter in its place
                parameter = self._model.get_parameter(path)
            except AttributeError:
                parameter = None
            if parameter is None or tuple(parameter.shape) != shape:
                raise StateError(
                    f"the model's {name} is gone or no longer {shape}: make a new recorder once "
                    "the model has changed"
                )
            source = parameter.grad if gradients else parameter
            if source is None:
                part.zero_()
            else:
                part.view(shape).copy_(source.to_dense())  # a sparse embedding's gradient


class SketchRecorder(Watch):
    """Follows a training as ``Recorder`` does, and keeps only a sketch of its directions.

    Args:
        model: any module; its parameters are read and never written.
        k: principal directions wanted.
        parameters: as of ``Recorder``.
        quantity: which of the three.
        every: as of ``Recorder``.
        epoch_steps: as of ``Recorder``.
        sketch: as of ``StreamingDirections``.

    Raises:
        OptionError: an option is out of its range, or nothing matches.
    """

    def __init__(
        self,
        model: nn.Module,
        k: int,
        *,
        parameters: Selection = "*",
        quantity: Quantity = "weights",
        every: int = 1,
        epoch_steps: int | None = None,
        sketch: int | None = None,
    ) -> None:
        super().__init__(model, parameters, (quantity,), every, epoch_steps)
        self._stream = StreamingDirections(k, sketch=sketch)

    def _keep(self, rows: Mapping[Quantity, Tensor]) -> None:
        for row in rows.values():
            self._stream.add(row)

    def directions(self) -> PrincipalDirections:
        """Return the leading directions of all snapshots so far; fewer than two are a DataError.

        Returns:
            At most k directions, with ``error_bound``.
        """
        return self._stream.directions()


def selected(model: nn.Module, parameters: Selection) -> dict[str, Tensor]:
    """Return the trainable parameters chosen, by name, in the model's order.

    Args:
        model: any module.
        parameters: patterns over parameter names (with the words of a wrapper, as that of
            ``torch.compile``, or without), modules of the model, or a sequence of them.

    Returns:
        Name, without a wrapper's words → parameter.

    Raises:
        OptionError: one of them matches nothing, or is of another type, or there is none.
    """
    wanted = [parameters] if isinstance(parameters, (str, nn.Module)) else list(parameters)
    trained = {name: p for name, p in trained_parameters(model).items() if p.numel()}
    every_name = [  # a tied weight has several
        *named_parameters(model, remove_duplicate=False),
        *model.named_parameters(remove_duplicate=False),
    ]
    chosen: set[int] = set()
    for part in wanted:
        if isinstance(part, str):
            found = {id(p) for name, p in every_name if fnmatchcase(name, part)}
        elif isinstance(part, nn.Module):
            found = {id(p) for p in part.parameters()}
        else:
            raise OptionError(
                f"parameters has a {type(part).__name__}; it takes patterns over parameter names "
                "and modules of the model"
            )
        found &= {id(p) for p in trained.values()}
        if not found:
            what = repr(part) if isinstance(part, str) else f"the {type(part).__name__} given"
            raise OptionError(
                f"{what} matches no trainable parameter of the model; it has "
                f"{', '.join(trained) or 'none'}"
            )
        chosen |= found
    if not chosen:
        raise OptionError(
            f"parameters is empty; choose among {', '.join(trained)}, or leave it out for all"
        )
    return {name: p for name, p in trained.items() if id(p) in chosen}


def paths(model: nn.Module, chosen: Mapping[str, Tensor]) -> dict[str, str]:
    """Return where the model itself has what ``selected`` returned.

    Args:
        model: the same one.
        chosen: name → parameter.

    Returns:
        Name → name in ``model.named_parameters()``, in which a wrapper's words stand.
    """
    found = {id(p): path for path, p in model.named_parameters()}
    return {name: found[id(p)] for name, p in chosen.items()}
