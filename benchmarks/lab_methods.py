"""The lab's methods: how each is run, what is tuned, and its default."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import get_args

from benchmarks import methods as _folder
from benchmarks.families import GIVEN, WITHOUT_DATA, family
from benchmarks.iso_memory import at_ldc_bytes
from benchmarks.methods.gpm import FIRST
from benchmarks.protocol_files import Kind
from flatcl.protocol import CompareOptions
from flatcl.records import Cell
from flatcl.rivals import RIVALS, Rival, register

Change = Callable[[CompareOptions, "float | None"], CompareOptions]


@dataclass(frozen=True)
class Method:
    """One row of the lab's tables.

    Attributes:
        name: of the row.
        runs_as: the method of ``flatcl.cells`` that it is.
        number: its own number that is tuned; None if it has none.
        grid: values to start from, equal ratios.
        most: the largest value that the number can have.
        default: the number where nothing is tuned for anyone; its source is beside it in the table
            below.
        guessed: whether that is the middle of the grid, for want of one in the table.
        change: what it changes in a protocol's options.
        kinds: of the streams that it is run on.
    """

    name: str
    runs_as: str
    number: str | None = None
    grid: tuple[float, ...] = ()
    most: float = math.inf
    default: float | None = None
    guessed: bool = False
    change: Change = lambda options, _: options
    kinds: tuple[Kind, ...] = get_args(Kind)

    def run(
        self, options: CompareOptions, value: float | None
    ) -> tuple[CompareOptions, float | None]:
        """Return the options of a run and the value of its cell.

        Args:
            options: of the protocol, with the learning rate.
            value: of the method's number.

        Returns:
            Options; and the value where the number is the cell's, not an option.
        """
        of_cell = value if self.runs_as != "ldc" else None
        return self.change(options, value), of_cell

    def cell(self, value: float | None, seed: int, split: str) -> Cell:
        """Return the cell of a run.

        Args:
            value: as returned by ``run``.
            seed: of the repeat.
            split: "val" or "test".

        Returns:
            The cell.
        """
        return Cell(self.runs_as, value, seed, split)  # type: ignore[arg-type]  # of the caller


def _strength(options: CompareOptions, value: float | None) -> CompareOptions:
    return replace(options, strength=value)


def _at_ldc_bytes(options: CompareOptions, _: float | None) -> CompareOptions:
    return at_ldc_bytes(options)


def _rehearsed(options: CompareOptions, _: float | None) -> CompareOptions:
    return replace(options, rehearsal=True)


def _holding(images: int) -> Change:
    return lambda options, _: replace(options, memory=images)


def _published(options: CompareOptions, value: float | None) -> CompareOptions:
    return replace(options, strength=value, source="published")


# Defaults: the paper's or the library's; where papers give one a protocol, Hsu et al.'s for
# permuted MNIST, arXiv 1810.12488. Their penalties are λ Ω (w − w*)² without a ½, as Avalanche's
# EWC and MAS are; SI and L2 have the ½ here, so that the same pull is twice their λ. Hsu et al.
# scale their Fisher information by the batch's size and Avalanche does not: λ is what a user who
# copies the paper's number gets, the tuned regime what it ought to be.
DEFAULTS: dict[str, float] = {
    "ewc": 150.0,
    "ewc-online": 250.0,
    "si": 20.0,
    "si-stock": 20.0,
    "mas": 0.1,
    "lwf": 1.0,  # Li and Hoiem 2016
    "lwf-stock": 1.0,
    "l2": 0.04,
    "ewc-exact": 100.0,  # van de Ven et al., permuted MNIST
    "ewc-sampled": 100.0,
    "ewc-empirical": 100.0,
    "rwalk": 1.0,  # Chaudhry et al., A-GEM's scripts
    "rwalk-stock": 1.0,
    "kfac-laplace": 1.0,  # the exact Bayesian weight
    "gpm-first": 0.01,  # Saha et al. 2021, permuted MNIST
}
MOST = {"gpm": 1.0, "gpm-first": 1.0 / FIRST}  # shares of energy, at most all
# Naive too: a decay of the rate that suits the first three tasks leaves nothing to learn the
# twentieth with, and Naive without it is then the floor that others stand on.
CORE = (
    "naive", "naive-tuned", "ewc", "ewc-online", "si", "mas", "gpm", "gpm-first", "kfac-laplace",
    "ldc", "joint",
)  # fmt: skip
# GPM's paper has a threshold of its own for the first layer on permuted MNIST and nowhere else.
KINDS: dict[str, tuple[Kind, ...]] = {
    "gpm": tuple(kind for kind in Method.kinds if kind != "permuted"),
    "gpm-first": ("permuted",),
}
FENG_TU = ("naive", "ewc", "ldc", "ldc-published", "joint")
# Shown beside their better kin, on one permuted and one split protocol: other estimators of EWC's
# Fisher information; on one split protocol: Avalanche's own versions of what is repaired here.
ESTIMATORS = ("ewc-sampled", "ewc-empirical")
STOCK = ("si-stock", "lwf-stock", "rwalk-stock")
# Seldom used, and not in the published tables of split MNIST with task labels or without new
# outputs, where they are left out for compute; the same streams of Fashion-MNIST have them.
SELDOM = ("agem", "dco", "ncl", "ogd", "owm", "rwalk", "ldc-published")
# On class-incremental streams: replay by the size of its buffer, beside LDC and without; and each
# method without memory given the rehearsal that LDC has.
MEMORIES = (50, 200, 1000, 4000)
# Given it on every stream: Naive is then LDC without its constraint, and beside it stand a penalty
# on weights and one on outputs, so that rehearsal alone does not tell LDC from them.
REHEARSED = ("naive", "ewc-online", "lwf")
# Naive's own rows, in the order in which they are tuned: what comes after is also tried at the rate
# of the last (``tune``).
PLAIN = ("naive-tuned", "naive")
_STRENGTHS = (0.35, 1.1, 3.5, 11.0, 35.0)


@lru_cache
def lab_methods() -> dict[str, Method]:
    """Return all methods, those of ``methods/`` made known to ``flatcl.cells``.

    Returns:
        By name, in the order of the tables.
    """
    for rival in _rivals():
        register(rival)
    found = {name: _of(rival) for name, rival in RIVALS.items() if name != "joint"}
    del found["ldc-replay"]  # it comes by sizes of its buffer
    found["er"] = replace(found.pop("replay"), name="er", change=_at_ldc_bytes)
    found["ldc"] = Method("ldc", "ldc", "strength", _STRENGTHS, change=_strength)
    found["ldc-published"] = Method(
        "ldc-published", "ldc", "strength", _STRENGTHS, change=_published
    )
    for images in MEMORIES:
        for name in ("replay", "ldc-replay"):
            label = f"{name.replace('replay', 'er')}-{images}"
            found[label] = Method(label, name, change=_holding(images), kinds=("class",))
    for name, method in list(found.items()):
        keeps_none = family(name) in ("ewc", *WITHOUT_DATA) and name not in STOCK + ESTIMATORS
        if name in REHEARSED:
            kinds = method.kinds
        elif keeps_none and "class" in method.kinds:
            kinds = ("class",)
        else:
            continue
        label = f"{name}{GIVEN}"
        found[label] = replace(method, name=label, change=_rehearsed, kinds=kinds)
    found["joint"] = Method("joint", "joint")
    return found


def _of(rival: Rival) -> Method:
    default = DEFAULTS.get(rival.name)
    guessed = default is None and bool(rival.grid)
    if guessed:
        default = rival.grid[len(rival.grid) // 2]
    most = MOST.get(rival.name, math.inf)
    kinds = KINDS.get(rival.name, Method.kinds)
    return Method(
        rival.name,
        rival.name,
        rival.hyperparameter,
        rival.grid,
        most,
        default,
        guessed,
        kinds=kinds,
    )


def _files_of(module: ModuleType) -> tuple[Path, ...]:
    """Return a method's file and those of the folder that it imports, in turn."""
    found, wanted = {}, [module.__name__]
    while wanted:
        name = wanted.pop()
        found[name] = path = Path(str(sys.modules[name].__file__))
        imported = re.findall(rf"from ({_folder.__name__}\.\w+) import", path.read_text("utf-8"))
        wanted += [other for other in imported if other not in found]
    return tuple(found[name] for name in sorted(found))


def _rivals() -> list[Rival]:
    found: list[Rival] = []
    for module in pkgutil.iter_modules(_folder.__path__):
        if module.name.startswith("_"):
            continue  # shared by methods, no method itself
        loaded = importlib.import_module(f"{_folder.__name__}.{module.name}")
        for rival in getattr(loaded, "RIVALS", None) or (loaded.RIVAL,):
            found.append(replace(rival, code=_files_of(loaded)))
    return found
