"""What works with what: networks × scenarios × optimisers, two tasks each, Naive beside LDC.

``python -m benchmarks.matrix`` trains all 45 cells on scikit-learn's digits, one seed, LDC at its
defaults, and interrupts LDC's second task half-way to go on from a file in fresh objects. Cells
already in ``benchmarks/results/matrix.json`` are kept; ``--render`` makes ``benchmarks/MATRIX.md``
from them alone. ``pytest tests/end_to_end`` asserts the same of one cell a network, and
``pytest -m slow tests/end_to_end`` of all others.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.kept import entries
from benchmarks.matrix_networks import NETWORKS, Network
from flatcl.core.engine import Landscape
from flatcl.data import load_images
from flatcl.io import write_bytes, write_json
from flatcl.seeds import derive_seed
from flatcl.tables import markdown_table
from flatcl.versions import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "matrix.json"
SCENARIOS = ("single head", "multi-head", "growing head")
OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "SGD": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "Adam": lambda p, lr: torch.optim.Adam(p, lr=2e-3),
    "AdamW": lambda p, lr: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1),
}
CLASSES = 5  # a task
LEARNED = 80.0  # percent that LDC must reach on it
FEWER = 0.75  # of Naive's rise of loss, that LDC's must stay below


@dataclass(frozen=True)
class Training:
    """How each task is trained.

    Attributes:
        images: training images of a task.
        epochs: passes over them.
        lr: of SGD, w²/nat.
        batch: images a step.
        seed: of weights, order and dropout.
    """

    images: int = 600
    epochs: int = 8
    lr: float = 0.005
    batch: int = 24
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of a task."""
        return self.epochs * (self.images // self.batch)


@dataclass(frozen=True)
class Cell:
    """One network, scenario and optimiser, each a name."""

    network: str
    scenario: str
    optimizer: str

    def __str__(self) -> str:
        return f"{self.network}, {self.scenario}, {self.optimizer}"


TRAININGS = {
    "mlp": Training(),
    "cnn": Training(),
    "resnet18": Training(epochs=6),
    "vit": Training(epochs=12, lr=0.02),
    "lstm": Training(lr=0.05),
}
CELLS = [Cell(*names) for names in product(NETWORKS, SCENARIOS, OPTIMIZERS)]


@lru_cache
def digits(task: int, train: bool) -> tuple[Tensor, Tensor]:
    """Return the digits 0–4 or 5–9: images [N, 1, 8, 8], near unit variance, and labels 0–4."""
    images = load_images("digits")
    x, y = (images.x_train, images.y_train) if train else (images.x_test, images.y_test)
    chosen = y // CLASSES == task
    return (x[chosen].float() / 16 - 0.3) / 0.4, y[chosen] % CLASSES


class Run:
    """Two tasks in a plain loop, which may stop after any step.

    Args:
        cell: what is trained.
        training: how.
        held: whether LDC holds the first task.
    """

    def __init__(self, cell: Cell, training: Training, *, held: bool) -> None:
        torch.manual_seed(derive_seed(training.seed, "weights"))
        self.cell, self.training = cell, training
        self.task = self.made = 0
        self.network: Network = NETWORKS[cell.network](CLASSES)
        self.optimizer = self._optimizer()
        self.first: dict[str, float] = {}  # the test of task 1 before task 2
        self.of_first: dict[str, Tensor] = {}  # the running statistics then
        self.landscape: Landscape | None = None
        if held:
            self.landscape = Landscape(self.network, self.optimizer, forward=self._forward)

    def _forward(self, batch: Any) -> Tensor:
        return self.network(batch[0], batch[-1] if self._told else None)

    def _optimizer(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.cell.optimizer](self.network.parameters(), self.training.lr)

    @property
    def _told(self) -> bool:
        return self.cell.scenario == "multi-head"

    def _batch(self, task: int, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return inputs, labels and, as in Avalanche, task labels."""
        return [x, y, torch.full((len(x),), task)]

    def _labels(self, task: int, y: Tensor) -> Tensor:
        return y + task * CLASSES if self.cell.scenario == "growing head" else y

    def advance(self) -> None:
        """Make the network ready for the second task."""
        self.task, self.made = 1, 0
        if self._told:
            self.network.add_head(CLASSES)
            self.optimizer.add_param_group({"params": self.network.heads[1].parameters()})
        elif self.cell.scenario == "growing head":
            self.network.grow_head(2 * CLASSES)
            self.optimizer = self._optimizer()
            if self.landscape is not None:
                self.landscape.attach(self.network, self.optimizer)

    def begin(self) -> None:
        """Begin the task."""
        if self.landscape is not None:
            self.landscape.begin_task()

    def train(self, until: int) -> None:
        """Make the task's steps up to number ``until``."""
        x, y = digits(self.task, True)
        y = self._labels(self.task, y)
        t = self.training
        per_epoch = t.images // t.batch
        self.network.train()
        while self.made < until:
            epoch, step = divmod(self.made, per_epoch)
            seed = derive_seed(t.seed, "order", self.task, epoch)
            order = torch.randperm(t.images, generator=torch.Generator().manual_seed(seed))
            chosen = order[step * t.batch : (step + 1) * t.batch]
            self.optimizer.zero_grad()
            loss = cross_entropy(
                self._forward(self._batch(self.task, x[chosen], y[chosen])), y[chosen]
            )
            if self.landscape is not None:
                loss = loss + self.landscape.rehearsal()
            loss.backward()
            self.optimizer.step()
            self.made += 1
            if self.landscape is not None:
                self.landscape.step()

    def end(self) -> None:
        """End the task."""
        if self.landscape is not None:
            x, y = (part[: self.training.images] for part in digits(self.task, True))
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.task))
            batches = (self._batch(self.task, x[chosen], y[chosen]) for chosen in order.split(50))
            self.landscape.end_task(batches)

    @torch.no_grad()
    def test(self, task: int) -> dict[str, float]:
        """Return accuracy (percent) and loss (nats) on a task's held-out images.

        ``among`` is the accuracy where only the outputs of the task's own classes may answer.
        """
        self.network.eval()
        x, y = digits(task, False)
        outputs, y = self._forward(self._batch(task, x, y)), self._labels(task, y)
        first = task * CLASSES if self.cell.scenario == "growing head" else 0
        own = first + outputs[:, first : first + CLASSES].argmax(1)
        right, among = ((found == y).double().mean() for found in (outputs.argmax(1), own))
        return {
            "accuracy": 100 * float(right),
            "among": 100 * float(among),
            "loss": float(cross_entropy(outputs, y)),
        }

    def statistics(self) -> dict[str, Tensor]:
        """Return copies of BatchNorm's running statistics."""
        return {n: b.clone() for n, b in self.network.named_buffers() if "running" in n}

    def test_with(self, statistics: dict[str, Tensor]) -> dict[str, float]:
        """Return the test of task 1 with other running statistics, which then go again."""
        kept = self.statistics()
        self.network.load_state_dict(statistics, strict=False)
        found = self.test(0)
        self.network.load_state_dict(kept, strict=False)
        return found

    def save(self, file: Path) -> None:
        """Write the whole state in mid-task."""
        assert self.landscape is not None
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "landscape": self.landscape.state_dict(),
            "random": torch.get_rng_state(),  # dropout's
            "made": self.made,
        }
        torch.save(state, file)

    @classmethod
    def restored(cls, file: Path, cell: Cell, training: Training) -> Run:
        """Return a fresh run of the second task that goes on from a file."""
        run = cls(cell, training, held=True)
        run.advance()
        state = torch.load(file, weights_only=True)
        run.network.load_state_dict(state["network"])
        run.optimizer.load_state_dict(state["optimizer"])
        assert run.landscape is not None
        run.landscape.load_state_dict(state["landscape"])
        torch.set_rng_state(state["random"])
        run.made = state["made"]
        return run


