"""Networks × scenarios × optimisers: LDC forgets less than Naive, learns, and resumes in mid-task.

One cell a network by default, all others with ``pytest -m slow tests/end_to_end``; the table of
them all is ``benchmarks/MATRIX.md``, made by ``python -m benchmarks.matrix`` from the same code.
"""

from __future__ import annotations

import pytest

from benchmarks.matrix import CELLS, Cell, failures, measure

QUICK = {
    Cell("mlp", "growing head", "Adam"),
    Cell("cnn", "single head", "SGD"),
    Cell("resnet18", "multi-head", "SGD"),
    Cell("vit", "single head", "AdamW"),
    Cell("lstm", "multi-head", "Adam"),
}


@pytest.mark.parametrize(
    "cell",
    [pytest.param(c, id=str(c), marks=() if c in QUICK else pytest.mark.slow) for c in CELLS],
)
def test_cell(cell):
    assert failures(measure(cell)) == []
