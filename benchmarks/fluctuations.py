"""Feng and Tu's figures beside ours, with every control, and ψ over batch sizes and rates.

``python -m benchmarks.fluctuations`` makes what is missing: three seeds of the paper's set-up with
the whole panel (``panel``), and one seed of each batch size and rate on MNIST and Fashion-MNIST
(``grid``); then it renders ``benchmarks/FLUCTUATIONS.md`` and its figures. ``--only panel|grid``
makes one of them, ``--render`` none. Records, which are large, go to ``--work`` and may be deleted;
``analysis.json`` and ``points.json`` of each run, all that tables and figures rest on, are kept
under ``benchmarks/results/fluctuations``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from benchmarks.fluctuations_report import render
from flatcl.analysis import analyze
from flatcl.analysis_options import AnalyzeOptions
from flatcl.io import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fluctuations"
SEEDS = (0, 1, 2)
BATCH_SIZES = (25, 50, 100, 200)
RATES = (0.05, 0.1, 0.2)
DATA = ("mnist", "fashion")
# A grid of 24 networks: each stops at the paper's rule or after 50 epochs, and is looked at on
# 4000 images. Fashion-MNIST comes nowhere near the rule in that time; what each cell reached
# stands in the table.
_GRID: dict[str, Any] = {"panel": False, "max_epochs": 50, "subset": 4000, "jobs": 1}
_LEAST_STEPS = 4000


def panel_runs() -> dict[str, AnalyzeOptions]:
    """The paper's set-up, each seed by its name."""
    return {f"mnist-seed-{s}": AnalyzeOptions(data="mnist", seed=s, jobs=1) for s in SEEDS}


def grid_runs() -> dict[str, AnalyzeOptions]:
    """One network for each data set, batch size and rate."""
    return {
        f"{data}-b{B}-lr{lr:g}": AnalyzeOptions(
            data=data, batch_size=B, lr=lr, steps=_steps(B), **_GRID
        )
        for data in DATA
        for B in BATCH_SIZES
        for lr in RATES
    }


def _steps(batch_size: int) -> int:
    return max(_LEAST_STEPS, 10 * (60000 // batch_size))


def _made(name: str, options: AnalyzeOptions, work: Path) -> str:
    target = RESULTS / name
    if (target / "analysis.json").exists():
        return name
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {name}: {line}", file=sys.stderr, flush=True)

    analyze(options, work / name, say)
    say("done")
    target.mkdir(parents=True, exist_ok=True)
    for file in ("points.json", "analysis.json"):  # the second marks the run as made
        shutil.copyfile(work / name / file, target / f".{file}")
        (target / f".{file}").replace(target / file)
    write_json(target / "seconds.json", {"seconds": time.monotonic() - start})
    shutil.rmtree(work / name)
    return name


def main() -> None:
    """Make what is missing, then render."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=("panel", "grid"), help="make one part only")
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    parser.add_argument("--work", default="flatcl-out/fluctuations", metavar="DIR")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time [2]")
    chosen = parser.parse_args()
    runs: dict[str, AnalyzeOptions] = {}
    if not chosen.render:
        runs |= panel_runs() if chosen.only != "grid" else {}
        runs |= grid_runs() if chosen.only != "panel" else {}
    work = Parallel(n_jobs=chosen.jobs)
    work(delayed(_made)(name, options, Path(chosen.work)) for name, options in runs.items())
    seeds, cells = ([RESULTS / name for name in made()] for made in (panel_runs, grid_runs))
    render(seeds, cells, _GRID["max_epochs"])


if __name__ == "__main__":
    main()
