"""Whether a task goes on as it began: trained by the optimiser it was told of, with its parameters.

A pull goes by the learning rates and the state of the optimiser that the landscape was given, and
reaches the parameters that the model had when the task began. Where another optimiser steps, or
other parameters are trained, it would be wrong or missing without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flatcl.core.layers import named_parameters
from flatcl.errors import StateError

# Steps in a row without the optimiser's own that tell of another one. A GradScaler that starts too
# high skips some of the first: it halves its scale at each.
PATIENCE = 32
_REMEDY = (
    "pulls go by its learning rates and its state; if another optimiser trains the model now, call "
    "attach(model, optimizer) with it before begin_task"
)


class TrainedWatch:
    """Follows one task's optimiser, and the parameters in it.

    Args:
        model: the network.
        parameters: its trainable parameters by name, as the task begins.
        optimizer: the one that trains it; one without ``register_step_post_hook`` is not followed.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Tensor], optimizer: Optimizer
    ) -> None:
        self.model, self.parameters, self.optimizer = model, parameters, optimizer
        self._shapes = [p.shape for p in parameters.values()]
        own = {id(p) for p in model.parameters()}
        self._others = [p for p in self._trained() if id(p) not in own]  # a loss's, for instance
        self._handle: RemovableHandle | None = None
        self._stepped, self._ever, self._missed = False, False, 0

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle keeps: optimisers lose their hooks there.

        Returns:
            Attributes by name.
        """
        return {**vars(self), "_handle": None}

    def begin_(self) -> None:
        """Follow the optimiser's steps from now on."""
        try:
            self._handle = self.optimizer.register_step_post_hook(self._see)
        except AttributeError:  # what is no torch optimiser, or wraps one, may have no hooks
            self._handle = None

    def end_(self) -> None:
        """Leave the optimiser to itself again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _see(self, *args: object) -> None:
        self._stepped = True

    def count(self) -> None:
        """Count a step of the task, and warn where the optimiser has long made none."""
        if self._stepped:
            self._stepped, self._ever, self._missed = False, True, 0
        elif self._handle is not None:
            self._missed += 1
            if self._missed == PATIENCE:
                _warn(f"has made none of the last {PATIENCE} steps: {_REMEDY}")

    @property
    def idle(self) -> bool:
        """Whether the optimiser has made no step so far, and it has not been said."""
        return self._handle is not None and not self._ever and 0 < self._missed < PATIENCE

    def warn_of_idleness(self) -> None:
        """Warn of a short task in which the weights moved, and not by the optimiser."""
        _warn(f"has made none of the task's {self._missed} steps: {_REMEDY}")

    def warn_of_loose(self, names: Iterable[str]) -> None:
        """Warn of parameters that are in no group of the optimiser.

        Args:
            names: of parameters that are held.
        """
        inside = {id(p) for p in self._trained()}
        if loose := [
            name for name in dict.fromkeys(names) if id(self.parameters[name]) not in inside
        ]:
            _warn(
                f"has {_listed(loose)} in none of its groups: held from earlier tasks and trained "
                "by it no more, so never pulled; give the landscape one optimiser with all that "
                "is trained, or freeze the others"
            )

    def check(self) -> None:
        """Refuse parameters that were not there, not trained or of another shape at the beginning.

        Those that the optimiser does not have are let be: Avalanche makes heads for tasks to come
        while it evaluates.

        Raises:
            StateError: the optimiser trains such a parameter.
        """
        known = {id(p) for p in (*self.parameters.values(), *self._others)}
        if strange := {id(p) for p in self._trained() if id(p) not in known}:
            names = [name for name, p in named_parameters(self.model) if id(p) in strange]
            if names:
                raise StateError(
                    f"{_listed(names)} is trained and was not when the task began, so that it is "
                    "neither pulled nor measured: grow, replace, freeze or unfreeze layers before "
                    "begin_task; abandon_task forgets this one"
                )
        for (name, p), shape in zip(self.parameters.items(), self._shapes, strict=True):
            if p.shape != shape:
                raise StateError(
                    f"{name} has the shape {tuple(p.shape)} and had {tuple(shape)} when the task "
                    "began: change it before begin_task; abandon_task forgets this one"
                )

    def check_measurable(self) -> None:
        """Refuse parameters that were frozen since the beginning, which a probe cannot measure.

        Raises:
            StateError: there is one.
        """
        if frozen := [name for name, p in self.parameters.items() if not p.requires_grad]:
            raise StateError(
                f"{_listed(frozen)} is frozen and was not when the task began, so that it cannot "
                "be measured: freeze layers before begin_task, or unfreeze them for end_task"
            )

    def _trained(self) -> list[Tensor]:
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]


def _listed(names: Collection[str]) -> str:
    """Return one name, and how many more there are."""
    first = next(iter(names))
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} more)"


def _warn(what: str) -> None:
    # From here by way of the watch, the task and the landscape to the caller's line.
    warnings.warn(f"the optimiser given to this landscape {what}", stacklevel=5)
