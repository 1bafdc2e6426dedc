"""Networks × scenarios × optimisers: LDC forgets less than Naive, learns, and resumes in mid-task.

One cell a network by default, all others with ``pytest -m slow tests/end_to_end``; the table of
them all is ``benchmarks/MATRIX.md``, made by ``python -m benchmarks.matrix`` from the same code.
"""

from __future__ import annotations

import pytest

from benchmarks.matrix import measure
from benchmarks.matrix_cells import CELLS, Cell
from benchmarks.matrix_report import failures

QUICK = {
    Cell("mlp", "growing head", "Adam"),
    Cell("cnn", "single head", "SGD"),
    Cell("resnet18", "multi-head", "SGD"),
    Cell("vit", "single head", "AdamW"),
    Cell("lstm", "multi-head", "Adam"),
}


def marks(cell):
    return () if cell in QUICK else pytest.mark.slow


@pytest.mark.parametrize("cell", [pytest.param(c, id=str(c), marks=marks(c)) for c in CELLS])
def test_cell(cell):
    assert failures(measure(cell)) == []


def row(naive, ldc, restored):
    """Figures of a cell: of each method, accuracy and loss of task 1, then accuracy of task 2."""

    def method(accuracy, loss, second):
        both = [{"accuracy": accuracy, "loss": loss}, {"accuracy": second, "loss": 0.2}]
        return {"first": {"accuracy": 95.0, "loss": 0.28}, "both": both}

    return {"naive": method(*naive), "ldc": method(*ldc), "restored": restored}


@pytest.mark.parametrize(
    ("changed", "reasons"),
    [
        ({}, []),
        ({"restored": False}, ["not restored"]),
        ({"naive": (90.0, 0.3, 95.0)}, ["Naive does not forget", "forgets as much"]),
        ({"ldc": (40.0, 2.0, 95.0)}, ["forgets as much"]),
        ({"ldc": (20.0, 0.5, 95.0)}, ["forgets as much"]),
        ({"ldc": (85.0, 0.5, 60.0)}, ["learns too little"]),
    ],
)
def test_verdict(changed, reasons):
    figures = {"naive": (30.0, 2.0, 95.0), "ldc": (85.0, 0.5, 95.0), "restored": True}
    assert failures(row(**(figures | changed))) == reasons
