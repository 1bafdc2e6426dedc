"""A landscape's state as plain tensors, numbers, strings and dicts, for ``torch.save``.

Loads with ``weights_only=True``: no code is executed by reading it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.saved import State, entry
from flatcl.errors import StateError

# 2: also a task that is running. 3: also Gaussians of inputs and their rehearsal. 4: also the
# running statistics that a task began with. 5: a rehearsal's p in place of log p. 6: also what was
# frozen when tasks ended. Earlier versions are read as states without them, log p is made into p.
VERSION = 6
_READ = (1, 2, 3, 4, 5, VERSION)


def encode_constraint(constraint: Constraint) -> State:
    """Return a constraint as a dict of tensors.

    Args:
        constraint: any.

    Returns:
        ``{"stiffness", "anchor"}``, and ``{"U_out", "U_in"}`` if it has a basis.
    """
    basis = constraint.basis
    sides = {} if basis is None else {"U_out": basis.U_out, "U_in": basis.U_in}
    return {"stiffness": constraint.stiffness, "anchor": constraint.anchor, **sides}


def bytes_of(constraints: Mapping[str, Constraint]) -> int:
    """Return the bytes of constraints' bases, stiffness and anchors.

    Args:
        constraints: by unit's name.

    Returns:
        Bytes.
    """
    tensors: list[Tensor] = [t for c in constraints.values() for t in encode_constraint(c).values()]
    return sum(t.numel() * t.element_size() for t in tensors)


def decode_constraint(state: Mapping[str, Tensor], name: str) -> Constraint:
    """Return what ``encode_constraint`` encoded.

    Args:
        state: its result.
        name: of the unit, for the message.

    Returns:
        The constraint.

    Raises:
        StateError: a tensor is missing, its shape does not fit the others, or a stiffness is
            negative.
    """
    missing = {"stiffness", "anchor"} - set(state)
    if missing:
        raise StateError(f"the saved constraint of {name} lacks {sorted(missing)}: save it anew")
    basis = KroneckerBasis.of_sides(state["U_out"], state["U_in"]) if "U_out" in state else None
    stiffness, anchor = state["stiffness"], state["anchor"]
    if basis is None:
        fits = stiffness.shape == anchor.shape
    else:
        fits = (
            anchor.shape == (len(basis.U_out), len(basis.U_in))
            and stiffness.shape == basis.coordinates
            and all(U.ndim == 2 and U.shape[1] <= len(U) for U in (basis.U_out, basis.U_in))
        )
    if not fits:
        shapes = {k: tuple(v.shape) for k, v in state.items()}
        raise StateError(f"the saved constraint of {name} has shapes that do not fit: {shapes}")
    if bool((stiffness < 0).any()):
        raise StateError(
            f"the saved constraint of {name} has a stiffness of {float(stiffness.min()):g}, which "
            "would push weights away from where they are held: save it anew"
        )
    return Constraint(basis, stiffness, anchor)


def decode_constraints(
    state: Mapping[str, Any], views: Mapping[str, Tensor], frozen: Mapping[str, Tensor]
) -> dict[str, Constraint]:
    """Return the constraints of a landscape's state, checked against a model.

    Args:
        state: a landscape's state.
        views: the model's weights, by unit's name, each in its unit's view.
        frozen: its frozen parameters by name; their constraints are kept for when they are trained.

    Returns:
        Constraints by name, on the weights' device and grown to their shape.

    Raises:
        StateError: the version is unknown, the model lacks a layer, or a shape does not fit.
    """
    found = state.get("version")
    if found not in _READ:
        raise StateError(
            f"the saved state has version {found!r}, this flatcl reads {_READ}: load it with "
            "the flatcl that saved it"
        )
    constraints = {}
    for name, saved in entry(state, "constraints", "landscape").items():
        constraint = decode_constraint(saved, name)
        if name in views:
            constraints[name] = constraint.to(views[name].device).grown_to(views[name])
        elif (parameter := frozen.get(name.partition("[")[0])) is not None:
            constraints[name] = constraint.to(parameter.device)
        else:
            raise StateError(
                f"the saved state holds {name}, which the model does not have: load it into the "
                "model that it was saved with"
            )
    return constraints


def generator_from(saved: Tensor) -> torch.Generator:
    """Return a generator on the CPU that goes on from a saved state.

    Args:
        saved: from ``torch.Generator.get_state``.

    Returns:
        The generator.

    Raises:
        StateError: it is no generator's state.
    """
    generator = torch.Generator()
    try:
        generator.set_state(saved.cpu())
    except (AttributeError, TypeError, RuntimeError) as error:
        raise StateError(f"the saved generator is no generator's state ({error})") from error
    return generator


def warn_of_changes(saved: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Name the options of a saved state that differ from those in force.

    Args:
        saved: options by name, from the state; what an earlier flatcl did not have is missing.
        own: options by name, in force.
    """
    changed = [name for name in sorted(own) if name in saved and saved[name] != own[name]]
    if changed:
        warnings.warn(
            "the saved landscape had other options: "
            + ", ".join(f"{n}={saved.get(n)!r} (now {own[n]!r})" for n in changed),
            stacklevel=3,
        )
