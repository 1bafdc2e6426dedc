"""What was tried on class-incremental streams, and what it costs elsewhere: validation accuracy.

``python -m benchmarks.front`` makes the runs that are missing (two repeats, never reported, of five
streams with SGD, judged on validation images) under ``benchmarks/results/front`` and renders
``benchmarks/FRONT.md`` from them; ``--render`` only renders.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from joblib import Parallel, delayed

from benchmarks.kept import fill
from benchmarks.streams import stream_options
from flatcl.io import write_bytes
from flatcl.protocol import CompareOptions
from flatcl.records import Cell, load
from flatcl.scores import scores
from flatcl.seeds import derive_seed
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "front"
SEEDS = tuple(derive_seed("front", repeat) for repeat in range(2))
STREAMS = (
    "split-mnist-class", "split-fashion-class", "split-mnist-domain", "rotated-mnist",
    "permuted-mnist",
)  # fmt: skip
# The default first. Damping is given at the default's strength, and at the strength that leaves the
# trace (1 + δ) γ as it is.
CANDIDATES: dict[str, dict[str, Any]] = {
    "default": {},
    "strength 1": {"strength": 1.0},
    "strength 10": {"strength": 10.0},
    "strength 35": {"strength": 35.0},
    "damping 2, strength 1.87": {"damping": 2.0, "strength": 1.87},
    "damping 2": {"damping": 2.0},
    "damping 5, strength 0.93": {"damping": 5.0, "strength": 0.93},
    "width 3": {"width": 3.0},
    "stiffness k^0.8": {"stiffness": "power:0.8"},
    "source fisher": {"source": "fisher"},
    "offset 0": {"offset": 0.0},
    "offset 2": {"offset": 2.0},
    "offset 3": {"offset": 3.0},
    "He's initial weights": {"init": "he"},
    "He's, strength 1": {"init": "he", "strength": 1.0},
}


def grid() -> Iterator[tuple[CompareOptions, Cell]]:
    """Yield the options and the cell of every run.

    Yields:
        Offsets on class-incremental streams alone, as no class is absent elsewhere.
    """
    for seed in SEEDS:
        for change in CANDIDATES.values():
            for stream in STREAMS:
                if "offset" not in change or stream.endswith("-class"):
                    yield stream_options(stream, "sgd", **change), Cell("ldc", None, seed, "val")


def render() -> str:
    """Return the table of the runs that are there, by candidate and stream.

    Returns:
        Markdown; ACC / learning accuracy in percent, means over the repeats.
    """
    rows = []
    for name, change in CANDIDATES.items():
        row = [name]
        for stream in STREAMS:
            options = stream_options(stream, "sgd", **change)
            cells = [Cell("ldc", None, seed, "val") for seed in SEEDS]
            found = [load(RESULTS, options, cell, any_code=True) for cell in cells]
            done = [scores(r.accuracy) for r in found if r is not None and r.status == "done"]
            if len(done) < len(SEEDS):
                row.append("–")
                continue
            learning = [100 * s.learning for s in done if s.learning is not None]
            row.append(f"{fmean(100 * s.acc for s in done):.1f} / {fmean(learning):.1f}")
        rows.append(row)
    return markdown_table(["candidate", *STREAMS], rows)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time [2]")
    chosen = parser.parse_args()
    if not chosen.render:
        work = Parallel(n_jobs=chosen.jobs, batch_size=1, verbose=5)
        work(delayed(fill)(RESULTS, options, cell) for options, cell in grid())
    text = (HERE / "FRONT.head.md").read_text(encoding="utf-8") + "\n" + render() + "\n"
    write_bytes(HERE / "FRONT.md", text.encode())


if __name__ == "__main__":
    main()
