"""The search of one method on one protocol: learning rate times the method's own number.

A method with a number starts from fifteen cells, three rates times five values; one without starts
from five rates. While the best cell lies on an edge of the grid, that axis grows by its own ratio
and the new cells are run, ``MAX_EXTENSIONS`` times an axis at most; what stays on an edge is
marked. The values may grow further than the rates: how strong a penalty can be before it hurts
spans as many decades as an importance does, whereas a rate of 27 times the protocol's diverges.

One repeat a cell takes the luckiest of a method whose repeats scatter, and the more cells, the
luckier. So the ``FINALISTS`` best cells are run on further repeats, ``REPEATS`` in all, and while
their best mean is below a cell that was run once, the next best cells are too: the finalists were
the luckiest, and a cell that is left out must not look better than the one chosen. If the best mean
lies on an edge, the grid grows in the same way, and the best cells of the larger grid join the
finalists.

The grid climbs one hill. A penalty of weight 0 is Naive, whose best rate is often far from that
hill: on a stream where rates at which the network hardly moves lose the least, a method whose grid
stopped elsewhere would be shown below Naive. So Naive's best rate is tried with every value of the
method's number too, ``beside``.

Where every method trains at one given rate, the values of the number are all that is searched.

Settings that are chosen on the first tasks of a long stream, or on another one, may diverge later:
``lasting`` passes those over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from flatcl.records import TUNING_SEED
from flatcl.scores import Matrix, scores
from flatcl.seeds import derive_seed

MAX_EXTENSIONS = {"lr": 3, "value": 6}
FINALISTS = 3
REPEATS = 3
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
class Trial:
    """One run of a search.

    Attributes:
        setting: its cell.
        repeat: 0 … ``REPEATS`` - 1; the first is that of the grid, the others are the finalists'.
        whole: on the whole stream that is reported, where the search saw less of it.
    """

    setting: Setting
    repeat: int
    whole: bool = False


@dataclass(frozen=True)
class Reached:
    """What one run of a search came to.

    Attributes:
        acc_val: ACC on validation images, 0 … 1; 0 for a run that diverged.
        seconds: it took.
    """

    acc_val: float
    seconds: float

    @classmethod
    def of(cls, status: str, accuracy: Matrix, seconds: Sequence[float]) -> Reached:
        """Return what a finished run came to.

        Args:
            status: of its record.
            accuracy: of its record.
            seconds: of its record, task by task.

        Returns:
            It; with ACC 0 unless the run ended well.
        """
        return cls(scores(accuracy).acc if status == "done" else 0.0, sum(seconds))


@dataclass(frozen=True)
class Found:
    """How far a search is.

    Attributes:
        missing: runs still to be made; while there are any, ``chosen`` is None.
        chosen: the best setting.
        tried: what the finished runs of each cell reached, by repeat.
        on_edge: axes on whose edge the best lies all the same.
    """

    missing: list[Trial]
    chosen: Setting | None
    tried: dict[Setting, list[Reached]]
    on_edge: tuple[str, ...] = ()


def seed_of(trial: Trial) -> int:
    """Return the seed of a search's run, which is none that is reported.

    The grid's repeat is the one that ``flatcl compare`` tunes on; the others are the finalists'.

    Args:
        trial: the run.

    Returns:
        The seed.
    """
    return derive_seed("tuning", trial.repeat) if trial.repeat else TUNING_SEED


def search(
    lr: float,
    grid: Sequence[float],
    known: Callable[[Trial], Reached | None],
    *,
    most: float = math.inf,
    beside: float | None = None,
    fixed_rate: bool = False,
    growths: Mapping[str, int] = MAX_EXTENSIONS,
) -> Found:
    """Return the best setting, or the runs that are needed to find it.

    Args:
        lr: the protocol's learning rate, the middle of the axis.
        grid: values of the method's number to start from; empty if it has none.
        known: gives what a run reached, None if it has still to be made.
        most: the largest value that the method's number can have; the grid ends there.
        beside: a learning rate to try beside the grid; nothing grows around it but the values.
        fixed_rate: ``lr`` is the only rate.
        growths: how often an axis, "lr" or "value", may grow.

    Returns:
        The best mean among the finalists; of equals the cell that is nearest to the middle of the
        grid.
    """
    wide = 0 if fixed_rate else 1 if grid else 2
    rates = [_round(lr * _RATE_RATIO**power) for power in range(-wide, wide + 1)]
    values: list[float | None] = list(grid) or [None]
    ratio = grid[1] / grid[0] if grid else 1.0
    grown = {"lr": 0, "value": 0}
    finalists: list[Setting] = []

    def growing(best: Setting) -> dict[str, bool]:
        return {
            axis: first
            for axis, first in _edges(best, rates, values)
            if grown[axis] < growths[axis] and (axis == "lr" or best.value != most)
        }

    while True:
        tried, missing = _runs(_first_trials(rates, values), known)
        if missing:
            return Found(missing, None, tried)
        ranked = _ranked(tried, rates, values)
        axes = growing(ranked[0])
        if not axes:
            aside = [] if beside is None or beside in rates else [beside]
            more, missing = _runs(_first_trials(aside, values), known)
            tried |= more
            if missing:
                return Found(missing, None, tried)
            ranked = _ranked(tried, rates, values)
            final, missing = _finals(tried, ranked, finalists, known)
            if missing:
                return Found(missing, None, tried | final)
            best = _ranked(final, rates, values)[0]
            axes = growing(best)
            if not axes:
                on_edge = tuple(axis for axis, _ in _edges(best, rates, values))
                return Found([], best, tried | final, on_edge)
        for axis, first in axes.items():
            grown[axis] += 1
            if axis == "lr":
                _grow(rates, _RATE_RATIO, first=first, most=math.inf)
            else:
                _grow(values, ratio, first=first, most=most)


def lasting(found: Found, finished: Callable[[Trial], bool | None]) -> Found:
    """Return the best setting of a search that trains the whole stream without diverging.

    Args:
        found: a search that is over.
        finished: whether a run on the whole stream came to its end, None if it is missing.

    Returns:
        With the first that lasts chosen: the finalists in order, then the other cells that did not
        diverge in the search; what the search chose if none lasts; the run that is missing if one
        is.
    """
    able = [cell for cell, runs in found.tried.items() if mean_acc(runs) > 0]

    def rank(cell: Setting) -> tuple[bool, int, float]:
        runs = found.tried[cell]
        return cell != found.chosen, -len(runs), -mean_acc(runs)

    for cell in sorted(able, key=rank):
        trial = Trial(cell, 0, whole=True)
        good = finished(trial)
        if good is None:
            return replace(found, missing=[trial], chosen=None)
        if good:
            return replace(found, chosen=cell)
    return found


def _first_trials(rates: Sequence[float], values: Sequence[float | None]) -> list[Trial]:
    return [Trial(Setting(rate, value), 0) for rate in rates for value in values]


def _runs(
    trials: Sequence[Trial], known: Callable[[Trial], Reached | None]
) -> tuple[dict[Setting, list[Reached]], list[Trial]]:
    """Return what the finished ones reached, by cell, and those that are missing."""
    tried: dict[Setting, list[Reached]] = {}
    missing = []
    for trial in trials:
        reached = known(trial)
        if reached is None:
            missing.append(trial)
        else:
            tried.setdefault(trial.setting, []).append(reached)
    return tried, missing


def _finals(
    tried: dict[Setting, list[Reached]],
    ranked: Sequence[Setting],
    finalists: list[Setting],
    known: Callable[[Trial], Reached | None],
) -> tuple[dict[Setting, list[Reached]], list[Trial]]:
    """Let cells join the finalists until none that is left out looks better; return their runs."""
    joining = ranked[:FINALISTS]
    while True:
        finalists += [cell for cell in joining if cell not in finalists]
        trials = [Trial(cell, repeat) for cell in finalists for repeat in range(REPEATS)]
        final, missing = _runs(trials, known)
        if missing:
            return final, missing
        best = max(mean_acc(runs) for runs in final.values())
        left = [cell for cell in ranked if cell not in finalists]
        joining = [cell for cell in left if mean_acc(tried[cell]) > best][:FINALISTS]
        if not joining:
            return final, missing


def mean_acc(runs: Sequence[Reached]) -> float:
    """Return what a cell came to.

    Args:
        runs: of it, one at least.

    Returns:
        Mean of ACC on validation images, 0 … 1.
    """
    return fmean(one.acc_val for one in runs)


def _ranked(
    tried: dict[Setting, list[Reached]], rates: Sequence[float], values: Sequence[float | None]
) -> list[Setting]:
    """Return the cells, best mean first and of equals the one nearest to the middle."""

    def rank(cell: Setting) -> tuple[float, float]:
        at = rates.index(cell.lr) if cell.lr in rates else len(rates)
        row = abs(at - (len(rates) - 1) / 2)
        column = abs(values.index(cell.value) - (len(values) - 1) / 2)
        return -mean_acc(tried[cell]), row + column

    return sorted(tried, key=rank)


def _edges(
    best: Setting, rates: Sequence[float], values: Sequence[float | None]
) -> Iterator[tuple[str, bool]]:
    """Yield each axis on whose edge the best lies, and whether that is its first point."""
    for axis, points, at in (("lr", rates, best.lr), ("value", values, best.value)):
        if len(points) > 1 and at in (points[0], points[-1]):
            yield axis, at == points[0]


def _grow(
    points: list[float] | list[float | None], ratio: float, *, first: bool, most: float
) -> None:
    """Add a point past the first or the last; a method's grid may rise or fall."""
    edge = points[0] if first else points[-1]
    assert edge is not None  # only axes with values grow
    beyond = min(edge / ratio if first else edge * ratio, most)
    points.insert(0 if first else len(points), _round(beyond))


def _round(value: float) -> float:
    return float(f"{value:.3g}")
