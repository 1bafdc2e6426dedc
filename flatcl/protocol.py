"""What a comparison does: its options, their meaning and their checks (no heavy imports here)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, cast

from flatcl.errors import OptionError

METHODS = ("naive", "ewc", "ewc-online", "si", "mas", "lwf", "replay", "joint", "ldc")
"""The methods that can be compared, in the order in which tables show them."""

SCENARIOS = ("permuted", "rotated", "split-task", "split-domain", "split-class")
_MAX_SEED = 2**32  # tuning seeds lie above it


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _names(text))


def _size(text: str) -> int | None:
    return None if text == "all" else int(text)


def _option(
    default: object,
    meaning: str,
    parse: Callable[[str], object] = str,
    *,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    metadata = {"help": meaning, "parse": parse, "choices": choices, "metavar": metavar}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Everything that ``flatcl compare`` can be told; its fields are the command's options.

    A field's ``metadata["help"]`` says what it means; ``flatcl compare --help`` prints them. LDC's
    options are None for its own defaults, ``ewc_lambda`` is None to be tuned, ``train_size`` is
    None for all images, ``val_size`` for a tenth of the training images, ``jobs`` for as many as
    there are cores.

    Raises:
        OptionError: a value cannot be used; the message names it and what to give.
    """

    data: str = _option(
        "digits",
        "images: digits (scikit-learn's, no download), mnist, fashion, cifar100 (from the folders "
        "of FLATCL_DATA, else downloaded), or an .npz file with x_train, y_train, x_test, y_test",
        metavar="NAME|FILE.npz",
    )
    scenario: str = _option("permuted", "how tasks are made of them", choices=SCENARIOS)
    tasks: int = _option(5, "number of tasks", int)
    methods: tuple[str, ...] = _option(
        ("naive", "ewc", "ldc"), f"comma-separated, of {', '.join(METHODS)}", _names, metavar="A,B"
    )
    seeds: int = _option(3, "number of repeats", int)
    seed: int = _option(0, "first repeat's seed; the others follow it", int, metavar="FIRST")
    epochs: int = _option(8, "passes over each task's images", int)
    batch_size: int = _option(32, "images a training step", int)
    lr: float = _option(0.05, "learning rate", float)
    optimizer: str = _option("sgd", "optimiser", choices=("sgd", "adam", "adamw"))
    momentum: float = _option(0.0, "momentum of sgd", float)
    weight_decay: float = _option(0.0, "weight decay of the optimiser", float)
    model: str = _option("mlp", "network", choices=("mlp", "cnn"))
    hidden: tuple[int, ...] = _option(
        (100, 100), "widths of the mlp's hidden layers", _widths, metavar="N,N"
    )
    bias: bool = _option(True, "layers without biases")
    init: str = _option(
        "torch", "initial weights: torch's own, or he (normal, 2/fan-in)", choices=("torch", "he")
    )
    train_size: int | None = _option(
        None, "training images a task, drawn at random; all takes every one", _size, metavar="N|all"
    )
    val_size: int | None = _option(
        None, "images cut from the training set first, to tune rivals on [a tenth]", int
    )
    max_angle: float = _option(90.0, "last task's angle in degrees, rotated only", float)
    pad: int = _option(0, "zero pixels added on each side", int)
    strength: float | None = _option(None, "LDC: how firmly old tasks are held", float)
    interval: int | None = _option(None, "LDC: steps from one pull to the next", int)
    source: str | None = _option(None, "LDC: where stiffness is measured", choices=("probe", "sgd"))
    damping: float | None = _option(None, "LDC: share of mean stiffness added", float)
    width: float | None = _option(None, "LDC: size of the probe's perturbation", float)
    centre: bool = _option(True, "LDC: tasks do not end at the centre of the fluctuation")
    offset: float = _option(
        1.0,
        "every method: subtracted in the training loss from the logits of classes that earlier "
        "tasks had and this one lacks, which is so in split-class alone",
        float,
    )
    memory: int = _option(200, "images that replay may keep", int)
    ewc_lambda: float | None = _option(
        None, "λ of ewc and ewc-online; not given, it is tuned on validation images", float
    )
    device: str = _option("cpu", "where to train, e.g. cpu or cuda")
    threads: int = _option(1, "threads of torch in each run", int)
    jobs: int | None = _option(None, "runs at the same time [cores / threads]", int)

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("tasks", "seeds", "epochs", "batch_size", "memory", "threads"):
            self._whole(name, 1)
        for name in ("train_size", "val_size", "interval", "jobs"):
            self._whole(name, 1, optional=True)
        self._whole("seed", 0)
        self._whole("pad", 0)
        for name in ("momentum", "weight_decay", "offset"):
            self._real(name)
        for name in ("strength", "damping", "width", "ewc_lambda"):
            self._real(name, optional=True)
        self._real("lr")
        self._real("max_angle", low=-math.inf)
        for item in fields(self):
            choices, value = item.metadata["choices"], getattr(self, item.name)
            if choices and value not in choices and (value, item.default) != (None, None):
                self._refuse(item.name, f"choose one of {', '.join(choices)}")
        for name in ("bias", "centre"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "give true or false")
        for name in ("data", "device"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                self._refuse(name, "give a name")
        self._combinations()

    def _combinations(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            shown = unknown[0] if unknown else ""
            raise OptionError(f"there is no method {shown!r}; choose from {', '.join(METHODS)}")
        if len(set(self.methods)) < len(self.methods):
            self._refuse("methods", "name each method once")
        if not all(isinstance(width, int) and width >= 1 for width in self.hidden):
            self._refuse("hidden", "give whole numbers, 1 or more, e.g. 100,100")
        if self.seed + self.seeds > _MAX_SEED:
            self._refuse("seed", f"give one below {_MAX_SEED} - seeds")
        if self.lr == 0:
            self._refuse("lr", "give a number above 0")
        if self.momentum >= 1:
            self._refuse("momentum", "give a number below 1")
        if self.momentum and self.optimizer != "sgd":
            self._refuse("momentum", f"it is sgd's: leave it away for {self.optimizer}")

    def _refuse(self, name: str, remedy: str) -> None:
        option = name.replace("_", "-")
        raise OptionError(f"{option} is {getattr(self, name)!r}: {remedy}")

    def _whole(self, name: str, low: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            self._refuse(name, f"give a whole number, {low} or more")

    def _real(self, name: str, *, low: float = 0.0, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value < low:
            bound = "" if low == -math.inf else f", {low:g} or more"
            self._refuse(name, f"give a finite number{bound}")
        object.__setattr__(self, name, float(value))  # 1 and 1.0 are the same run

    @property
    def report_seeds(self) -> range:
        """The seeds of the repeats that are reported."""
        return range(self.seed, self.seed + self.seeds)

    def headline(self) -> str:
        """Return one line that names the stream, the network and the training.

        Returns:
            E.g. "digits, 5 permuted tasks; mlp 100-100, sgd lr 0.05, ...".
        """
        kind = {"rotated": f"rotated tasks up to {self.max_angle:g}°"}
        tasks = kind.get(self.scenario, f"{self.scenario} tasks")
        size = "all" if self.train_size is None else self.train_size
        net = f"mlp {'-'.join(map(str, self.hidden))}" if self.model == "mlp" else "cnn"
        return (
            f"{self.data}, {self.tasks} {tasks}, {size} images a task; {net}, {self.optimizer} "
            f"lr {self.lr:g}, batch {self.batch_size}, {self.epochs} epochs; "
            f"{self.seeds} seeds from {self.seed}"
        )


def option_fields() -> tuple[Field[object], ...]:
    """Return the fields of ``CompareOptions``, whose metadata describe the options.

    Returns:
        Dataclass fields with ``help``, ``parse``, ``choices`` and ``metavar`` in their metadata.
    """
    return cast("tuple[Field[object], ...]", fields(CompareOptions))
