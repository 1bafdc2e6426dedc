"""What ``flatcl analyze`` can be told (no heavy imports here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flatcl.options import Options, data_option, option, size, widths

LEAST_STEPS = 2000
_MOST_SEED = 10**15  # some controls' own seeds are a thousand times as large
_LEAST = 8  # directions: fewer give no exponent


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions(Options):
    """Everything that ``flatcl analyze`` can be told; its fields are the command's options.

    The defaults are the set-up of Feng & Tu, PNAS 118 (2021), but for the data.

    Raises:
        OptionError: a value cannot be used; the message names it and what to give.
    """

    data: str = data_option()
    seed: int = option(0, "of initial weights, batches and controls", int)
    batch_size: int = option(50, "images a training step", int)
    lr: float = option(0.1, "learning rate, constant, of plain SGD", float)
    sampling: Literal["shuffle", "replacement"] = option(
        "shuffle",
        "minibatches: every epoch deals all images in a new order, or each is drawn by itself",
        choices=("shuffle", "replacement"),
    )
    steps: int | None = option(
        None, f"snapshots, one a step [ten epochs' steps, {LEAST_STEPS} at least]", int
    )
    hidden: tuple[int, ...] = option(
        (50, 50),
        "widths of the hidden layers; the weights between the last two are watched",
        widths,
        metavar="N,N",
    )
    train_size: int | None = option(None, "training images; all takes every one", size)
    loss: float = option(5e-5, "train until the mean loss is below this", float)
    accuracy: float = option(0.99, "and training accuracy above this", float)
    max_epochs: int = option(1000, "but no longer", int)
    subset: int = option(
        10000, "images that flatness and Hessian are taken over, half of all at most", int
    )
    directions: int = option(100, "directions that flatness is measured along", int)
    spacing: int = option(10, "of their ranks; the first rank, a drift, is left out", int)
    panel: bool = option(True, "no null controls, only the relation itself")
    jobs: int | None = option(None, "parts measured at the same time, one core each [cores]", int)

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_epochs", "subset", "spacing"):
            self._whole(name, 1)
        self._whole("directions", 10)
        self._whole("seed", 0, most=_MOST_SEED)
        for name in ("steps", "train_size", "jobs"):
            self._whole(name, 1, optional=True)
        for name in ("lr", "loss", "accuracy"):
            self._real(name)
        self._choices()
        self._data()
        self._switch("panel")
        for name in ("lr", "loss"):
            if getattr(self, name) == 0:
                self._refuse(name, "give a number above 0")
        if self.accuracy >= 1:
            self._refuse("accuracy", "give a share below 1, which training has to exceed")
        if self.steps is not None and self.steps < 10 * self.directions:
            self._refuse("steps", f"give ten times as many as directions, {self.directions}")
        self._hidden(2, "50,50")
        if _LEAST * self.spacing >= self.hidden[-1] * self.hidden[-2]:
            self._refuse("spacing", f"{_LEAST} directions so far apart need more hidden weights")

    def headline(self) -> str:
        """Return one line that names the data, the network and the training.

        Returns:
            E.g. "digits; mlp 50-50 without biases, sgd lr 0.1, batch 50 (shuffle); seed 0".
        """
        net = "-".join(map(str, self.hidden))
        return (
            f"{self.data}; mlp {net} without biases, sgd lr {self.lr:g}, batch {self.batch_size} "
            f"({self.sampling}), until loss < {self.loss:g}; seed {self.seed}"
        )
