"""Published figures beside the lab's own: ``targets.csv``, and what is said of each.

A tolerance covers what the two sides do not share: the published spread over seeds, ours, and the
departures that the source column names. A figure of another network, or of a method that is told
more than ours, has none: it is shown and never judged.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.outcomes import Regime
from flatcl.errors import DataError

TARGETS = Path(__file__).parent / "targets.csv"
_NOTHING_TO_TUNE = {"naive", "joint"}
COLUMNS = ("protocol", "method", "published", "tolerance", "source", "discrepancy")


class Target(NamedTuple):
    """A published figure.

    Attributes:
        method: its name here.
        published: ACC, percent.
        tolerance: points that ours may differ from it in either direction; None if the two are
            not to be compared, for the reason that ``source`` gives.
        source: where it was read, and what differs from our protocol.
        discrepancy: why ours is a known miss; empty where it is none.
    """

    method: str
    published: float
    tolerance: float | None
    source: str
    discrepancy: str = ""


@dataclass(frozen=True)
class Judged:
    """A published figure and ours.

    Attributes:
        target: the published one.
        reached: our ACC, percent; None if the method has no finished run here.
        regime: of ours; None likewise.
        naive: our Naive's ACC, percent, of the same regime if it has run there; None without it,
            or where it is Naive itself that is judged.
    """

    target: Target
    reached: float | None
    regime: Regime | None = None
    naive: float | None = None

    @property
    def telling(self) -> bool:
        """Whether our Naive would miss the figure: else to reach it shows nothing."""
        return self.naive is None or not self._within(self.naive)

    @property
    def verdict(self) -> Literal["reached", "missed", "not judged", "not run"]:
        """Two-sided: a figure far above the published one is a miss too."""
        if self.reached is None:
            return "not run"
        if self.target.tolerance is None:
            return "not judged"
        return "reached" if self._within(self.reached) else "missed"

    def _within(self, acc: float) -> bool:
        tolerance = self.target.tolerance
        return tolerance is not None and abs(acc - self.target.published) <= tolerance


def load_targets(path: Path = TARGETS) -> dict[str, list[Target]]:
    """Return the published figures by protocol.

    Args:
        path: a CSV file with the columns of ``COLUMNS``; an empty tolerance means that the
            figure is not judged.

    Returns:
        The figures of each protocol in the order of the file.

    Raises:
        DataError: a column, a number or a source is missing or senseless, or a method occurs
            twice in a protocol.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(f"{path.name}: columns {reader.fieldnames}; give {', '.join(COLUMNS)}")
        found: dict[str, list[Target]] = {}
        for row in reader:
            where = f"{path.name}, line {reader.line_num}"
            targets = found.setdefault(_text(row["protocol"], where, "protocol"), [])
            target = Target(
                _text(row["method"], where, "method"),
                _number(row["published"], where, "published", 0, 100),
                _number(row["tolerance"], where, "tolerance", 1e-9, 50)
                if row["tolerance"]
                else None,
                _text(row["source"], where, "source"),
                row["discrepancy"] or "",
            )
            if target.method in {other.method for other in targets}:
                raise DataError(f"{where}: {target.method} has a figure already; give one")
            targets.append(target)
    return found


def judge(
    targets: Iterable[Target], reached: Mapping[Regime, Mapping[str, float | None]]
) -> list[Judged]:
    """Return every published figure with ours.

    Methods with nothing of their own to tune were published at the protocol's learning rate:
    they are held against the default regime, which has that. The others' own numbers were tuned
    by those who published them, so theirs are held against the tuned one. Where the method has no
    finished run there, the other regime stands in.

    Args:
        targets: of one protocol.
        reached: ACC by regime and method, percent.

    Returns:
        In the order of the targets.
    """
    found = []
    for target in targets:
        order: tuple[Regime, ...] = ("default", "tuned")
        if target.method not in _NOTHING_TO_TUNE:
            order = ("tuned", "default")
        ours, regime = _first(reached, order, target.method)
        same = (regime, *order) if regime else order
        naive = None if target.method == "naive" else _first(reached, same, "naive")[0]
        found.append(Judged(target, ours, regime, naive))
    return found


def _first(
    reached: Mapping[Regime, Mapping[str, float | None]], order: Iterable[Regime], method: str
) -> tuple[float | None, Regime | None]:
    """Return a method's ACC in the first regime that has it, and which."""
    for regime in order:
        acc = reached.get(regime, {}).get(method)
        if acc is not None:
            return acc, regime
    return None, None


def _text(value: str | None, where: str, column: str) -> str:
    if not value or value != value.strip():
        raise DataError(f"{where}: {column} is {value!r}; give a text without spaces around it")
    return value


def _number(value: str | None, where: str, column: str, low: float, high: float) -> float:
    try:
        number = float(value or "")
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise DataError(f"{where}: {column} is {value!r}; give a number from {low:g} to {high:g}")
    return number
