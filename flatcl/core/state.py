"""A landscape's whole state as plain tensors, numbers, strings and dicts, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from flatcl.core.checkpoint import (
    VERSION,
    decode_constraints,
    encode_constraint,
    generator_from,
    warn_of_changes,
)
from flatcl.core.forecast import History
from flatcl.core.gaussians import InputGaussians
from flatcl.core.layers import named_parameters
from flatcl.core.saved import State, entry, refuse_not_finite
from flatcl.core.statistics import MixedStatistics
from flatcl.errors import StateError

if TYPE_CHECKING:
    from flatcl.core.holdings import Holdings

# What Python and torch raise where an entry is not what it is used as.
_OF_ANOTHER_TYPE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def state_of(landscape: Holdings) -> State:
    """Return all that a landscape holds, a running task's progress included.

    Args:
        landscape: any.

    Returns:
        Plain state; see ``Landscape.state_dict``.

    Raises:
        StateError: a task is running under a network constraint.
    """
    network, task = landscape.network, landscape.task
    if task is not None and network is not None:
        raise StateError("a network constraint is saved between tasks only: end the task first")
    return {
        "version": VERSION,
        "options": asdict(landscape.options),
        "tasks_ended": landscape.tasks_ended,
        "probe_scale": landscape.probe_scale,
        "generator": landscape.generator.get_state(),
        "constraints": {n: encode_constraint(c) for n, c in landscape.constraints.items()},
        "history": landscape.history.state_dict(),
        "inputs": landscape.inputs.state_dict(),
        "frozen_until": dict(landscape.frozen_until),
        **({} if network is None else {"network": network.state_dict()}),
        "task": None if task is None else task.state_dict(),
    }


def take_up(landscape: Holdings, state: State) -> None:
    """Set a landscape to a saved state, or raise and change nothing.

    Args:
        landscape: between tasks, its layout that of the model.
        state: from ``state_of``.

    Raises:
        StateError: the state does not fit; see ``Landscape.load_state_dict``.
    """
    try:
        refuse_not_finite(state, "landscape")
        _take_up(landscape, state)
    except StateError:
        raise
    except _OF_ANOTHER_TYPE as error:
        raise StateError(
            f"the saved landscape has an entry of another type or size ({error}): save it anew"
        ) from error


def _take_up(landscape: Holdings, state: State) -> None:
    views = landscape.views()
    parameters = named_parameters(landscape.model)
    still = {name: p for name, p in parameters if not p.requires_grad}
    constraints = decode_constraints(state, views, still)
    frozen_until = {str(n): int(k) for n, k in state.get("frozen_until", {}).items()}
    network = landscape.network
    if (network is None) == ("network" in state):
        raise StateError(
            "the saved state and this landscape differ in having a network constraint: make "
            "the landscape as the one that was saved"
        )
    tasks_ended = int(entry(state, "tasks_ended", "landscape"))
    scale = entry(state, "probe_scale", "landscape")
    generator = generator_from(entry(state, "generator", "landscape"))
    device = next(iter(landscape.parameters.values())).device
    history = History.from_state(state.get("history"), device)
    inputs = InputGaussians.from_state(state.get("inputs"), device)
    task, running = None, state.get("task")
    if running is not None:
        steps = entry(running, "steps", "task")
        statistics = MixedStatistics.from_state(landscape.model, running.get("statistics"))
        task = landscape.begun(constraints, tasks_ended, steps, statistics)
        task.load_state_dict(running)
    warn_of_changes(entry(state, "options", "landscape"), asdict(landscape.options))
    if network is not None:
        network.load_state_dict(state["network"], landscape.parameters)
    landscape.constraints, landscape.history, landscape.inputs = constraints, history, inputs
    landscape.generator, landscape.task = generator, task
    landscape.frozen_until = frozen_until
    landscape.tasks_ended, landscape.probe_scale = tasks_ended, scale
