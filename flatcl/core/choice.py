"""Which basis a matrix layer is held in, by its name and its sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, get_args

from flatcl.errors import OptionError

Basis = Literal["auto", "kronecker", "low-rank", "diagonal"]
BasisOption: TypeAlias = "Basis | Mapping[str, Basis]"

FULL_SIDE = 2048  # beyond it, [d, d] and its eigendecomposition outgrow a layer's own cost


@dataclass(frozen=True)
class Ranks:
    """How the two sides of one layer are held.

    Attributes:
        out: r of a truncated output side, None for a complete one.
        width: of the input side.
    """

    out: int | None
    width: int | None

    def directions(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many directions of each side are kept.

        Args:
            shape: (out, in) of the layer.

        Returns:
            Those of the output side and of the input side.
        """
        out, width = shape
        return self.out or out, self.width or width


COMPLETE = Ranks(None, None)


def checked(basis: object) -> BasisOption:
    """Return a valid ``basis`` option, a mapping as a plain dict of its own.

    Args:
        basis: what was given.

    Returns:
        The option.

    Raises:
        OptionError: it is, or maps a pattern to, no known kind.
    """
    kinds = get_args(Basis)
    if isinstance(basis, Mapping):
        if bad := [(p, k) for p, k in basis.items() if not isinstance(p, str) or k not in kinds]:
            raise OptionError(
                f"basis is {dict(basis)!r}: {bad[0][0]!r} maps to {bad[0][1]!r}; map patterns of "
                f"parameter names to one of {kinds}"
            )
        return dict(basis)
    if not isinstance(basis, str) or basis not in kinds:
        raise OptionError(
            f"basis is {basis!r}; choose one of {kinds}, or map patterns of parameter names to them"
        )
    return basis  # type: ignore[return-value]


def ranks(option: BasisOption, rank: int, name: str, shape: tuple[int, ...]) -> Ranks | None:
    """Return how a matrix layer is held.

    Args:
        option: the ``basis`` of the options; of a mapping the first pattern that fits the name
            counts, and "auto" where none does.
        rank: r of a truncated side; a side of no more directions is complete.
        name: of the layer's weight.
        shape: (out, in) of its matrix view.

    Returns:
        The ranks of its sides, or None for entry by entry.
    """
    kind: str = "auto"
    if isinstance(option, str):
        kind = option
    else:
        kind = next((k for pattern, k in option.items() if fnmatchcase(name, pattern)), kind)
    if kind == "diagonal":
        return None
    limit = {"auto": max(FULL_SIDE, rank), "low-rank": rank}.get(kind)
    out, width = (rank if limit is not None and side > limit else None for side in shape)
    return Ranks(out, width)
