"""What LDC costs beside Naive and EWC: paired training times, split into step, pull and task end.

``python -m benchmarks.overhead`` measures twice, in one process, so that a machine whose speed
drifts slows all methods alike. Steps: plain loops of Naive and of LDC in its second task take turns
by blocks of steps. Whole tasks: Avalanche's strategies train on the same tasks in turn. Who goes
first changes, ratios are taken within a turn, and their medians are shown. Writes
``benchmarks/results/overhead.json``, ``benchmarks/OVERHEAD.md`` and the README's paragraph;
``--render`` makes these from the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.markers import insert
from benchmarks.residual import resnet18_body
from flatcl.avalanche import LDC
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.core.schedule import PullSchedule
from flatcl.data import load_images
from flatcl.io import write_bytes, write_json
from flatcl.models import make_model
from flatcl.rivals import RIVALS
from flatcl.streams import StreamOptions, fast, make_stream
from flatcl.tables import markdown_table
from flatcl.versions import versions

from avalanche.logging import BaseLogger  # isort: skip
from avalanche.training.plugins import EvaluationPlugin  # isort: skip

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "overhead.json"
README = HERE.parent / "README.md"


@dataclass(frozen=True)
class Setting:
    """A network and the length of its tasks.

    Attributes:
        hidden: widths of a perceptron's layers; None for the reduced ResNet-18.
        batch: images a step.
        images: of a task.
        epochs: passes over them.
        block: steps between one turn and the next where steps are measured; a multiple of the
            interval from pull to pull.
        turns: of each loop.
    """

    hidden: tuple[int, ...] | None
    batch: int
    images: int
    epochs: int
    block: int = 60
    turns: int = 40

    def model(self) -> nn.Module:
        """Return the network, the same at every call."""
        if self.hidden is None:
            torch.manual_seed(0)
            return nn.Sequential(resnet18_body(1, 20), nn.Linear(160, 10))
        return make_model((1, 28, 28), 10, seed=0, outputs_per_task=10, hidden=self.hidden)


NETWORKS = {
    "784-100-100-10, B 32": Setting((100, 100), 32, 12000, 5),
    "784-256-256-10, B 128": Setting((256, 256), 128, 54000, 1),
    "reduced ResNet-18, 32 × 32, B 32": Setting(None, 32, 960, 1, block=20, turns=6),
}
METHODS = ("naive", "ewc", "ldc", "constraint")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}
_REFERENCE_STEPS = 1875


def measure_steps(network: str, optimizer: str, turns: int) -> dict[str, list[float]]:
    """Return the seconds a step of plain loops, block by block in turn.

    Args:
        network: a key of ``NETWORKS``.
        optimizer: a key of ``OPTIMIZERS``.
        turns: blocks of each loop.

    Returns:
        By loop: "naive"; "ldc" in its second task, pulls and rehearsal in it; "constraint", the
        same without the rehearsal.
    """
    setting = NETWORKS[network]
    options = StreamOptions(tasks=2, pad=2 if setting.hidden is None else 0)
    stream = make_stream(load_images("mnist"), options, seed=0).benchmark.train_stream
    loops = {
        name: _Loop(setting, optimizer, held, [e.dataset for e in stream])
        for name, held in (("naive", None), ("ldc", {}), ("constraint", {"pseudo_inputs": 0}))
    }
    names = list(loops)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            found[name].append(loops[name].block())
    return found


class _Loop:
    """Plain training on a second task, the first having been learned for a few steps."""

    def __init__(
        self, setting: Setting, optimizer: str, held: dict[str, Any] | None, tasks: list[Any]
    ) -> None:
        self.model = setting.model()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.steps = setting.block
        self.landscape = None
        if held is not None:
            # What the first task's probe reads takes no part in the second's steps.
            options = LDCOptions(probe_inputs=100, **held)
            self.landscape = Landscape(self.model, self.optimizer, options=options)
        self.batches = self._read(tasks[0], setting)
        if self.landscape is not None:
            self.landscape.begin_task()
        self.block()
        if self.landscape is not None:
            self.landscape.end_task([x for x, _ in self.batches])
        self.batches = self._read(tasks[1], setting)
        if self.landscape is not None:
            self.landscape.begin_task()

    @staticmethod
    def _read(data: Any, setting: Setting) -> list[tuple[Tensor, Tensor]]:
        chosen = torch.arange(setting.block * setting.batch).split(setting.batch)
        return [(x, y) for x, y, *_ in (data.batch(one) for one in chosen)]

    def block(self) -> float:
        """Make a block of steps; return the seconds of one on average."""
        landscape, loss_of = self.landscape, nn.functional.cross_entropy
        start = time.perf_counter()
        for x, y in self.batches:
            self.optimizer.zero_grad()
            if landscape is None:
                loss_of(self.model(x), y).backward()
                self.optimizer.step()
                continue
            with landscape.joining():
                outputs = self.model(x)
            (loss_of(outputs, y) + landscape.rehearsal()).backward()
            self.optimizer.step()
            landscape.step()
        return (time.perf_counter() - start) / len(self.batches)


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


def step_ratios(found: dict[str, list[float]]) -> dict[str, float]:
    """Return what a step costs, medians over turns.

    Args:
        found: of ``measure_steps``.

    Returns:
        Step and pull of LDC, and of its constraint alone, over Naive's step.
    """
    return {
        figure: statistics.median(
            own / naive for own, naive in zip(found[name], found["naive"], strict=True)
        )
        for figure, name in (("step_and_pull", "ldc"), ("constraint", "constraint"))
    }


def ratios(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the figures of whole tasks, medians over tasks.

    Args:
        rows: of ``measure``.

    Returns:
        The pull's share of Naive's task, from the second on; the task end as a share of 1875 of
        Naive's steps; EWC over Naive and LDC (its end included) over EWC from the third task.
    """
    later, third = rows[1:], rows[2:]

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "pull": middle([r["ldc_pull"] / r["naive"] for r in later]),
        "end_of_1875_steps": middle(
            [r["ldc_end"] / (r["naive"] / r["steps"] * _REFERENCE_STEPS) for r in rows]
        ),
        "ewc": middle([r["ewc"] / r["naive"] for r in third]),
        "ldc_over_ewc": middle([r["ldc"] / r["ewc"] for r in third]),
    }


