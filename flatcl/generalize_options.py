"""What ``flatcl generalize`` can be told (no heavy imports here)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flatcl.options import Options, data_option, names, number_of, option, widths

LARGEST = 4096
"""Weights that are looked at, at most: the duality holds their Hessian densely."""

_MOST_SEEDS = 10_000


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated list; a ValueError if one is none.

    Args:
        text: e.g. "0.1,0.2".

    Returns:
        The numbers.
    """
    return tuple(float(part) for part in names(text))


def _knob(default: tuple[float, ...], meaning: str) -> tuple[float, ...]:
    values: tuple[float, ...] = option(
        default, f"{meaning}; nothing leaves the knob alone", numbers, metavar="X,X"
    )
    return values


@dataclass(frozen=True, kw_only=True)
class GeneralizeOptions(Options):
    """Everything that ``flatcl generalize`` can be told; its fields are the command's options.

    Network and training are those of Feng, Zhang & Tu (2023), but for the data; one knob is turned
    at a time.

    Raises:
        OptionError: a value cannot be used; the message names it and what to give.
    """

    data: str = data_option()
    seed: int = option(0, "of the first repeat: initial weights, batches, noise", int)
    seeds: int = option(3, "repeats, consecutive seeds", int)
    train_size: int | None = option(
        None, "training images where nothing else is said [700 of digits, else 4000]", int
    )
    test_size: int = option(1000, "test images at most, the first", int)
    hidden: tuple[int, ...] = option(
        (30, 30),
        "widths of the hidden layers; the weights between the last two are looked at",
        widths,
        metavar="N,N",
    )
    batch_size: int = option(25, "images a training step", int)
    lr: float = option(0.1, "learning rate, constant, of plain SGD", float)
    loss: float = option(1e-3, "train until the mean training loss is below this", float)
    max_epochs: int = option(2000, "but no longer", int)
    regularised_epochs: int = option(
        200, "weight decay and dropout end after so many, so that the loss is reached", int
    )
    batch_sizes: tuple[float, ...] = _knob((10, 25, 50), "batch sizes to compare")
    lrs: tuple[float, ...] = _knob((0.05, 0.1, 0.2), "learning rates to compare")
    decays: tuple[float, ...] = _knob((0, 1e-3, 3e-3, 1e-2), "weight decays, β of β|w|²/2")
    dropouts: tuple[float, ...] = _knob((0, 0.1, 0.2, 0.3), "dropout after the first hidden layer")
    scales: tuple[float, ...] = _knob((1, 2, 3, 4), "factors on the initial weights")
    train_sizes: tuple[float, ...] | None = option(
        None, "numbers of training images [half, once and twice train-size]", numbers, metavar="X,X"
    )
    noises: tuple[float, ...] = _knob(
        (0, 0.05, 0.1), "wrongly labelled images trained on besides, as shares of the others"
    )
    jobs: int | None = option(None, "networks trained at the same time, one core each [cores]", int)

    def __post_init__(self) -> None:
        if self.train_size is None:
            object.__setattr__(self, "train_size", 700 if self.data == "digits" else 4000)
        self._seed()
        for name in ("test_size", "batch_size", "max_epochs", "regularised_epochs"):
            self._whole(name, 1)
        self._whole("seeds", 1, most=_MOST_SEEDS)
        self._whole("train_size", 1)
        self._whole("jobs", 1, optional=True)
        if self.train_sizes is None and self.train_size is not None:
            sizes = (self.train_size // 2, self.train_size, 2 * self.train_size)
            object.__setattr__(self, "train_sizes", tuple(n for n in sizes if n))
        for name in ("lr", "loss"):
            self._real(name)
            if getattr(self, name) == 0:
                self._refuse(name, "give a number above 0")
        self._data()
        self._hidden(2, "30,30")
        weights = self.hidden[-1] * self.hidden[-2]
        if weights > LARGEST:
            few = f"at most {LARGEST} weights, so that their Hessian can be held"
            self._refuse("hidden", f"{weights} weights lie between the last two; give {few}")
        for name in ("batch_sizes", "train_sizes"):
            self._knob_values(name, lambda v: v >= 1 and v == int(v), "whole numbers, 1 or more")
        for name in ("lrs", "scales"):
            self._knob_values(name, lambda v: v > 0, "numbers above 0")
        self._knob_values("decays", lambda v: v >= 0, "numbers, 0 or more")
        for name in ("dropouts", "noises"):
            self._knob_values(name, lambda v: 0 <= v < 1, "numbers from 0 to below 1")

    def _knob_values(self, name: str, good: Callable[[float], bool], wanted: str) -> None:
        self._list(name, "1,2")
        values = [number_of(value) for value in getattr(self, name)]
        if not all(v is not None and abs(v) < math.inf and good(v) for v in values):
            self._refuse(name, f"give {wanted}")
        object.__setattr__(self, name, tuple(dict.fromkeys(values)))

    def headline(self) -> str:
        """Return one line that names the data, the network and the training.

        Returns:
            E.g. "digits, 700 images; mlp 30-30 without biases, sgd lr 0.1, batch 25; 3 seeds".
        """
        net = "-".join(map(str, self.hidden))
        return (
            f"{self.data}, {self.train_size} images; mlp {net} without biases, sgd lr {self.lr:g}, "
            f"batch {self.batch_size}, until loss < {self.loss:g}; {self.seeds} seeds from "
            f"{self.seed}"
        )
