"""A ResNet with BatchNorm on photographs: LDC at its default beside regularisers that are tuned.

Avalanche's SlimResNet18 on Split CIFAR-100 with Adam, the task told.
``python -m benchmarks.resnet`` makes the runs that are missing under ``benchmarks/results/resnet``,
first those on which every rival's number is chosen, and renders ``benchmarks/RESNET.md``;
``--render`` makes none.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
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
from benchmarks.tune import Found, Reached, Setting, Trial, search, seed_of
from benchmarks.views import estimate_cell
from flatcl.cells import Own
from flatcl.host import ensure_avalanche
from flatcl.io import write_bytes
from flatcl.models import TaskSlice
from flatcl.protocol import CompareOptions
from flatcl.records import Cell
from flatcl.scores import scores
from flatcl.seeds import derive_seed
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "resnet"
TASKS, TUNED_TASKS = 5, 3
SEEDS = 3
GROWTHS = {"value": 3}  # a run takes minutes; what is on an edge is marked
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


def tuning_run(name: str, trial: Trial) -> tuple[CompareOptions, Cell]:
    """Return a run that a rival's number is chosen on: of other classes, on validation images.

    Args:
        name: of the method.
        trial: the number's value and which repeat.
    """
    method = lab_methods()[name]
    options, value = method.run(OPTIONS, trial.setting.value)
    options = replace(options, class_order="drawn", first_tasks=TUNED_TASKS)
    return options, method.cell(value, seed_of(trial), "val")


def reported_runs(name: str, value: float | None) -> list[tuple[CompareOptions, Cell]]:
    """Return the reported runs of a method, one a repeat.

    Args:
        name: of the method.
        value: of its number, None for none or its default.
    """
    method = lab_methods()[name]
    options, value = method.run(OPTIONS, value)
    return [(options, method.cell(value, seed, "test")) for seed in range(SEEDS)]


def searched(name: str, made: Runs) -> Found:
    """Return how far the choice of a method's number is.

    Args:
        name: of the method.
        made: the finished runs.

    Returns:
        The search; one that is over where there is nothing to choose.
    """
    method = lab_methods()[name]
    if name == "ldc" or not method.grid:
        return Found([], Setting(OPTIONS.lr, None), {})

    def known(trial: Trial) -> Reached | None:
        record = made.get(*tuning_run(name, trial))
        if record is None:
            return None
        return Reached.of(record["status"], record["accuracy"], record["seconds"])

    return search(
        OPTIONS.lr, method.grid, known, most=method.most, fixed_rate=True, growths=GROWTHS
    )


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
        searches = {name: searched(name, made) for name in METHODS}
        missing = [(name, trial) for name, found in searches.items() for trial in found.missing]
        if not missing:
            break
        _make((tuning_run(*one) for one in missing), jobs)
    runs = [reported_runs(name, value) for name, value in _values(searches).items()]
    _make((of_method[seed] for seed in range(SEEDS) for of_method in runs), jobs)


def _values(searches: Mapping[str, Found]) -> dict[str, float | None]:
    """Return the values that the searches which are over have chosen."""
    chosen = {name: found.chosen for name, found in searches.items()}
    return {name: setting.value for name, setting in chosen.items() if setting is not None}


def _reported(name: str, value: float | None, made: Runs) -> list[dict[str, Any] | None]:
    """Return the content of each repeat's record, None where it is missing or did not end well."""
    found = [made.get(*one) for one in reported_runs(name, value)]
    return [record if record and record["status"] == "done" else None for record in found]


def render() -> str:
    """Return the table of the runs that are there.

    Returns:
        Markdown; percent, means over the repeats with 95 % t-intervals. Without the methods whose
        number is still to be chosen.
    """
    made = Runs(RESULTS)
    searches = {name: searched(name, made) for name in METHODS}
    of_all = {name: _reported(name, value, made) for name, value in _values(searches).items()}
    ours = _percent(of_all["ldc"], "acc")
    rows = [_row(name, searches[name], runs, ours) for name, runs in of_all.items()]
    heads = ["method", "its number", "ACC", "LDC − it", "learning", "BWT", "MB held", "s"]
    return markdown_table(heads, rows)


def _row(
    name: str, found: Found, runs: Sequence[dict[str, Any] | None], ours: list[float | None]
) -> list[str]:
    done = [run for run in runs if run is not None]
    acc, learning, bwt = (_percent(runs, key) for key in ("acc", "learning", "bwt"))
    pairs = zip(ours, acc, strict=True) if name != "ldc" else ()
    ahead = [None if a is None or b is None else a - b for a, b in pairs]
    finished = "" if len(done) == SEEDS else f", {len(done)} of {SEEDS} finished"
    value = None if found.chosen is None else found.chosen.value
    return [
        name,
        "–" if value is None else f"{value:g}{'*' if found.on_edge else ''}",
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
