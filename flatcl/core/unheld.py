"""Parameters that the constraints of some ended tasks know nothing of.

A parameter that is frozen while a task is learned is not measured. Unfrozen later, it moves as if
that task did not need it. So does what takes the place of a parameter whose name is gone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping

from torch import nn

from flatcl.core.checkpoint import bytes_of
from flatcl.core.constraint import Constraint
from flatcl.core.describe import Holding
from flatcl.core.layers import named_parameters


def frozen(model: nn.Module) -> list[str]:
    """Return the parameters that a task which ends now leaves without a constraint.

    Args:
        model: the network.

    Returns:
        Their names.
    """
    return [
        name for name, p in named_parameters(model) if p.is_floating_point() and not p.requires_grad
    ]


def unreached(
    model: nn.Module, held: Iterable[str], frozen_until: Mapping[str, int]
) -> dict[str, float]:
    """Return what earlier tasks are not held in, though it may have moved since they ended.

    Args:
        model: the network as it is now.
        held: names of the units that have a constraint.
        frozen_until: by parameter's name, the number of tasks that had ended when it was frozen
            at a task's end for the last time.

    Returns:
        By parameter's name, how many of the first tasks: infinite for a constraint whose parameter
        is gone.
    """
    now = dict(named_parameters(model, remove_duplicate=False))
    names = {unit.partition("[")[0] for unit in held}
    gone = dict.fromkeys(sorted(names - now.keys()), math.inf)
    moving = {
        name: tasks
        for name, tasks in frozen_until.items()
        if name in now and (now[name].requires_grad or name in names)
    }
    return {**gone, **moving}


def warn_of(unheld: Mapping[str, float]) -> None:
    """Say what a task that begins will move without regard to some of the tasks before it.

    Args:
        unheld: from ``unreached``.
    """
    gone = [name for name, tasks in unheld.items() if math.isinf(tasks)]
    if gone:
        warnings.warn(
            f"the model no longer has {_listed(gone)}, which earlier tasks are held by: what took "
            "its place is not held for them; give it the same name, or wrap layers before the "
            "first task",
            stacklevel=3,
        )
    moving = {name: tasks for name, tasks in unheld.items() if not math.isinf(tasks)}
    if moving:
        until = max(moving.values())
        warnings.warn(
            f"{_listed(list(moving))} was frozen at the end of a task ({until:g} had ended then) "
            "and is trained since: its constraint does not hold the tasks up to that one; train it "
            "from the first task on, or leave it frozen",
            stacklevel=3,
        )


def holdings_of(
    unheld: Mapping[str, float], model: nn.Module, constraints: Mapping[str, Constraint]
) -> list[Holding]:
    """Return the same for a description.

    Args:
        unheld: from ``unreached``.
        model: the network as it is now.
        constraints: by unit's name.

    Returns:
        One line a parameter.
    """
    now = dict(named_parameters(model, remove_duplicate=False))
    found = []
    for name, tasks in unheld.items():
        if name in now:
            held = f"not held for the first {tasks:g} tasks: frozen when they ended"
            found.append(Holding(name, tuple(now[name].shape), held, 0))
            continue
        own = {n: c for n, c in constraints.items() if n.partition("[")[0] == name}
        shape = tuple(next(iter(own.values())).anchor.shape)
        found.append(Holding(name, shape, "held, but no longer in the model", bytes_of(own)))
    return found


def doubt_of(unheld: Mapping[str, float], task: int) -> str:
    """Return why a constraint's forecast for a task is not to be trusted, or nothing.

    Args:
        unheld: from ``unreached``.
        task: its number, from 0.

    Returns:
        The reason.
    """
    names = [name for name, tasks in unheld.items() if tasks > task]
    if not names:
        return ""
    return (
        f"{_listed(names)} moves without being held for this task (frozen when it ended, or under "
        "another name then), and what that costs is not known"
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
