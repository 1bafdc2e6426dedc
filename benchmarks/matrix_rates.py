"""One strength for every learning rate: cells of the matrix over rates that the networks learn at.

Pulls come the more often the higher the rate (``flatcl.core.pull``); beside LDC, what it would be
without that, and with a pull at every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

from benchmarks.kept import completed
from benchmarks.matrix_cells import TRAININGS, Cell, train
from flatcl.core.options import LDCOptions
from flatcl.errors import FlatclError
from flatcl.tables import markdown_table

RESULTS = Path(__file__).parent / "results" / "matrix_rates.json"
SEEDS = 3
RATES = {"SGD": (0.002, 0.005, 0.02, 0.05), "Adam": (0.0005, 0.002, 0.005, 0.01)}
NETWORKS = ("mlp", "cnn", "resnet18")
METHODS = ("naive", "fixed", "ldc", "every step")


def _measure(key: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracy on both tasks after the second, percent, by method; None: not finite."""
    cell = Cell(key["network"], key["scenario"], key["optimizer"])
    rate = {"lr" if cell.optimizer == "SGD" else "adam_lr": key["rate"]}
    training = replace(TRAININGS[cell.network], seed=key["seed"], **rate)

    def tested(options: LDCOptions | None) -> list[float] | None:
        try:
            run = train(cell, training, options)
        except FlatclError:
            return None
        return [run.test(task)["accuracy"] for task in (0, 1)]

    found = {"naive": tested(None), "ldc": tested(LDCOptions())}
    found["every step"] = tested(LDCOptions(interval=1))
    with patch("flatcl.core.schedule._SHARE", math.inf):
        found["fixed"] = tested(LDCOptions())
    return found


def fill() -> None:
    """Make and write the runs that are missing."""
    setup = {network: asdict(TRAININGS[network]) for network in NETWORKS}
    keys = [
        asdict(Cell(network, "single head", optimizer)) | {"rate": rate, "seed": seed}
        for seed, network, optimizer in product(range(SEEDS), NETWORKS, RATES)
        for rate in RATES[optimizer]
    ]
    for row in completed(RESULTS, setup, "runs", keys, _measure):
        print("{network}, {optimizer} {rate}, seed {seed}".format(**row), flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return means over seeds, a line for each network, optimiser and rate.

    Args:
        rows: the runs.
    """
    lines = []
    for network, optimizer in product(NETWORKS, RATES):
        for rate in RATES[optimizer]:
            wanted = {"network": network, "optimizer": optimizer, "rate": rate}.items()
            of = [row for row in rows if wanted <= row.items()]
            name = f"{network}, {optimizer} {rate}"
            lines.append([name, *(_shown([row[m] for row in of]) for m in METHODS)])
    heads = ["network, optimiser, rate", "Naive", "every 20 steps", "LDC", "every step"]
    return markdown_table(heads, lines)


def _shown(found: list[list[float] | None]) -> str:
    finite = [one for one in found if one is not None]
    if not finite:
        return "–"
    old, new = (fmean(one[task] for one in finite) for task in (0, 1))
    lost = len(found) - len(finite)
    return f"{old:.1f}; {new:.1f}" + (f" ({lost} not finite)" if lost else "")
