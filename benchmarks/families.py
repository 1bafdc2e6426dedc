"""What kind of method each is: its place in tables, and what it is given or keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Family = Literal[
    "control", "ewc", "regulariser", "projection", "given", "rehearsal", "ldc", "bound", "other",
]  # fmt: skip
ORDER: tuple[Family, ...] = (
    "control", "ewc", "regulariser", "projection", "given", "rehearsal", "other", "ldc", "bound",
)  # fmt: skip

_OF: dict[Family, tuple[str, ...]] = {
    "control": ("naive", "naive-tuned"),
    "regulariser": ("l2", "si", "mas", "lwf", "rwalk", "kfac-laplace", "ncl"),
    "projection": ("owm", "gpm", "gpm-first", "ogd", "dco"),
    "rehearsal": ("er", "agem"),
    "bound": ("joint",),
}
_FAMILY: dict[str, Family] = {name: family for family, names in _OF.items() for name in names}

WITHOUT_DATA: tuple[Family, ...] = ("regulariser", "projection")
"""Rivals other than EWC that keep no samples: the "best other"."""
STOCK = "-stock"
"""Ends the name of a method as Avalanche ships it, beside the repaired one."""
GIVEN = "+r"
"""Ends the name of a method that is given the pseudo-rehearsal that LDC has by default."""
_SIZE = re.compile(r"-\d+$")  # of a buffer, in images
_USES: dict[Family, str] = {
    "given": "is given the pseudo-rehearsal that LDC has by default",
    "rehearsal": "keeps samples of earlier tasks",
    "bound": "trains on the samples of all tasks at once: a bound, not a rival",
    "other": "of no known family: never the best of a kind",
}
_USES_OF: dict[str, str] = {
    "gpm-first": "misses five times as much energy in the first layer: GPM's setting for this "
    "stream",
    "ogd": "keeps gradients of stored samples, one vector of the network's size each",
}


def family(method: str) -> Family:
    """Return a method's family.

    Args:
        method: its name; every variant of EWC starts with "ewc", every one of LDC with "ldc".

    Returns:
        "other" for a name that is not known.
    """
    if method.endswith(GIVEN):
        return "given"
    method = _SIZE.sub("", method)
    for prefix in ("ewc", "ldc"):
        if method == prefix or method.startswith(f"{prefix}-"):
            return "ewc" if prefix == "ewc" else "ldc"
    return _FAMILY.get(method.removesuffix(STOCK), "other")


def in_order(methods: Iterable[str]) -> list[str]:
    """Return the methods as tables show them: controls, rivals by family, LDC, bounds.

    Args:
        methods: their names.

    Returns:
        Those, within a family as the family lists them, then by name.
    """

    def place(method: str) -> tuple[int, int, int, str]:
        kind, plain = family(method), method.removesuffix(STOCK)
        listed, size = _OF.get(kind, ()), _SIZE.search(method)
        at = listed.index(plain) if plain in listed else -1
        return ORDER.index(kind), at, int(size[0][1:]) if size else 0, method

    return sorted(methods, key=place)


def naive_of(methods: Iterable[str]) -> str | None:
    """Return the method that costs are relative to.

    Args:
        methods: of a table.

    Returns:
        "naive"; where that is not run, "naive-tuned", whose steps are the same; else None.
    """
    there = set(methods)
    return next((name for name in ("naive", "naive-tuned") if name in there), None)


def information(method: str) -> str | None:
    """Return what a method uses that plain regularisers do not, or how it departs from its kin.

    Args:
        method: its name.

    Returns:
        A clause for a footnote, or None.
    """
    if method.endswith(STOCK):
        return "as Avalanche 0.6.0 ships it, unrepaired"
    if method.startswith("ldc-er"):
        return _USES["rehearsal"]
    return _USES_OF.get(method, _USES.get(family(method)))
