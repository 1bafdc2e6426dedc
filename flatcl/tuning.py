"""Which runs a comparison needs next: grids on validation images, then the reported repeats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flatcl.errors import OptionError
from flatcl.protocol import CompareOptions
from flatcl.records import TUNING_SEED, Cell, Record
from flatcl.rivals import RIVALS
from flatcl.scores import scores

MAX_EXTENSIONS = 6
"""Values that a grid may grow by, past its edges, while the best one lies on an edge."""

Known = Callable[[Cell], Record | None]


@dataclass(frozen=True)
class Choice:
    """How far the tuning of one method's hyper-parameter is.

    Attributes:
        missing: grid cells that have still to be run; while there are any, ``value`` is None.
        value: the value chosen.
        tried: validation accuracy, 0 … 1, by value, ascending; None for a run that diverged.
    """

    missing: list[Cell]
    value: float | None
    tried: Mapping[float, float | None]


def is_tuned(options: CompareOptions, method: str) -> bool:
    """Return whether the method's hyper-parameter is chosen on validation images.

    Args:
        options: of the comparison; ``ewc_lambda`` fixes that of "ewc" and "ewc-online".
        method: its name.

    Returns:
        False for "ldc", which has nothing to tune, and for methods without a hyper-parameter.
    """
    if method == "ldc" or RIVALS[method].hyperparameter is None:
        return False
    return fixed_value(options, method) is None


def fixed_value(options: CompareOptions, method: str) -> float | None:
    """Return the hyper-parameter that the options fix for the method.

    Args:
        options: of the comparison.
        method: its name.

    Returns:
        The value; None if nothing is fixed.
    """
    return options.ewc_lambda if method in {"ewc", "ewc-online"} else None


def choose(method: str, known: Known) -> Choice:
    """Return the best value of a method's grid, or the cells needed to find it.

    The grid starts as ``RIVALS[method].grid`` and grows by its own ratio past an edge while the
    best value is that edge, ``MAX_EXTENSIONS`` times at most. The best is the value of highest
    ACC on the validation images of the tuning repeat; of equals the middle one.

    Args:
        method: a method with a hyper-parameter.
        known: gives the record of a cell, None if it has still to be run.

    Returns:
        The choice.
    """
    start = RIVALS[method].grid
    ratio = start[1] / start[0]
    grid = list(start)
    while True:
        cells = [Cell(method, value, TUNING_SEED, "val") for value in grid]
        records = [known(cell) for cell in cells]
        missing = [cell for cell, record in zip(cells, records, strict=True) if record is None]
        if missing:
            return Choice(missing, None, {})
        reached = [_reached(record) for record in records if record is not None]
        marks = [acc or 0.0 for acc in reached]
        equals = [place for place, mark in enumerate(marks) if mark == max(marks)]
        best = equals[len(equals) // 2]  # a plateau at an edge is no reason to go past it
        inside = 0 < best < len(grid) - 1
        if inside or len(grid) - len(start) == MAX_EXTENSIONS:
            return Choice([], grid[best], dict(zip(grid, reached, strict=True)))
        if best == 0:
            grid.insert(0, _round(grid[0] / ratio))
        else:
            grid.append(_round(grid[-1] * ratio))


def report_cells(options: CompareOptions, method: str, value: float | None) -> list[Cell]:
    """Return the reported runs of a method.

    Args:
        options: of the comparison.
        method: its name.
        value: its hyper-parameter; None if it has none.

    Returns:
        One cell a seed, judged on test images.
    """
    return [Cell(method, value, seed, "test") for seed in options.report_seeds]


def next_cells(options: CompareOptions, known: Known) -> list[Cell]:
    """Return the runs that are needed and can be made now; none once the comparison is whole.

    Args:
        options: of the comparison.
        known: gives the record of a cell, None if it has still to be run.

    Returns:
        Cells without a record: grid values of methods being tuned, reported runs of all others.
    """
    wanted: list[Cell] = []
    for method in options.methods:
        value = fixed_value(options, method)
        if is_tuned(options, method):
            choice = choose(method, known)
            wanted += choice.missing
            if choice.missing:
                continue
            value = choice.value
        wanted += report_cells(options, method, value)
    return [cell for cell in wanted if known(cell) is None]


def refuse_untuned(record: Record) -> None:
    """Stop where a rival cannot be tuned, since its runs raise: all values would seem equal.

    Args:
        record: of any run.

    Raises:
        OptionError: it is of the grid, and failed.
    """
    if record.cell.split == "val" and record.status == "failed":
        raise OptionError(
            f"{record.cell.method} failed at {record.cell.value:g} while it was tuned, and a rival "
            f"is not to be shown untuned: {record.reason}"
        )


def _reached(record: Record) -> float | None:
    return scores(record.accuracy).acc if record.status == "done" else None


def _round(value: float) -> float:
    return float(f"{value:.6g}")  # 1e4 * 10 / 10 / 10: the same number whichever way it came