def in_words(raw: dict[str, Any]) -> str:
    """Return the README's paragraph.

    Args:
        raw: the settings measured, by name.

    Returns:
        Markdown.
    """

    def between(values: Iterable[float], digits: int = 2) -> str:
        found = sorted(values)
        ends = dict.fromkeys(f"{end:.{digits}f}" for end in (found[0], found[-1]))
        return "–".join(ends)

    settings = list(raw.values())
    figures = {
        name: between(one[name] for one in settings) for name in ("step_and_pull", "constraint")
    }
    ends = between((_REFERENCE_STEPS * one["end_of_1875_steps"] for one in settings), 0)
    beside = [
        f"{between(raw[f'{network}, {optimizer}']['ldc_over_ewc'] for optimizer in OPTIMIZERS)} "
        f"({network}, tasks of {raw[f'{network}, SGD']['tasks'][0]['steps']} steps)"
        for network in NETWORKS
    ]
    return (
        f"A step takes {figures['step_and_pull']} times Naive's, {figures['constraint']} without "
        f"the rehearsal; a task's end as long as {ends} of Naive's steps. From the third task on, "
        f"a task takes, ends included, this many times EWC's: {'; '.join(beside)}. How it was "
        "measured: [benchmarks/OVERHEAD.md](benchmarks/OVERHEAD.md)."
    )


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
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--steps-only", action="store_true", help="measure no whole tasks")
    only.add_argument("--tasks-only", action="store_true", help="measure no single steps")
    only.add_argument("--render", action="store_true", help="only render, measure nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    raw: dict[str, Any] = {}
    if RESULTS.exists():
        raw = json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]
    measured = [] if chosen.render else chosen.networks
    for network in [list(NETWORKS)[i] for i in measured]:
        for optimizer in OPTIMIZERS:
            name = f"{network}, {optimizer}"
            setting = raw.get(name, {}) | {"threads": chosen.threads, "versions": dict(versions())}
            if not chosen.tasks_only:
                steps = measure_steps(network, optimizer, NETWORKS[network].turns)
                setting |= {"steps": steps, **step_ratios(steps)}
            if not chosen.steps_only:
                rows = measure(network, optimizer, chosen.tasks)
                setting |= {"tasks": rows, **ratios(rows)}
            raw[name] = setting
            write_json(RESULTS, {"settings": raw})
            print(f"{name}: {setting.get('step_and_pull', float('nan')):.3f}", flush=True)
    table = []
    for network in NETWORKS:
        for optimizer in OPTIMIZERS:
            if (figures := raw.get(f"{network}, {optimizer}")) is None:
                continue
            naive = 1e3 * statistics.median(figures["steps"]["naive"])
            shares = [f"{figures[k]:.2f}" for k in ("step_and_pull", "constraint", "pull")]
            end = f"{100 * figures['end_of_1875_steps']:.0f} %"
            against = [f"{figures[k]:.2f}" for k in ("ewc", "ldc_over_ewc")]
            table.append([network, optimizer, *shares, end, *against, f"{naive:.2f}"])
    header = [
        "network", "optimiser", "(step + pull) / Naive", "constraint alone", "of which pull",
        "task end / 1875 Naive steps", "EWC / Naive, task ≥ 3", "LDC / EWC, task ≥ 3",
        "Naive ms/step",
    ]  # fmt: skip
    text = (HERE / "OVERHEAD.head.md").read_text(encoding="utf-8")
    table_text = markdown_table(header, table)
    write_bytes(HERE / "OVERHEAD.md", f"{text}\n{table_text}\n".encode())
    if len(raw) == len(NETWORKS) * len(OPTIMIZERS):
        insert(README, "cost", in_words(raw))


if __name__ == "__main__":
    main()
