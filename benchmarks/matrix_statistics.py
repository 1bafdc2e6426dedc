"""What mixing BatchNorm's statistics over tasks does, on cells of the matrix and changed inputs."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.kept import completed
from benchmarks.matrix_cells import INPUTS, TRAININGS, Cell, train
from flatcl.core.options import LDCOptions
from flatcl.tables import markdown_table

RESULTS = Path(__file__).parent / "results" / "matrix_statistics.json"
SEEDS = 3
METHODS = {
    "naive": LDCOptions(strength=1e-12, pseudo_inputs=0, centre=False),  # but for the statistics
    "follow": LDCOptions(hold_statistics=0.0),
    "mixed": LDCOptions(),
    "held": LDCOptions(hold_statistics=1.0),
}
_CELLS = [
    Cell(*names)
    for names in product(("cnn", "resnet18"), ("single head", "growing head"), ["Adam"])
]


def _measure(key: dict[str, Any]) -> dict[str, float]:
    """Return the mean accuracy of both tasks after the second, percent, by method."""
    cell = Cell(key["network"], key["scenario"], key["optimizer"])
    training = replace(TRAININGS[cell.network], inputs=key["inputs"], seed=key["seed"])
    runs = {name: train(cell, training, options) for name, options in METHODS.items()}
    return {name: fmean(run.test(t)["accuracy"] for t in (0, 1)) for name, run in runs.items()}


def fill() -> None:
    """Make and write the runs that are missing."""
    setup = {cell.network: asdict(TRAININGS[cell.network]) for cell in _CELLS}
    keys = [
        {**asdict(cell), "inputs": inputs, "seed": seed}
        for cell, inputs, seed in product(_CELLS, INPUTS, range(SEEDS))
    ]
    for row in completed(RESULTS, setup, "runs", keys, _measure):
        print("{network}, {scenario}, {inputs}, seed {seed}".format(**row), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over seeds, a line for each network and scenario, a column for each change.

    Args:
        rows: the runs.
    """

    def shown(cell: Cell, inputs: str) -> str:
        wanted = {**asdict(cell), "inputs": inputs}.items()
        of = [row for row in rows if wanted <= row.items()]
        if not of:
            return "–"
        return "; ".join(f"{fmean(row[name] for row in of):.1f}" for name in METHODS)

    lines = [
        [f"{cell.network}, {cell.scenario}", *(shown(cell, inputs) for inputs in INPUTS)]
        for cell in _CELLS
    ]
    return markdown_table(["network, scenario", *INPUTS], lines)
