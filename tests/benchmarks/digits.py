"""Permuted digits: a stream of a second on which a method can be run end to end."""

from __future__ import annotations

from functools import lru_cache
from statistics import fmean
from typing import Any

from flatcl.cells import run_cell
from flatcl.protocol import CompareOptions
from flatcl.records import Cell
from flatcl.rivals import RIVALS, Rival

OPTIONS: dict[str, Any] = {
    "data": "digits",
    "scenario": "permuted",
    "tasks": 2,
    "epochs": 5,
    "train_size": 600,
    "hidden": (30,),
    "optimizer": "adam",
    "lr": 1e-2,
}


def final_accuracy(rival: Rival, value: float | None = None, **changes: Any) -> float:
    """Return the mean accuracy over all tasks after the last one."""
    known = RIVALS.get(rival.name)
    RIVALS[rival.name] = rival
    try:
        options = CompareOptions(**{**OPTIONS, **changes})
        record = run_cell(options, Cell(rival.name, value, 0, "test"))
    finally:
        del RIVALS[rival.name]
        if known is not None:
            RIVALS[rival.name] = known
    assert record.status == "done", record.error
    last = record.accuracy[-1]
    assert last is not None
    return fmean(last)


@lru_cache(maxsize=1)
def naive_accuracy() -> float:
    """Return that of plain training, run once."""
    return final_accuracy(RIVALS["naive"])
