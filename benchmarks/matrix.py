"""What works with what: networks × scenarios × optimisers, two tasks each, Naive beside LDC.

``python -m benchmarks.matrix`` trains all 45 cells on scikit-learn's digits, one seed, LDC at its
defaults, and interrupts LDC's second task half-way to go on from a file in fresh objects; then a
few cells at other learning rates; then, with BatchNorm, LDC with its statistics mixed over tasks
and not. What is already in ``benchmarks/results/matrix*.json`` is kept; ``--render`` makes
``benchmarks/MATRIX.md`` from them alone. ``pytest tests/end_to_end`` asserts the same of one cell a
network, and ``pytest -m slow tests/end_to_end`` of all others.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import matrix_rates, matrix_statistics
from benchmarks.kept import completed
from benchmarks.matrix_cells import CELLS, TRAININGS, Cell, Run, same, train
from benchmarks.matrix_report import failures, render
from flatcl.core.options import LDCOptions
from flatcl.io import write_bytes

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "matrix.json"


def measure(cell: Cell) -> dict[str, Any]:
    """Return what both methods forget and learn in a cell, and whether LDC went on from a file.

    Args:
        cell: what is trained.

    Returns:
        Under "naive" and "ldc": accuracy (percent) and loss (nats) on held-out images of the
        ``first`` task before the second and of ``both`` tasks after it. ``restored``, ``bytes``
        held, ``seconds`` of the processor.
    """
    start, training = time.process_time(), TRAININGS[cell.network]
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
        file = Path(folder) / "run.pt"
        naive = train(cell, training, None)
        ldc = train(cell, training, LDCOptions(), file=file)
        again = Run.restored(file, cell, training)
        again.train(training.steps)
        again.end()
        assert ldc.landscape is not None
        found = {
            name: {"first": run.first, "both": [run.test(0), run.test(1)]}
            for name, run in (("naive", naive), ("ldc", ldc))
        }
        return {
            **found,
            "restored": same(ldc, again),
            "bytes": ldc.landscape.bytes_held(),
            "seconds": time.process_time() - start,
        }


def fill() -> None:
    """Make and write the cells that are missing."""
    setup = {network: asdict(training) for network, training in TRAININGS.items()}
    for row in completed(RESULTS, setup, "cells", map(asdict, CELLS), _measured):
        cell = Cell(row["network"], row["scenario"], row["optimizer"])
        print(f"{cell}: {', '.join(failures(row)) or 'passes'}", flush=True)


def _measured(key: dict[str, Any]) -> dict[str, Any]:
    try:
        return measure(Cell(**key))
    except Exception as error:  # a cell that fails is a result
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.render:
        fill()
        matrix_rates.fill()
        matrix_statistics.fill()
    rows, rates, statistics = (
        json.loads(path.read_text(encoding="utf-8"))[name]
        for path, name in (
            (RESULTS, "cells"),
            (matrix_rates.RESULTS, "runs"),
            (matrix_statistics.RESULTS, "runs"),
        )
    )
    write_bytes(HERE / "MATRIX.md", render(rows, rates, statistics).encode())


if __name__ == "__main__":
    main()
