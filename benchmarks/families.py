"""What kind of method each is: its place in tables, and what it is told or keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Family = Literal[
    "control", "ewc", "regulariser", "projection", "told", "rehearsal", "ldc", "bound", "other"
]
ORDER: tuple[Family, ...] = (
    "control", "ewc", "regulariser", "projection", "told", "rehearsal", "other", "ldc", "bound",
)  # fmt: skip

_OF: dict[Family, tuple[str, ...]] = {
    "control": ("naive", "stable-sgd"),
    "regulariser": (
        "l2", "si", "mas", "lwf", "rwalk", "kfac", "kfac-laplace", "laplace-kfac", "ncl", "vcl",
    ),
    "projection": ("owm", "gpm", "ogd", "dco", "adam-nscl"),
    "told": ("trgp", "cuber"),
    "rehearsal": (
        "replay", "er", "gem", "agem", "a-gem", "der", "derpp", "der++", "gdumb", "icarl",
    ),
    "bound": ("joint", "cumulative"),
}  # fmt: skip
_FAMILY: dict[str, Family] = {name: family for family, names in _OF.items() for name in names}

WITHOUT_DATA: tuple[Family, ...] = ("regulariser", "projection")
"""Rivals other than EWC that keep no samples and are not told the task: the field for a "best other"."""
_USES: dict[Family, str] = {
    "told": "is told the task at test time",
    "rehearsal": "keeps samples of earlier tasks",
    "bound": "trains on the samples of all tasks at once: a bound, not a rival",
    "other": "of no known family: never the best of a kind",
}


def family(method: str) -> Family:
    """Return a method's family.

    Args:
        method: its name; every variant of EWC starts with "ewc", every one of LDC with "ldc".

    Returns:
        "other" for a name that is not known.
    """
    for prefix in ("ewc", "ldc"):
        if method == prefix or method.startswith(f"{prefix}-"):
            return "ewc" if prefix == "ewc" else "ldc"
    return _FAMILY.get(method, "other")


def in_order(methods: Iterable[str]) -> list[str]:
    """Return the methods as tables show them: controls, rivals by family, LDC, bounds.

    Args:
        methods: their names.

    Returns:
        Those, within a family as the family lists them, then by name.
    """

    def place(method: str) -> tuple[int, int, str]:
        kind = family(method)
        listed = _OF.get(kind, ())
        return ORDER.index(kind), listed.index(method) if method in listed else -1, method

    return sorted(methods, key=place)


def information(method: str) -> str | None:
    """Return what a method uses that plain regularisers do not.

    Args:
        method: its name.

    Returns:
        A clause for a footnote, or None.
    """
    if method == "ogd":
        return "keeps gradients of stored samples, one vector of the network's size each"
    return _USES.get(family(method))
