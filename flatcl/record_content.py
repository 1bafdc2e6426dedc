"""What the record of a single run holds, and whether a file's content can be one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flatcl.options import number_of
from flatcl.versions import machine


@dataclass(frozen=True)
class Cell:
    """One run: a method with one value of its hyper-parameter, on one repeat of the stream.

    Attributes:
        method: its name.
        value: its hyper-parameter; None if it has none.
        seed: the repeat's: permutations, draws, order, initial weights.
        split: the images it is judged on, "val" to choose ``value``, "test" to report.
    """

    method: str
    value: float | None
    seed: int
    split: Literal["val", "test"]


@dataclass(frozen=True)
class Record:
    """What came out of one run.

    Attributes:
        cell: the run.
        status: "done"; "diverged" if loss, outputs or weights stopped being finite; "failed" if
            it raised.
        accuracy: R[i][j], 0 … 1, on task j after task i; rows not measured are None.
        seconds: of training, the end of each task included, evaluation left out; one number a
            call of ``train``.
        bytes_held: kept after the last task, without model and optimiser; None unless done.
        error: the message of what stopped the run, if it did not end well.
        loss: mean cross-entropy, nats, in the form of ``accuracy``; None in records of before.
        task_end: of ``seconds``, those after each task's last epoch; None in records of before.
        bytes_first: as ``bytes_held``, after the first task; None where it was not measured.
        machine: the kind that the run was made on; None in records of before.
    """

    cell: Cell
    status: Literal["done", "diverged", "failed"]
    accuracy: list[list[float] | None]
    seconds: list[float]
    bytes_held: int | None
    error: str | None = None
    loss: list[list[float | None] | None] | None = None
    task_end: list[float] | None = None
    bytes_first: int | None = None
    machine: str | None = field(default_factory=machine)

    @property
    def reason(self) -> str:
        """The last line of the error, which says what it was; empty for a run that ended well."""
        lines = (self.error or "").strip().splitlines()
        return lines[-1] if lines else ""


def record_of(content: Mapping[str, Any], cell: Cell, tasks: int) -> Record | None:
    """Return the record that a file holds; a number that cannot be one makes it none.

    What a missing or a wrong entry raises (KeyError, TypeError, ValueError) goes through: such a
    file is damaged, and its run is made again.

    Args:
        content: of the file.
        cell: the run.
        tasks: trained in it.

    Returns:
        The record; None if the run had failed.

    Raises:
        ValueError: an entry is out of its range, or rows are missing.
    """
    status, error, kind = content["status"], content["error"], content.get("machine")
    if status not in ("done", "diverged"):
        return None
    if not isinstance(error, str | None) or (status == "diverged" and not error):
        raise ValueError(f"error is {error!r}")
    if not isinstance(kind, str | None):
        raise ValueError(f"machine is {kind!r}")
    accuracy = [
        None if row is None else [_number(share, 1.0) for share in row]
        for row in _rows(content["accuracy"], tasks)
    ]
    if None in accuracy and cell.method != "joint":  # it alone is judged once, at its end
        raise ValueError("a row is missing")
    seconds = [_number(x) for x in _list(content["seconds"])]
    if status == "done":
        calls = 1 if cell.method == "joint" else tasks
        if len(accuracy) != tasks or accuracy[-1] is None or len(seconds) != calls:
            raise ValueError(f"{len(accuracy)} rows, {len(seconds)} times, of {tasks} tasks")
    loss, ends = content.get("loss"), content.get("task_end")
    if loss is not None:
        loss = [
            None if row is None else [None if x is None else _number(x) for x in row]
            for row in _rows(loss, tasks)
        ]
    return Record(
        cell,
        status,
        accuracy,
        seconds,
        _bytes(content["bytes_held"]),
        error,
        loss,
        None if ends is None else [_number(x, least=-math.inf) for x in _list(ends)],
        _bytes(content.get("bytes_first")),
        kind,
    )


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is no list")
    return values


def _rows(rows: Any, tasks: int) -> list[list[Any] | None]:
    found = [None if row is None else _list(row) for row in _list(rows)]
    if len(found) > tasks or any(row is not None and len(row) != tasks for row in found):
        raise ValueError(f"rows do not fit {tasks} tasks")
    return found


def _number(value: object, most: float = math.inf, *, least: float = 0.0) -> float:
    number = number_of(value)
    if number is None or not math.isfinite(number) or not least <= number <= most:
        raise ValueError(f"{value!r} is no number from {least:g} to {most:g}")
    return number


def _bytes(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no number of bytes")
    return value
