"""The networks of ``flatcl generalize``: one knob turned at a time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from flatcl.generalize_options import GeneralizeOptions

VERSION = 1

KNOBS = {
    "batch size": "batch_sizes",
    "learning rate": "lrs",
    "weight decay": "decays",
    "dropout": "dropouts",
    "initial scale": "scales",
    "training images": "train_sizes",
    "label noise": "noises",
}
"""Knobs and the options that list their values."""

REGULARISERS = ("weight decay", "dropout")
"""Knobs that train for ``regularised_epochs`` at least unless they are 0, which is thus no smaller
value of theirs but another schedule."""

_FIELDS = dict(
    zip(
        KNOBS,
        ("batch_size", "lr", "decay", "dropout", "scale", "train_size", "noise"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Setting:
    """How one network is made.

    Attributes:
        data: name of the images.
        hidden: widths.
        test_size: test images at most.
        loss: the stop rule, nats.
        max_epochs: the end of patience.
        regularised_epochs: after which weight decay and dropout end.
        batch_size: images a step.
        lr: η.
        decay: β of β|w|²/2.
        dropout: p, after the first hidden layer.
        scale: of the initial weights.
        train_size: correctly labelled images.
        noise: wrongly labelled images trained on besides, as a share of ``train_size``.
        seed: of the repeat.
    """

    data: str
    hidden: tuple[int, ...]
    test_size: int
    loss: float
    max_epochs: int
    regularised_epochs: int
    batch_size: int
    lr: float
    decay: float
    dropout: float
    scale: float
    train_size: int
    noise: float
    seed: int

    @property
    def name(self) -> str:
        """A hash of all of it: the name of its file."""
        text = json.dumps({"version": VERSION, **asdict(self)})
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Run:
    """One row: a knob at a value.

    Attributes:
        knob: of ``KNOBS``.
        value: its value.
        setting: of the network; the same network may be a row of several knobs.
    """

    knob: str
    value: float
    setting: Setting


def runs_of(options: GeneralizeOptions) -> list[Run]:
    """Return all runs of a study.

    Args:
        options: of the study.

    Returns:
        By knob, value and seed.
    """
    runs = []
    assert options.train_size is not None  # the options' own default
    for knob, listed in KNOBS.items():
        for value in getattr(options, listed):
            for seed in range(options.seed, options.seed + options.seeds):
                base = Setting(
                    options.data,
                    options.hidden,
                    options.test_size,
                    options.loss,
                    options.max_epochs,
                    options.regularised_epochs,
                    options.batch_size,
                    options.lr,
                    0.0,
                    0.0,
                    1.0,
                    options.train_size,
                    0.0,
                    seed,
                )
                whole = knob in ("batch size", "training images")
                turned: Any = {_FIELDS[knob]: int(value) if whole else value}
                runs.append(Run(knob, value, replace(base, **turned)))
    return runs
