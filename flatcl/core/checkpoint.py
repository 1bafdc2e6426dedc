"""A landscape's state as plain tensors, numbers, strings and dicts, for ``torch.save``.

Loads with ``weights_only=True``: no code is executed by reading it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.errors import StateError

State: TypeAlias = "dict[str, Any]"
VERSION = 1


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
        StateError: a tensor is missing or its shape does not fit the others.
    """
    missing = {"stiffness", "anchor"} - set(state)
    if missing:
        raise StateError(f"the saved constraint of {name} lacks {sorted(missing)}: save it anew")
    basis = KroneckerBasis(state["U_out"], state["U_in"]) if "U_out" in state else None
    stiffness, anchor = state["stiffness"], state["anchor"]
    fits = stiffness.shape == anchor.shape
    if basis is not None:
        out, width = len(basis.U_out), len(basis.U_in)
        fits = (
            fits
            and anchor.shape == (out, width)
            and basis.U_out.shape == (out, out)
            and basis.U_in.shape == (width, width)
        )
    if not fits:
        shapes = {k: tuple(v.shape) for k, v in state.items()}
        raise StateError(f"the saved constraint of {name} has shapes that do not fit: {shapes}")
    return Constraint(basis, stiffness, anchor)


def decode_constraints(
    state: Mapping[str, Any], views: Mapping[str, Tensor]
) -> dict[str, Constraint]:
    """Return the constraints of a landscape's state, checked against a model.

    Args:
        state: a landscape's state.
        views: the model's weights, by unit's name, each in its unit's view.

    Returns:
        Constraints by name, on the weights' device.

    Raises:
        StateError: the version is unknown, the model lacks a layer, or a shape does not fit.
    """
    found = state.get("version")
    if found != VERSION:
        raise StateError(
            f"the saved state has version {found!r}, this flatcl reads {VERSION}: load it with "
            "the flatcl that saved it"
        )
    constraints = {}
    for name, saved in state["constraints"].items():
        if name not in views:
            raise StateError(
                f"the saved state holds {name}, which the model does not have: load it into the "
                "model that it was saved with"
            )
        constraint = decode_constraint(saved, name)
        constraint.grown_to(views[name])  # refuses a shape that does not fit
        constraints[name] = constraint.to(views[name].device)
    return constraints


def warn_of_changes(saved: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Name the options of a saved state that differ from those in force.

    Args:
        saved: options by name, from the state.
        own: options by name, in force.
    """
    changed = [name for name in sorted(own) if name in saved and saved[name] != own[name]]
    if changed:
        warnings.warn(
            "the saved landscape had other options: "
            + ", ".join(f"{n}={saved.get(n)!r} (now {own[n]!r})" for n in changed),
            stacklevel=3,
        )
