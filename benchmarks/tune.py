"""The search of one method on one protocol: learning rate times the method's own number.

A method with a number starts from fifteen cells, three rates times five values; one without starts
from five rates. While the best cell lies on an edge of the grid, that axis grows by its own ratio
and the new cells are run, ``MAX_EXTENSIONS`` times an axis at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.outcomes import Tried

MAX_EXTENSIONS = 3
_RATE_RATIO = 3.0


@dataclass(frozen=True)
class Setting:
    """One cell of the grid.

    Attributes:
        lr: learning rate.
        value: of the method's own number, None if it has none.
    """

    lr: float
    value: float | None


@dataclass(frozen=True)
class Found:
    """How far a search is.

    Attributes:
        missing: settings still to be run; while there are any, ``chosen`` is None.
        chosen: the best setting.
        tried: all cells by setting.
        on_edge: axes on whose edge the best lies all the same.
    """

    missing: list[Setting]
    chosen: Setting | None
    tried: dict[Setting, Tried]
    on_edge: tuple[str, ...] = ()


def search(lr: float, grid: Sequence[float], known: Callable[[Setting], Tried | None]) -> Found:
    """Return the best setting, or the cells that are needed to find it.

    Args:
        lr: the protocol's learning rate, the middle of the axis.
        grid: values of the method's number to start from; empty if it has none.
        known: gives what a setting reached, None if it has still to be run.

    Returns:
        The best of all cells; of equals the one that is nearest to the middle of the grid.
    """
    wide = 2 if not grid else 1
    rates = [_round(lr * _RATE_RATIO**power) for power in range(-wide, wide + 1)]
    values: list[float | None] = list(grid) or [None]
    ratio = grid[1] / grid[0] if grid else 1.0
    grown = {"lr": 0, "value": 0}
    while True:
        cells = [Setting(rate, value) for rate in rates for value in values]
        found = {cell: known(cell) for cell in cells}
        missing = [cell for cell, tried in found.items() if tried is None]
        tried = {cell: one for cell, one in found.items() if one is not None}
        if missing:
            return Found(missing, None, tried)
        best = _best(cells, rates, values, tried)
        edges = dict(_edges(best, rates, values))
        growing = [axis for axis in edges if grown[axis] < MAX_EXTENSIONS]
        if not growing:
            return Found([], best, tried, tuple(edges))
        for axis in growing:
            grown[axis] += 1
            if axis == "lr":
                _grow(rates, _RATE_RATIO, low=edges[axis])
            else:
                _grow(values, ratio, low=edges[axis])


def _best(
    cells: Sequence[Setting],
    rates: Sequence[float],
    values: Sequence[float | None],
    tried: dict[Setting, Tried],
) -> Setting:
    def off_centre(cell: Setting) -> float:
        row = abs(rates.index(cell.lr) - (len(rates) - 1) / 2)
        return row + abs(values.index(cell.value) - (len(values) - 1) / 2)

    top = max(tried[cell].acc_val for cell in cells)
    return min((c for c in cells if tried[c].acc_val == top), key=off_centre)


def _edges(
    best: Setting, rates: Sequence[float], values: Sequence[float | None]
) -> Iterator[tuple[str, bool]]:
    """Yield each axis on whose edge the best lies, and whether that is the lower one."""
    for axis, points, at in (("lr", rates, best.lr), ("value", values, best.value)):
        if len(points) > 1 and at in (points[0], points[-1]):
            yield axis, at == points[0]


def _grow(points: list[float] | list[float | None], ratio: float, *, low: bool) -> None:
    edge = points[0] if low else points[-1]
    assert edge is not None  # only axes with values grow
    points.insert(0 if low else len(points), _round(edge / ratio if low else edge * ratio))


def _round(value: float) -> float:
    return float(f"{value:.3g}")
