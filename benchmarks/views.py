"""Tables as cells, before either of the report's two pages gives them a form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.statistics import Estimate


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: its name.
        meaning: a line that explains it.
        falling: whether sorting by it first shows the highest.
        wordy: whether its cells are text that may be broken.
    """

    title: str
    meaning: str = ""
    falling: bool = False
    wordy: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what is read.
        value: what it is sorted by; None, which comes last, where there is nothing.
    """

    text: str
    value: float | str | None


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        key: the method or protocol that it is of.
        cells: as many as columns.
        notes: numbers of its footnotes.
    """

    key: str
    cells: list[Cell]
    notes: list[int] = field(default_factory=list)

    def texts(self) -> list[str]:
        """Return the cells as plain text, footnotes in brackets after the first.

        Returns:
            One a column.
        """
        marks = f" [{','.join(map(str, self.notes))}]" if self.notes else ""
        return [cell.text + (marks if place == 0 else "") for place, cell in enumerate(self.cells)]


@dataclass(frozen=True)
class View:
    """A table.

    Attributes:
        columns: its columns.
        rows: its rows.
        notes: its footnotes, numbered from 1.
        key: what the rows' keys are.
        remarks: on the table as a whole.
    """

    columns: Sequence[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    key: Literal["method", "protocol"] = "method"
    remarks: Sequence[str] = ()


def settings_text(settings: Mapping[str, float]) -> str:
    """Return settings in a cell.

    Args:
        settings: numbers by name.

    Returns:
        As "lr 0.05, ewc_lambda 100".
    """
    return ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "–"


def bytes_text(count: float) -> str:
    """Return a number of bytes with three digits and a decimal unit.

    Args:
        count: bytes.

    Returns:
        As "7.17 MB".
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B" if count else "0"


def estimate_cell(found: Estimate | None, *, signed: bool = False, digits: int = 1) -> Cell:
    """Return a mean with its interval as a cell.

    Args:
        found: the estimate.
        signed: whether a plus is written.
        digits: after the point.

    Returns:
        A dash without one; sorted by the mean.
    """
    if found is None:
        return Cell("–", None)
    text = f"{found.mean:+.{digits}f}" if signed else f"{found.mean:.{digits}f}"
    if found.half is not None:
        text += f" ± {found.half:.{digits}f}"
    return Cell(text.replace("-", "−"), found.mean)


def p_text(value: float) -> str:
    """Return a p value as it is written.

    Args:
        value: 0 … 1.

    Returns:
        Two or three digits after the point.
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
