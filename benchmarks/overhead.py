"""What LDC costs beside Naive and EWC: paired training times, split into step, pull and task end.

``python -m benchmarks.overhead`` trains the methods on the same tasks in turn, task by task, in
one process, so that a machine whose speed drifts slows all of them alike; who goes first changes
from task to task, times are of the processor, ratios are taken within a task and the median over
tasks is shown. Writes ``benchmarks/results/overhead.json`` and
``benchmarks/OVERHEAD.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.residual import resnet18_body
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
RESULTS = HERE / "results" / "overhead.json"


@dataclass(frozen=True)
class Setting:
    """A network and the length of its tasks.

    Attributes:
        hidden: widths of a perceptron's layers; None for the reduced ResNet-18.
        batch: images a step.
        images: of a task.
        epochs: passes over them.
    """

    hidden: tuple[int, ...] | None
    batch: int
    images: int
    epochs: int

    def model(self) -> nn.Module:
        """Return the network, the same at every call."""
        if self.hidden is None:
            torch.manual_seed(0)
            return nn.Sequential(resnet18_body(1, 20), nn.Linear(160, 10))
        return make_model((1, 28, 28), 10, seed=0, outputs_per_task=10, hidden=self.hidden)


NETWORKS = {
    "784-100-100-10, B 32": Setting((100, 100), 32, 12000, 5),
    "784-256-256-10, B 128": Setting((256, 256), 128, 54000, 1),
    "reduced ResNet-18, 32 × 32, B 32": Setting(None, 32, 960, 1),
}
METHODS = ("naive", "ewc", "ldc", "constraint")
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
        One dict a task: seconds of each of ``METHODS`` (``constraint`` is LDC without its
        rehearsal), of the ``_pull`` and ``_end`` of both LDCs, and the number of ``steps``.
    """
    setting = NETWORKS[network]
    options = StreamOptions(
        tasks=tasks, train_size=setting.images, pad=2 if setting.hidden is None else 0
    )
    stream = make_stream(load_images("mnist"), options, seed=0)
    pull, end = _Clock(), _Clock()
    landscape: Any = Landscape
    schedule: Any = PullSchedule
    kept = schedule.pull_, landscape.end_task
    schedule.pull_ = pull.wrapped(PullSchedule.pull_)
    landscape.end_task = end.wrapped(Landscape.end_task)
    try:
        strategies = {name: _strategy(name, setting, optimizer) for name in METHODS}
        rows = []
        for task, experience in enumerate(stream.benchmark.train_stream):
            _ = experience.dataset.sources()[0].inputs()  # made before the clocks start
            steps = setting.epochs * -(-setting.images // setting.batch)
            row: dict[str, float] = {"steps": steps}
            for turn in range(len(METHODS)):
                name = METHODS[(task + turn) % len(METHODS)]
                before = pull.seconds, end.seconds
                start = time.process_time()
                strategies[name].train(experience)
                row[name] = time.process_time() - start
                if name in {"ldc", "constraint"}:
                    row[f"{name}_pull"] = pull.seconds - before[0]
                    row[f"{name}_end"] = end.seconds - before[1]
            rows.append(row)
        return rows
    finally:
        schedule.pull_, landscape.end_task = kept


def _strategy(name: str, setting: Setting, optimizer: str) -> Any:
    model = setting.model()
    common: dict[str, Any] = {
        "model": model,
        "optimizer": OPTIMIZERS[optimizer](model.parameters()),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": setting.batch,
        "train_epochs": setting.epochs,
        "eval_mb_size": 1024,
        "evaluator": EvaluationPlugin(loggers=[BaseLogger()]),
    }
    if name == "ldc":
        return fast(LDC)(**common)
    if name == "constraint":
        return fast(LDC)(pseudo_inputs=0, **common)
    return RIVALS[name].build(None if name == "naive" else 1.0, **common)


def ratios(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the figures of one setting, medians over tasks after the first (which has no pull).

    Args:
        rows: of ``measure``.

    Returns:
        Step and pull of LDC, and of its constraint alone, over Naive; the pull's share of that;
        the task end as a share of 1875 of Naive's steps; EWC over Naive and LDC (its end included)
        over EWC from the third task.
    """
    later, third = rows[1:], rows[2:]

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "step_and_pull": middle([(r["ldc"] - r["ldc_end"]) / r["naive"] for r in later]),
        "constraint": middle([(r["constraint"] - r["constraint_end"]) / r["naive"] for r in later]),
        "pull": middle([r["ldc_pull"] / r["naive"] for r in later]),
        "end_of_1875_steps": middle(
            [r["ldc_end"] / (r["naive"] / r["steps"] * _REFERENCE_STEPS) for r in rows]
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
    parser.add_argument(
        "--networks",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[*range(len(NETWORKS))],
        help="numbers, comma-separated, of those measured anew [all]: "
        + "; ".join(f"{i} {name}" for i, name in enumerate(NETWORKS)),
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    raw: dict[str, Any] = {}
    if RESULTS.exists():
        raw = json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]
    for network in [list(NETWORKS)[i] for i in chosen.networks]:
        for optimizer in OPTIMIZERS:
            rows = measure(network, optimizer, chosen.tasks)
            setting = {"tasks": rows, "threads": chosen.threads, **ratios(rows)}
            raw[f"{network}, {optimizer}"] = setting | {"versions": dict(versions())}
            write_json(RESULTS, {"settings": raw})
            print(f"{network}, {optimizer}: {setting['step_and_pull']:.2f}", flush=True)
    table = []
    for network in NETWORKS:
        for optimizer in OPTIMIZERS:
            if (figures := raw.get(f"{network}, {optimizer}")) is None:
                continue
            shares = [f"{figures[k]:.2f}" for k in ("step_and_pull", "constraint", "pull")]
            end = f"{100 * figures['end_of_1875_steps']:.0f} %"
            against = [f"{figures[k]:.2f}" for k in ("ewc", "ldc_over_ewc")]
            step = f"{figures['naive_ms_per_step']:.2f}"
            table.append([network, optimizer, *shares, end, *against, step])
    header = [
        "network", "optimiser", "(step + pull) / Naive", "constraint alone", "of which pull",
        "task end / 1875 Naive steps", "EWC / Naive, task ≥ 3", "LDC / EWC, task ≥ 3",
        "Naive ms/step",
    ]  # fmt: skip
    text = (HERE / "OVERHEAD.head.md").read_text(encoding="utf-8")
    table_text = markdown_table(header, table)
    write_bytes(HERE / "OVERHEAD.md", f"{text}\n{table_text}\n".encode())


if __name__ == "__main__":
    main()
