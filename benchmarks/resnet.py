"""A ResNet with BatchNorm on photographs: LDC at its default beside regularisers that are tuned.

Avalanche's SlimResNet18 on Split CIFAR-100 with Adam, the task told.
``python -m benchmarks.resnet`` makes the runs that are missing under ``benchmarks/results/resnet``,
first those on which every rival's number is chosen, and renders ``benchmarks/RESNET.md``;
``--render`` makes none.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import nn

from benchmarks.kept import Runs, fill
from benchmarks.lab_methods import lab_methods
from benchmarks.statistics import estimate
from benchmarks.views import estimate_cell
from flatcl.cells import Own
from flatcl.host import ensure_avalanche
from flatcl.io import write_bytes
from flatcl.models import TaskSlice
from flatcl.protocol import CompareOptions
from flatcl.records import TUNING_SEED, Cell
from flatcl.scores import scores
from flatcl.seeds import derive_seed
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "resnet"
TASKS, TUNED_TASKS = 5, 3
SEEDS = 3
METHODS = ("naive", "ewc", "ewc-online", "si", "mas", "lwf", "ldc", "joint")
OPTIONS = CompareOptions(
    data="cifar100",
    scenario="split-task",
    tasks=10,
    first_tasks=TASKS,
    train_size=2000,
    epochs=4,
    batch_size=32,
    optimizer="adam",
    lr=1e-3,
    methods=METHODS,
    seeds=SEEDS,
)
_MORE = 3  # times that a grid may grow


def network(seed: int) -> nn.Module:
    """Return the network with initial weights of a repeat's seed; the global state is left.

    Args:
        seed: of the repeat.
    """
    ensure_avalanche()
    from avalanche.models import SlimResNet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return TaskSlice(SlimResNet18(100, nf=12), 10)


def runs_of(name: str, value: float | None, *, tuning: bool) -> list[tuple[CompareOptions, Cell]]:
    """Return the runs of a method with a value of its number.

    Args:
        name: of the method.
        value: of its number, None for none or its default.
        tuning: those that the value is chosen on, of other classes and on validation images.
    """
    method = lab_methods()[name]
    options, value = method.run(OPTIONS, value)
    if tuning:
        options = replace(options, class_order="drawn", first_tasks=TUNED_TASKS)
        return [(options, method.cell(value, TUNING_SEED, "val"))]
    return [(options, method.cell(value, seed, "test")) for seed in range(SEEDS)]


def chosen(name: str, made: Runs) -> tuple[float | None, list[float]]:
    """Return a rival's best value of its number, and values still to be tried for it.

    While the best is the grid's first or last, the grid grows by its ratio.

    Args:
        name: of the method.
        made: the finished runs.

    Returns:
        The value, None where there is none to choose; and those that are missing.
    """
    method = lab_methods()[name]
    if name == "ldc" or not method.grid:
        return None, []
    values, ratio = list(method.grid), method.grid[1] / method.grid[0]
    for _ in range(_MORE + 1):
        reached = {}
        for value in values:
            ((options, cell),) = runs_of(name, value, tuning=True)
            record = made.get(options, cell)
            if record is not None:
                done = record["status"] == "done"
                reached[value] = scores(record["accuracy"]).acc if done else -math.inf
        if missing := [value for value in values if value not in reached]:
            return None, missing
        best = max(reached, key=lambda value: reached[value])
        if best == values[0]:
            values.insert(0, best / ratio)
        elif best == values[-1]:
            values.append(best * ratio)
        else:
            break
    return best, []


def _make(runs: Iterable[tuple[CompareOptions, Cell]], jobs: int) -> None:
    own = Own(model=network)
    work = Parallel(n_jobs=jobs, batch_size=1, verbose=5)
    work(delayed(fill)(RESULTS, options, cell, own=own) for options, cell in runs)


def run(jobs: int) -> None:
    """Make the runs that are missing.

    Args:
        jobs: processes.
    """
    while True:
        made = Runs(RESULTS)
        choices = {name: chosen(name, made) for name in METHODS}
        missing = [(name, value) for name, (_, values) in choices.items() for value in values]
        if not missing:
            break
        _make((one for m in missing for one in runs_of(*m, tuning=True)), jobs)
    of_all = [runs_of(name, value, tuning=False) for name, (value, _) in choices.items()]
    _make((runs[seed] for seed in range(SEEDS) for runs in of_all), jobs)


def reported(made: Runs) -> dict[str, tuple[float | None, list[dict[str, Any] | None]]]:
    """Return each method's value of its number, and its runs with it.

    Args:
        made: the finished runs.

    Returns:
        By method, without those whose value is still to be chosen: the value, and the content of
        each repeat's record, None where it is missing or did not end well.
    """

    def done(options: CompareOptions, cell: Cell) -> dict[str, Any] | None:
        record = made.get(options, cell)
        return record if record is not None and record["status"] == "done" else None

    choices = {name: chosen(name, made) for name in METHODS}
    return {
        name: (value, [done(*one) for one in runs_of(name, value, tuning=False)])
        for name, (value, missing) in choices.items()
        if not missing
    }


def render() -> str:
    """Return the table of the runs that are there.

    Returns:
        Markdown; percent, means over the repeats with 95 % t-intervals.
    """
    of_all = reported(Runs(RESULTS))
    ours = _percent(of_all["ldc"][1], "acc")
    rows = [_row(name, *of_all[name], ours) for name in METHODS if name in of_all]
    heads = ["method", "its number", "ACC", "LDC − it", "learning", "BWT", "MB held", "s"]
    return markdown_table(heads, rows)


def _row(
    name: str, value: float | None, runs: Sequence[dict[str, Any] | None], ours: list[float | None]
) -> list[str]:
    done = [run for run in runs if run is not None]
    acc, learning, bwt = (_percent(runs, key) for key in ("acc", "learning", "bwt"))
    pairs = zip(ours, acc, strict=True) if name != "ldc" else ()
    ahead = [None if a is None or b is None else a - b for a, b in pairs]
    finished = "" if len(done) == SEEDS else f", {len(done)} of {SEEDS} finished"
    return [
        name,
        "–" if value is None else f"{value:g}",
        estimate_cell(estimate(acc)).text + finished,
        *(estimate_cell(estimate(column)).text for column in (ahead, learning, bwt)),
        f"{max(run['bytes_held'] for run in done) / 1e6:.1f}" if done else "–",
        f"{fmean(sum(run['seconds']) for run in done):.0f}" if done else "–",
    ]


def _percent(runs: Sequence[dict[str, Any] | None], score: str) -> list[float | None]:
    found = [None if run is None else getattr(scores(run["accuracy"]), score) for run in runs]
    return [None if share is None else 100 * share for share in found]


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time [2]")
    options = parser.parse_args()
    if not options.render:
        run(options.jobs)
    text = (HERE / "RESNET.head.md").read_text(encoding="utf-8") + "\n" + render() + "\n"
    write_bytes(HERE / "RESNET.md", text.encode())


if __name__ == "__main__":
    main()
