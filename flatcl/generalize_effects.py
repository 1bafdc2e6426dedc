"""What each knob of a study does to the gap and to its factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from flatcl.generalize_settings import KNOBS, REGULARISERS
from flatcl.scores import mean_ci95

Row = Mapping[str, Any]
FACTORS = ("gap", "sharpness", "size", "correlation")
_NAMES = {"sharpness": "sharpness", "size": "size", "correlation": "c"}


@dataclass(frozen=True)
class Change:
    """How far a quantity moves from one value of a knob to another.

    Attributes:
        mean: of ln(later/earlier) over seeds.
        half: half-width of its 95 % t-interval; infinite for a single seed.
        n: seeds.
    """

    mean: float
    half: float
    n: int

    @property
    def sign(self) -> int:
        """1 up, −1 down, 0 where the interval holds 0."""
        return 0 if not abs(self.mean) > self.half else (1 if self.mean > 0 else -1)

    def __str__(self) -> str:
        """Return e.g. "× 1.31 [1.2, 1.4]"."""
        if not self.n:
            return "–"
        middle = f"× {math.exp(self.mean):.2f}"
        if not math.isfinite(self.half):
            return middle
        low, high = (math.exp(self.mean + side * self.half) for side in (-1, 1))
        return f"{middle} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Effect:
    """What turning one knob does.

    Attributes:
        knob: its name.
        first: its first value that is compared.
        last: its last.
        changes: of each of ``FACTORS``.
        steps: of the gap, from each compared value to the next.
    """

    knob: str
    first: float
    last: float
    changes: dict[str, Change]
    steps: tuple[Change, ...] = ()

    @property
    def monotone(self) -> bool:
        """Whether the gap's steps, where outside their intervals, all go the same way."""
        return not {1, -1} <= {step.sign for step in self.steps}

    @property
    def through(self) -> str:
        """The factors whose change is outside its interval and goes the gap's way."""
        way = self.changes["gap"].sign
        if not way:
            return "no change of the gap"
        found = [said for name, said in _NAMES.items() if self.changes[name].sign == way]
        return ", ".join(found) or "none of them"


@dataclass(frozen=True)
class Level:
    """A knob at one of its values, over the networks that met the stop rule.

    Attributes:
        knob: its name.
        value: its value.
        networks: their number.
        means: of each of ``FACTORS`` and of "epochs" over them, NaN where none is known.
        step: of the gap from the value before, paired by seed; None of the first value.
    """

    knob: str
    value: float
    networks: int
    means: dict[str, float]
    step: Change | None


def usable(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of networks that met the stop rule: others are at another loss.

    Args:
        rows: of ``rows_of``.

    Returns:
        Some of them.
    """
    return [row for row in rows if row["status"] == "done" and row["reached"]]


def effects(rows: Sequence[Row]) -> list[Effect]:
    """Return what each knob does from its first value to its last, paired by seed.

    The value 0 of ``REGULARISERS`` is left out: it stands for another schedule of training.

    Args:
        rows: of ``rows_of``.

    Returns:
        One a knob that has two such values with usable rows.
    """
    found = []
    for knob, values in _by_value(rows).items():
        compared = [one for one in values.items() if _is_compared(knob, one[0])]
        if len(compared) < 2:
            continue
        (first, early), *_, (last, late) = compared
        changes = {name: _change(name, early, late) for name in FACTORS}
        steps = tuple(_change("gap", a, b) for (_, a), (_, b) in pairwise(compared))
        found.append(Effect(knob, first, last, changes, steps))
    return found


def levels(rows: Sequence[Row]) -> list[Level]:
    """Return every knob at every value that has usable rows.

    Args:
        rows: of ``rows_of``.

    Returns:
        By knob and value.
    """
    found = []
    for knob, values in _by_value(rows).items():
        before: Mapping[int, Row] | None = None
        for value, seeds in values.items():
            means = {name: _mean(name, seeds) for name in (*FACTORS, "epochs")}
            step = None if before is None else _change("gap", before, seeds)
            found.append(Level(knob, value, len(seeds), means, step))
            before = seeds
    return found


def left_out(rows: Sequence[Row]) -> list[str]:
    """Return, in words, which knobs' value 0 is not compared with the others, and why.

    Args:
        rows: of ``rows_of``.

    Returns:
        A sentence a knob that was trained at 0 and at another value.
    """
    said = []
    for knob in REGULARISERS:
        epochs = {one.value: one.means["epochs"] for one in levels(rows) if one.knob == knob}
        on = [epochs[value] for value in epochs if _is_compared(knob, value)]
        if not on or len(on) == len(epochs):
            continue
        took = f"{min(on):.0f}" if len(on) == 1 else f"{min(on):.0f} to {max(on):.0f}"
        few = " One other value alone: nothing to compare it with." if len(on) == 1 else ""
        said.append(
            f"{knob.capitalize()} 0 is not compared with the others: without it training takes "
            f"{epochs[0]:.0f} epochs on average, with it {took}, since its epochs are "
            f"compulsory.{few}"
        )
    return said


def _is_compared(knob: str, value: float) -> bool:
    return value != 0 or knob not in REGULARISERS


def _by_value(rows: Sequence[Row]) -> dict[str, dict[float, dict[int, Row]]]:
    """Return the usable rows by knob, value and seed, values in the order of the rows."""
    found: dict[str, dict[float, dict[int, Row]]] = {knob: {} for knob in KNOBS}
    for row in usable(rows):
        found[row["knob"]].setdefault(row["value"], {})[row["seed"]] = row
    return found


def _mean(name: str, rows: Mapping[int, Row]) -> float:
    known = [row[name] for row in rows.values() if row[name] is not None]
    return fmean(known) if known else math.nan


def _change(name: str, earlier: Mapping[int, Row], later: Mapping[int, Row]) -> Change:
    both = [(earlier[s][name], later[s][name]) for s in earlier if s in later]
    logs = [math.log(b / a) for a, b in both if a is not None and b is not None and a * b > 0]
    if not logs:
        return Change(math.nan, math.inf, 0)
    mean, half = mean_ci95(logs)
    return Change(mean, math.inf if half is None else half, len(logs))
