"""A landscape's state as plain tensors, numbers, strings and dicts, for ``torch.save``.

Loads with ``weights_only=True``: no code is executed by reading it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.errors import StateError

State: TypeAlias = "dict[str, Any]"
VERSION = 1


def encode_basis(basis: KroneckerBasis | None) -> State:
    """Return a basis as a dict of tensors, empty for a unit held entry by entry.

    Args:
        basis: or None.

    Returns:
        ``{"U_out", "U_in"}`` or ``{}``.
    """
    return {} if basis is None else {"U_out": basis.U_out, "U_in": basis.U_in}


def decode_basis(state: Mapping[str, Tensor]) -> KroneckerBasis | None:
    """Return what ``encode_basis`` encoded.

    Args:
        state: its result.

    Returns:
        The basis, or None.
    """
    return KroneckerBasis(state["U_out"], state["U_in"]) if state else None


def encode_constraint(constraint: Constraint) -> State:
    """Return a constraint as a dict of tensors.

    Args:
        constraint: any.

    Returns:
        ``{"stiffness", "anchor"}`` and the basis's entries.
    """
    return {
        "stiffness": constraint.stiffness,
        "anchor": constraint.anchor,
        **encode_basis(constraint.basis),
    }


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
    basis = decode_basis({k: v for k, v in state.items() if k.startswith("U_")})
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


def check_version(state: Mapping[str, object]) -> None:
    """Refuse a state that this version cannot read.

    Args:
        state: a landscape's state.

    Raises:
        StateError: it has no version, or another one.
    """
    found = state.get("version")
    if found != VERSION:
        raise StateError(
            f"the saved state has version {found!r}, this flatcl reads {VERSION}: load it with "
            "the flatcl that saved it"
        )