def same(a: Run, b: Run) -> bool:
    """Return whether weights, buffers, optimiser and all that is held agree bit for bit."""
    assert a.landscape is not None
    assert b.landscape is not None
    return (
        _equal(a.network.state_dict(), b.network.state_dict())
        and _equal(a.optimizer.state_dict(), b.optimizer.state_dict())
        and _equal(a.landscape.state_dict(), b.landscape.state_dict())
    )


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def train(cell: Cell, training: Training, *, held: bool, file: Path | None = None) -> Run:
    """Return a run that has ended both tasks.

    Args:
        cell: what is trained.
        training: how.
        held: whether LDC holds the first task.
        file: where to save half-way through the second task, or None.
    """
    run = Run(cell, training, held=held)
    run.begin()
    run.train(training.steps)
    run.end()
    run.first, run.of_first = run.test(0), run.statistics()
    run.advance()
    run.begin()
    if file is not None:
        run.train(training.steps // 2 + 3)  # between two pulls
        run.save(file)
    run.train(training.steps)
    run.end()
    return run


def measure(cell: Cell) -> dict[str, Any]:
    """Return what both methods forget and learn in a cell, and whether LDC went on from a file.

    Args:
        cell: what is trained.

    Returns:
        Under "naive" and "ldc": accuracy (percent) and loss (nats) on held-out images of the
        ``first`` task before the second, of ``both`` tasks after it, and of the first after it
        with the running statistics that it had (``old_statistics``). ``restored``,
        ``bytes`` held, ``seconds`` of the processor.
    """
    start, training = time.process_time(), TRAININGS[cell.network]
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
        file = Path(folder) / "run.pt"
        naive = train(cell, training, held=False)
        ldc = train(cell, training, held=True, file=file)
        again = Run.restored(file, cell, training)
        again.train(training.steps)
        again.end()
        assert ldc.landscape is not None
        found = {
            name: {
                "first": run.first,
                "both": [run.test(0), run.test(1)],
                "old_statistics": run.test_with(run.of_first),
            }
            for name, run in (("naive", naive), ("ldc", ldc))
        }
        return {
            **found,
            "restored": same(ldc, again),
            "bytes": ldc.landscape.bytes_held(),
            "seconds": time.process_time() - start,
        }


def rise(row: dict[str, Any], method: str) -> tuple[float, float]:
    """Return what a method forgets of task 1: accuracy lost (points) and loss gained (nats)."""
    before, after = row[method]["first"], row[method]["both"][0]
    return before["accuracy"] - after["accuracy"], after["loss"] - before["loss"]


def failures(row: dict[str, Any]) -> list[str]:
    """Return in what a cell falls short; nothing if it passes.

    Args:
        row: from ``measure``, or with an ``error`` in place of its figures.

    Returns:
        Reasons.
    """
    if "error" in row:
        return [row["error"]]
    points, nats = rise(row, "naive")
    kept_points, kept_nats = rise(row, "ldc")
    found = []
    if nats < 0.05:
        found.append("Naive does not forget")
    if kept_nats > FEWER * nats or kept_points > points:
        found.append("forgets as much")
    if row["ldc"]["both"][1]["accuracy"] < LEARNED:
        found.append("learns too little")
    if not row["restored"]:
        found.append("not restored")
    return found


def fill() -> list[dict[str, Any]]:
    """Return all cells, after making and writing those that are missing."""
    setup = {network: asdict(training) for network, training in TRAININGS.items()}
    rows = entries(RESULTS, setup, "cells")
    there = {(row["network"], row["scenario"], row["optimizer"]) for row in rows}
    for cell in CELLS:
        if (cell.network, cell.scenario, cell.optimizer) in there:
            continue
        try:
            figures = measure(cell)
        except Exception as error:  # a cell that fails is a result
            figures = {"error": f"{type(error).__name__}: {error}"}
        row = asdict(cell) | figures | {"versions": dict(versions())}
        rows.append(row)
        write_json(RESULTS, {"setup": setup, "cells": rows})
        print(f"{cell}: {', '.join(failures(row)) or 'passes'}", flush=True)
    return rows


TEXT = """# What works with what

Made by `python -m benchmarks.matrix` ({seconds:.0f} s of one core for all cells; one seed, raw
figures in `results/matrix.json`). Two tasks, the digits 0–4 and then 5–9 (600 training images each,
8×8 pixels); LDC at its defaults in a plain loop, and Naive, the same without it.

- *single head*: the same five outputs for both tasks; *multi-head*: a head added for the second
  task, which is told; *growing head*: five outputs added to the old ones, one softmax over all
  ten, no stored data, no mask and no offset.
- SGD with momentum 0.9 (rates: {rates});
  Adam and AdamW at 0.002, AdamW with weight decay 0.1.
- A cell reads: accuracy lost on held-out images of task 1, Naive → LDC, in points; its rise of loss
  in nats; then what LDC reaches on task 2 (Naive in brackets), percent; ✓ if training that was
  saved in the middle of task 2 and taken up in fresh objects ended with the same weights, buffers,
  optimiser and constraints, bit for bit. Negative losses are gains.
- A cell *passes* if Naive's loss rises by 0.05 nats or more and LDC's by less than {fewer:.0%} of
  that, its accuracy falls no further than Naive's, it reaches {learned:.0f} percent on task 2, and
  it is restored. {passed} of {cells} pass; any other says why. Each method's losses count from its
  own accuracy before task 2, so that who was better then can lose more. Passing is less than
  working well:
- † LDC keeps less than half of the accuracy that Naive loses ({weak} cells).

{table}

## Where it is weak

*Growing head.* A softmax over all ten outputs that sees new classes only pushes them up on old
inputs too; at the pseudo-inputs the rehearsal holds them down. Accuracy on task 1, Naive → LDC,
where only its own five outputs may answer: what is missing of it above is outvoted, not lost.

{growing}

*BatchNorm.* Running statistics follow the second task. Accuracy on task 1 after task 2, LDC, and
with the running statistics that it had before:

{statistics}
"""


def _shown(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"**fails**: {row['error'].splitlines()[0]}"
    (points, nats), (kept_points, kept_nats) = rise(row, "naive"), rise(row, "ldc")
    learned = [row[method]["both"][1]["accuracy"] for method in ("ldc", "naive")]
    reasons = failures(row)
    return (
        f"{points:.1f} → {kept_points:.1f}{'†' if _weak(row) else ''}; "
        f"{nats:.2f} → {kept_nats:.2f}; {learned[0]:.1f} ({learned[1]:.1f}) "
        f"{'✓' if row['restored'] else '✗'}" + (f" **{', '.join(reasons)}**" if reasons else "")
    ).replace("-", "−")


def _weak(row: dict[str, Any]) -> bool:
    return "error" not in row and rise(row, "ldc")[0] > 0.5 * max(0.0, rise(row, "naive")[0])


def render(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table with what it says.

    Args:
        rows: the cells.
    """
    found = {Cell(row["network"], row["scenario"], row["optimizer"]): row for row in rows}
    lines = []
    for network, scenario in product(NETWORKS, SCENARIOS):
        cells = [found.get(Cell(network, scenario, optimizer)) for optimizer in OPTIMIZERS]
        held = [cell["bytes"] for cell in cells if cell is not None and "bytes" in cell]
        shown = [_shown(cell) if cell is not None else "not run" for cell in cells]
        lines.append([f"{network}, {scenario}", *shown, f"{max(held):,}" if held else "–"])
    return TEXT.format(
        table=markdown_table(["network, scenario", *OPTIMIZERS, "bytes held"], lines),
        rates=", ".join(f"{network} {t.lr}" for network, t in TRAININGS.items()),
        seconds=sum(row.get("seconds", 0.0) for row in found.values()),
        passed=sum(not failures(row) for row in found.values()),
        cells=len(CELLS),
        weak=sum(map(_weak, found.values())),
        learned=LEARNED,
        fewer=FEWER,
        growing=_table(found, product(NETWORKS, ["growing head"]), _among),
        statistics=_table(found, product(["cnn", "resnet18"], SCENARIOS), _own_statistics),
    )


def _table(
    found: Mapping[Cell, dict[str, Any]],
    lines: Iterable[tuple[str, str]],
    shown: Callable[[dict[str, Any]], str],
) -> str:
    """Return a table of one figure, a line for each network and scenario."""

    def cell(network: str, scenario: str, optimizer: str) -> str:
        row = found.get(Cell(network, scenario, optimizer), {"error": "not run"})
        return "–" if "error" in row else shown(row)

    rows = [[f"{n}, {s}", *(cell(n, s, optimizer) for optimizer in OPTIMIZERS)] for n, s in lines]
    return markdown_table(["network, scenario", *OPTIMIZERS], rows)


def _among(row: dict[str, Any]) -> str:
    naive, ldc = (row[method]["both"][0]["among"] for method in ("naive", "ldc"))
    return f"{naive:.1f} → {ldc:.1f}"


def _own_statistics(row: dict[str, Any]) -> str:
    ldc = row["ldc"]
    return f"{ldc['both'][0]['accuracy']:.1f}; {ldc['old_statistics']['accuracy']:.1f}"


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if chosen.render else fill()
    write_bytes(HERE / "MATRIX.md", render(rows).encode())


if __name__ == "__main__":
    main()
