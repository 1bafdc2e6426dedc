"""Reading saved state back: every entry is asked for by name, every tensor checked and copied.

What changes in place while a task runs is copied on the way out and on the way in, so that a kept
state stays as it was when it was taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.moments import EigenMoments, KroneckerMoments, SideMoment
from flatcl.errors import StateError

State: TypeAlias = "dict[str, Any]"


def entry(state: Mapping[str, Any], key: str, what: str) -> Any:
    """Return an entry of a saved state.

    Args:
        state: the state.
        key: of the entry.
        what: the state is of, for the message.

    Returns:
        The entry.

    Raises:
        StateError: there is none.
    """
    if not isinstance(state, Mapping) or key not in state:
        raise StateError(f"the saved {what} lacks {key!r}: save it anew")
    return state[key]


def tensor_like(state: Mapping[str, Any], key: str, like: Tensor, what: str) -> Tensor:
    """Return a copy of a saved tensor.

    Args:
        state: the state.
        key: of the tensor.
        like: has the shape that it must have and the device that it goes to.
        what: the state is of, for the message.

    Returns:
        The copy, in the saved dtype.

    Raises:
        StateError: there is none, or its shape is another.
    """
    found = entry(state, key, what)
    if not isinstance(found, Tensor) or found.shape != like.shape:
        seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise StateError(
            f"{key!r} of the saved {what} has shape {seen}, the model needs {tuple(like.shape)}: "
            "load it into the model that it was saved with"
        )
    return found.detach().to(like.device, copy=True)


def refuse_not_finite(state: object, what: str) -> None:
    """Refuse a saved state with NaN or infinity in it: the next pull would spread them.

    Args:
        state: any; ``spent`` is left out, where NaN stands for a growth that is not known.
        what: the state is of, for the message.

    Raises:
        StateError: a number is not finite.
    """
    if isinstance(state, Mapping):
        for key, value in state.items():
            if key != "spent":
                refuse_not_finite(value, f"{what} → {key}")
        return
    if isinstance(state, (list, tuple)):
        for value in state:
            refuse_not_finite(value, what)
        return
    if isinstance(state, Tensor):
        finite = bool(state.isfinite().all())
    else:
        finite = not isinstance(state, float) or math.isfinite(state)
    if not finite:
        raise StateError(
            f"the saved {what} holds NaN or infinity: take up a state that was saved before "
            "training diverged"
        )


def same_names(saved: Mapping[str, Any], own: Mapping[str, Any], what: str) -> None:
    """Refuse a saved state that is keyed by other names.

    Args:
        saved: keyed by name.
        own: keyed by the names that it must have.
        what: the state is of, for the message.

    Raises:
        StateError: a name is missing or unknown.
    """
    other = sorted(set(saved) ^ set(own))
    if other:
        raise StateError(
            f"the saved {what} and the model differ in {', '.join(other)}: load it into the model "
            "that it was saved with"
        )


def encode_sides(moments: KroneckerMoments) -> State:
    """Return second moments of both sides as plain state.

    Args:
        moments: any.

    Returns:
        ``{"S_out", "S_in", "total"}``, copied; of a sketched side its own state.
    """
    S_out, S_in = (
        side.clone() if isinstance(side, Tensor) else side.state_dict()
        for side in (moments.S_out, moments.S_in)
    )
    return {"S_out": S_out, "S_in": S_in, "total": float(moments.total)}


def decode_sides(state: Mapping[str, Any], empty: KroneckerMoments, what: str) -> KroneckerMoments:
    """Return what ``encode_sides`` encoded.

    Args:
        state: its result.
        empty: moments of the unit without a gradient; a sketched side takes up its state.
        what: the state is of, for the message.

    Returns:
        The moments.
    """
    found: list[SideMoment] = []
    for key, side in (("S_out", empty.S_out), ("S_in", empty.S_in)):
        if isinstance(side, Tensor):
            found.append(tensor_like(state, key, side, what))
        else:
            side.load_state_dict(entry(state, key, what))
            found.append(side)
    return KroneckerMoments(found[0], found[1], float(entry(state, "total", what)))


def encode_coordinates(moments: EigenMoments) -> State:
    """Return moments in a frozen basis as plain state.

    Args:
        moments: any.

    Returns:
        ``{"first", "second", "weight", "count"}``, and ``{"U_out", "U_in"}`` if they have a basis.
        Copied but for the basis, which never changes.
    """
    basis = moments.basis
    sides = {} if basis is None else {"U_out": basis.U_out, "U_in": basis.U_in}
    return {
        "first": moments.first.clone(),
        "second": moments.second.clone(),
        "weight": float(moments.weight),
        "count": int(moments.count),
        **sides,
    }


def decode_coordinates(state: Mapping[str, Any], like: Tensor, what: str) -> EigenMoments:
    """Return what ``encode_coordinates`` encoded.

    Args:
        state: its result.
        like: the unit's view.
        what: the state is of, for the message.

    Returns:
        The moments.

    Raises:
        StateError: the bases are of another layer.
    """
    basis, coordinates = None, like
    if "U_out" in state:
        sides = [entry(state, key, what) for key in ("U_out", "U_in")]
        if [len(U) for U in sides] != list(like.shape) or any(U.shape[1] > len(U) for U in sides):
            raise StateError(
                f"the bases of the saved {what} have shapes {[tuple(U.shape) for U in sides]}, the "
                f"layer has {tuple(like.shape)}: load it into the model that it was saved with"
            )
        basis = KroneckerBasis.of_sides(*(U.detach().to(like.device) for U in sides))
        coordinates = like.new_empty(basis.coordinates)
    return EigenMoments(
        basis,
        tensor_like(state, "first", like, what),
        tensor_like(state, "second", coordinates, what),
        float(entry(state, "weight", what)),
        int(entry(state, "count", what)),
    )
