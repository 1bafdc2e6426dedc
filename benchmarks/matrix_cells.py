"""A cell of what works with what: two tasks in a plain loop, which may stop and go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.matrix_networks import NETWORKS, Network
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.data import load_images
from flatcl.seeds import derive_seed

SCENARIOS = ("single head", "multi-head", "growing head")
CLASSES = 5  # a task
_ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(5))
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {  # of images with values from −0.75 to 1.75
    "plain": lambda x: x,
    "inverted": lambda x: 1.0 - x,
    "brighter": lambda x: 3.0 * x + 2.0,
    "permuted": lambda x: x.flatten(1)[:, _ORDER].reshape(x.shape),
}


@dataclass(frozen=True)
class Training:
    """How each task is trained.

    Attributes:
        images: training images of a task.
        epochs: passes over them.
        lr: of SGD, w²/nat.
        adam_lr: of Adam and AdamW, w.
        batch: images a step.
        seed: of weights, order and dropout.
        inputs: what becomes of the second task's images, of ``INPUTS``.
    """

    images: int = 600
    epochs: int = 8
    lr: float = 0.005
    adam_lr: float = 0.002
    batch: int = 24
    seed: int = 0
    inputs: str = "plain"

    @property
    def steps(self) -> int:
        """Steps of a task."""
        return self.epochs * (self.images // self.batch)


OPTIMIZERS: dict[str, Callable[[Any, Training], torch.optim.Optimizer]] = {
    "SGD": lambda p, t: torch.optim.SGD(p, lr=t.lr, momentum=0.9),
    "Adam": lambda p, t: torch.optim.Adam(p, lr=t.adam_lr),
    "AdamW": lambda p, t: torch.optim.AdamW(p, lr=t.adam_lr, weight_decay=0.1),
}


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
        options: of LDC, which holds the first task; None for Naive.
    """

    def __init__(self, cell: Cell, training: Training, options: LDCOptions | None) -> None:
        torch.manual_seed(derive_seed(training.seed, "weights"))
        self.cell, self.training = cell, training
        self.task = self.made = 0
        self.network: Network = NETWORKS[cell.network](CLASSES)
        self.optimizer = self._optimizer()
        self.first: dict[str, float] = {}  # the test of task 1 before task 2
        self.landscape: Landscape | None = None
        if options is not None:
            self.landscape = Landscape(
                self.network, self.optimizer, options=options, forward=self._forward
            )

    def _forward(self, batch: Any) -> Tensor:
        return self.network(batch[0], batch[-1] if self._told else None)

    def _optimizer(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.cell.optimizer](self.network.parameters(), self.training)

    @property
    def _told(self) -> bool:
        return self.cell.scenario == "multi-head"

    def _batch(self, task: int, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return inputs, labels and, as in Avalanche, task labels."""
        return [x, y, torch.full((len(x),), task)]

    def _images(self, task: int, train: bool) -> tuple[Tensor, Tensor]:
        """Return a task's images as they are shown, and labels 0–4."""
        x, y = digits(task, train)
        return (INPUTS[self.training.inputs](x) if task else x), y

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

    def first_task(self) -> None:
        """Train the first task, test it, and make the network ready for the second."""
        self.begin()
        self.train(self.training.steps)
        self.end()
        self.first = self.test(0)
        self.advance()

    def begin(self) -> None:
        """Begin the task."""
        if self.landscape is not None:
            self.landscape.begin_task()

    def train(self, until: int) -> None:
        """Make the task's steps up to number ``until``."""
        x, y = self._images(self.task, True)
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
            x, y = (part[: self.training.images] for part in self._images(self.task, True))
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.task))
            batches = (self._batch(self.task, x[chosen], y[chosen]) for chosen in order.split(50))
            self.landscape.end_task(batches)

    @torch.no_grad()
    def test(self, task: int) -> dict[str, float]:
        """Return accuracy (percent) and loss (nats) on a task's held-out images.

        ``among`` is the accuracy where only the outputs of the task's own classes may answer.
        """
        self.network.eval()
        x, y = self._images(task, False)
        outputs, y = self._forward(self._batch(task, x, y)), self._labels(task, y)
        first = task * CLASSES if self.cell.scenario == "growing head" else 0
        own = first + outputs[:, first : first + CLASSES].argmax(1)
        right, among = ((found == y).double().mean() for found in (outputs.argmax(1), own))
        return {
            "accuracy": 100 * float(right),
            "among": 100 * float(among),
            "loss": float(cross_entropy(outputs, y)),
        }

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
        run = cls(cell, training, LDCOptions())
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


def train(
    cell: Cell, training: Training, options: LDCOptions | None, *, file: Path | None = None
) -> Run:
    """Return a run that has ended both tasks.

    Args:
        cell: what is trained.
        training: how.
        options: of LDC, None for Naive.
        file: where to save half-way through the second task, or None.
    """
    run = Run(cell, training, options)
    run.first_task()
    run.begin()
    if file is not None:
        run.train(training.steps // 2 + 3)  # between two pulls
        run.save(file)
    run.train(training.steps)
    run.end()
    return run
