"""What kind of method each is: its place in tables, and what it is given or keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from flatcl.core.gaussians import RANK
from flatcl.core.options import LDCOptions

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
    "given": "is given the pseudo-rehearsal that LDC has by default, with all that it keeps",
    "rehearsal": "keeps samples of earlier tasks; they count as float32, as they are delivered: as "
    "uint8 the same bytes hold four times as many",
    "bound": "trains on the samples of all tasks at once: a reference, not a rival",
    "other": "of no known family: never the best of a kind",
}
_SUMMARY = (
    f"keeps no sample, but of each class that the network predicts the mean and {RANK} principal "
    f"directions of its inputs, at draws from which, {LDCOptions().use_pseudo_inputs} a step, it "
    "rehearses"
)
_USES_OF: dict[str, str] = {
    "gpm-first": "misses five times as much energy in the first layer: GPM's setting for this "
    "stream",
    "ogd": "keeps gradients of stored samples, one vector of the network's size each",
    "er": "keeps as many samples as LDC's bytes hold",
    "si": "has Avalanche's upper limit of its importances, 0.001, which is not in the paper "
    "(Zenke et al. 2017): on small networks most lie at it, and the penalty is near L2's",
    "mas": "averages importances over tasks with weight ½, as Avalanche does, so that those of "
    "earlier tasks fade; the paper (Aljundi et al. 2018) sums them",
    "ldc": _SUMMARY,
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


def information(method: str) -> list[str]:
    """Return what a method uses that plain regularisers do not, or how it departs from its kin.

    Args:
        method: its name.

    Returns:
        Clauses, a footnote each; none of a method that is what its name says.
    """
    plain = method.removesuffix(GIVEN).removesuffix(STOCK)
    found = [_USES_OF[plain]] if plain in _USES_OF else []
    if method.startswith("ldc-er"):
        found += [_SUMMARY, _USES["rehearsal"]]
    if family(method) in _USES:
        found.append(_USES[family(method)])
    if method.endswith(STOCK):
        found.append("as Avalanche 0.6.0 ships it, unrepaired")
    return found
