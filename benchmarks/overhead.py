"""What LDC costs beside Naive and EWC: paired training times, split into step, pull and task end.

``python -m benchmarks.overhead`` trains the methods on the same tasks in turn, task by task, in
one process, so that a machine whose speed drifts slows all of them alike; who goes first changes
from task to task, times are of the processor, ratios are taken within a task and the median over
tasks is shown. Writes ``benchmarks/results/overhead.json`` and
``benchmarks/OVERHEAD.md``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatcl.avalanche import LDC
from flatcl.core.engine import Landscape
from flatcl.core.schedule import PullSchedule
from flatcl.data import load_images
from flatcl.io import write_bytes, write_json
from flatcl.models import make_model
from flatcl.records import versions
from flatcl.rivals import RIVALS
from flatcl.streams import StreamOptions, fast, make_stream
from flatcl.tables import markdown_table

from avalanche.logging import BaseLogger  # isort: skip
from avalanche.training.plugins import EvaluationPlugin  # isort: skip

HERE = Path(__file__).parent
NETWORKS = {
    "784-100-100-10, B 32": ((100, 100), 32, 12000, 5),
    "784-256-256-10, B 128": ((256, 256), 128, 54000, 1),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}
_REFERENCE_STEPS = 1875


class _Clock:
    """Adds up the seconds spent in a function while it is wrapped."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        return timed


def measure(network: str, optimizer: str, tasks: int) -> list[dict[str, float]]:
    """Return the seconds of each method on each task, taken in turn.

    Args:
        network: a key of ``NETWORKS``.
        optimizer: a key of ``OPTIMIZERS``.
        tasks: number of permuted tasks.

    Returns:
        One dict a task: seconds of ``naive``, ``ewc``, ``ldc`` (whole), and of LDC's ``pull`` and
        ``end``, and the number of ``steps``.
    """
    hidden, batch, size, epochs = NETWORKS[network]
    stream = make_stream(load_images("mnist"), StreamOptions(tasks=tasks, train_size=size), seed=0)
    pull, end = _Clock(), _Clock()
    landscape: Any = Landscape
    schedule: Any = PullSchedule
    kept = schedule.pull_, landscape.end_task
    schedule.pull_ = pull.wrapped(PullSchedule.pull_)
    landscape.end_task = end.wrapped(Landscape.end_task)
    try:
        strategies = {
            name: _strategy(name, hidden, batch, epochs, optimizer)
            for name in ("naive", "ewc", "ldc")
        }
        rows = []
        names = tuple(strategies)
        for task, experience in enumerate(stream.benchmark.train_stream):
            _ = experience.dataset.sources()[0].inputs()  # made before the clocks start
            row: dict[str, float] = {"steps": epochs * -(-size // batch)}
            before = pull.seconds, end.seconds
            for turn in range(len(names)):
                name = names[(task + turn) % len(names)]
                start = time.process_time()
                strategies[name].train(experience)
                row[name] = time.process_time() - start
            row["pull"], row["end"] = pull.seconds - before[0], end.seconds - before[1]
            rows.append(row)
        return rows
    finally:
        schedule.pull_, landscape.end_task = kept


def _strategy(name: str, hidden: tuple[int, ...], batch: int, epochs: int, optimizer: str) -> Any:
    model = make_model((1, 28, 28), 10, seed=0, outputs_per_task=10, hidden=hidden)
    common: dict[str, Any] = {
        "model": model,
        "optimizer": OPTIMIZERS[optimizer](model.parameters()),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": batch,
        "train_epochs": epochs,
        "eval_mb_size": 1024,
        "evaluator": EvaluationPlugin(loggers=[BaseLogger()]),
    }
    if name == "ldc":
        return fast(LDC)(**common)
    return RIVALS[name].build(None if name == "naive" else 1.0, **common)


def ratios(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the figures of one setting, medians over tasks after the first (which has no pull).

    Args:
        rows: of ``measure``.

    Returns:
        Step and pull of LDC over Naive, the pull's share of that, the task end as a share of 1875
        of Naive's steps, EWC over Naive and LDC (its end included) over EWC from the third task.
    """
    later, third = rows[1:], rows[2:]

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "step_and_pull": middle([(r["ldc"] - r["end"]) / r["naive"] for r in later]),
        "pull": middle([r["pull"] / r["naive"] for r in later]),
        "end_of_1875_steps": middle(
            [r["end"] / (r["naive"] / r["steps"] * _REFERENCE_STEPS) for r in rows]
        ),
        "ewc": middle([r["ewc"] / r["naive"] for r in third]),
        "ldc_over_ewc": middle([r["ldc"] / r["ewc"] for r in third]),
        "naive_ms_per_step": middle([1e3 * r["naive"] / r["steps"] for r in rows]),
    }


def main() -> None:
    """Measure every setting, write the raw times and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5, help="permuted tasks a setting [5]")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch [1]")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    raw, table = {}, []
    for network in NETWORKS:
        for optimizer in OPTIMIZERS:
            rows = measure(network, optimizer, chosen.tasks)
            figures = ratios(rows)
            raw[f"{network}, {optimizer}"] = {"tasks": rows, **figures}
            shares = [f"{figures[k]:.2f}" for k in ("step_and_pull", "pull")]
            end = f"{100 * figures['end_of_1875_steps']:.0f} %"
            against = [f"{figures[k]:.2f}" for k in ("ewc", "ldc_over_ewc")]
            step = f"{figures['naive_ms_per_step']:.2f}"
            table.append([network, optimizer, *shares, end, *against, step])
            print(table[-1], flush=True)
    content = {"threads": chosen.threads, "versions": dict(versions()), "settings": raw}
    write_json(HERE / "results" / "overhead.json", content)
    header = [
        "network", "optimiser", "(step + pull) / Naive", "of which pull",
        "task end / 1875 Naive steps", "EWC / Naive, task ≥ 3", "LDC / EWC, task ≥ 3",
        "Naive ms/step",
    ]  # fmt: skip
    text = (HERE / "OVERHEAD.head.md").read_text(encoding="utf-8")
    table_text = markdown_table(header, table)
    write_bytes(HERE / "OVERHEAD.md", f"{text}\n{table_text}\n".encode())


if __name__ == "__main__":
    main()
