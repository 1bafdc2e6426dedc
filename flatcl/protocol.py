"""What a comparison does: its options, their meaning and their checks (no heavy imports here)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from flatcl.errors import OptionError
from flatcl.options import Options, data_option, names, option, shown, size, widths

METHODS = ("naive", "ewc", "ewc-online", "si", "mas", "lwf", "replay", "joint", "ldc")
"""The methods that can be compared, in the order in which tables show them."""

SCENARIOS = ("permuted", "rotated", "split-task", "split-domain", "split-class")
OF_LDC = (
    "strength", "pseudo_inputs", "interval", "source", "damping", "width", "stiffness",
    "directions",
)  # fmt: skip
OF_PUBLISHED = ("strength", "interval")
SOURCES = ("probe", "fisher", "sgd", "published")
VARIANTS = ("variance", "equal", "isotropic", "shuffled", "flipped")
_DEVICE = r"[a-z][a-z0-9]*(:[0-9]{1,3})?"
_MOST_TOLD = 10_000  # tasks, repeats or threads: a list of more would fill the memory by itself
_MAX_SEED = 2**32  # tuning seeds lie above it


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Everything that ``flatcl compare`` can be told; its fields are the command's options.

    A field's ``metadata["help"]`` says what it means; ``flatcl compare --help`` prints them. LDC's
    options are None for its own defaults, ``ewc_lambda`` is None to be tuned, ``train_size`` is
    None for all images, ``val_size`` for a tenth of the training images, ``jobs`` for as many as
    there are cores.

    Raises:
        OptionError: a value cannot be used; the message names it and what to give.
    """

    data: str = data_option()
    scenario: str = option("permuted", "how tasks are made of them", choices=SCENARIOS)
    tasks: int = option(5, "number of tasks", int)
    methods: tuple[str, ...] = option(
        ("naive", "ewc", "ldc"), f"comma-separated, of {', '.join(METHODS)}", names, metavar="A,B"
    )
    seeds: int = option(3, "number of repeats", int)
    seed: int = option(0, "first repeat's seed; the others follow it", int, metavar="FIRST")
    epochs: int = option(8, "passes over each task's images", int)
    batch_size: int = option(32, "images a training step", int)
    lr: float = option(0.05, "learning rate", float)
    optimizer: str = option("sgd", "optimiser", choices=("sgd", "adam", "adamw"))
    momentum: float = option(0.0, "momentum of sgd", float)
    weight_decay: float = option(0.0, "weight decay of the optimiser", float)
    model: str = option("mlp", "network", choices=("mlp", "cnn"))
    hidden: tuple[int, ...] = option(
        (100, 100), "widths of the mlp's hidden layers", widths, metavar="N,N"
    )
    bias: bool = option(True, "layers without biases")
    init: str = option(
        "torch", "initial weights: torch's own, or he (normal, 2/fan-in)", choices=("torch", "he")
    )
    train_size: int | None = option(
        None, "training images a task, drawn at random; all takes every one", size, metavar="N|all"
    )
    val_size: int | None = option(
        None, "images cut from the training set first, to tune rivals on [a tenth]", int
    )
    max_angle: float = option(90.0, "last task's angle in degrees, rotated only", float)
    pad: int = option(0, "zero pixels added on each side", int)
    class_order: str = option(
        "natural",
        "classes of split tasks: by number, or in an order drawn by the seed",
        choices=("natural", "drawn"),
    )
    first_tasks: int | None = option(
        None, "train and judge only so many of the tasks, the first [all]", int
    )
    strength: float | None = option(None, "LDC: how firmly old tasks are held", float)
    pseudo_inputs: int | None = option(
        None, "LDC: draws from Gaussians of earlier inputs to rehearse at; 0 for none", int
    )
    interval: int | None = option(None, "LDC: steps from one pull to the next, at most", int)
    source: str | None = option(None, "LDC: where stiffness is measured", choices=SOURCES)
    damping: float | None = option(None, "LDC: share of mean stiffness added", float)
    width: float | None = option(None, "LDC: size of the probe's perturbation", float)
    centre: bool = option(True, "LDC: tasks do not end at the centre of the fluctuation")
    stiffness: str | None = option(
        None,
        "LDC, an ablation: variance, equal, isotropic, shuffled, flipped or power:P",
    )
    directions: str | None = option(
        None,
        "LDC, an ablation: whose eigenbasis is used",
        choices=("fluctuation", "fisher", "random"),
    )
    rehearsal: bool = option(False, "every method but LDC, which has it: add its pseudo-rehearsal")
    offset: float = option(
        0.0,
        "every method: subtracted in the training loss from the logits of classes that earlier "
        "tasks had and this one lacks, which is so in split-class alone",
        float,
    )
    memory: int = option(200, "images that replay may keep", int)
    ewc_lambda: float | None = option(
        None, "λ of ewc and ewc-online; not given, it is tuned on validation images", float
    )
    device: str = option("cpu", "where to train, e.g. cpu or cuda")
    threads: int = option(1, "threads of torch in each run", int)
    jobs: int | None = option(None, "runs at the same time [cores / threads]", int)

    def __post_init__(self) -> None:
        self._list("methods", "naive,ldc")
        for name in ("epochs", "batch_size", "memory"):
            self._whole(name, 1)
        for name in ("tasks", "seeds", "threads"):
            self._whole(name, 1, most=_MOST_TOLD)
        for name in ("train_size", "val_size", "interval", "jobs", "first_tasks"):
            self._whole(name, 1, optional=True)
        if self.first_tasks is not None and self.first_tasks > self.tasks:
            self._refuse("first_tasks", f"there are {self.tasks} tasks, give as many at most")
        self._seed()
        self._whole("pseudo_inputs", 0, optional=True)
        self._whole("pad", 0)
        for name in ("momentum", "weight_decay", "offset"):
            self._real(name)
        for name in ("strength", "damping", "width", "ewc_lambda"):
            self._real(name, optional=True)
        self._real("lr")
        self._real("max_angle", low=-math.inf)
        self._choices()
        for name in ("bias", "centre", "rehearsal"):
            self._switch(name)
        self._data()
        if not isinstance(self.device, str) or not re.fullmatch(_DEVICE, self.device):
            self._refuse("device", "give a name, e.g. cpu, cuda or cuda:1")
        self._variant()
        self._combinations()

    def _combinations(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            name = shown(unknown[0] if unknown else "")
            raise OptionError(f"there is no method {name}; choose from {', '.join(METHODS)}")
        if len(set(self.methods)) < len(self.methods):
            self._refuse("methods", "name each method once")
        self._hidden(0, "100,100")
        if self.seed + self.seeds > _MAX_SEED:
            self._refuse("seed", f"give one below {_MAX_SEED} - seeds")
        if self.lr == 0:
            self._refuse("lr", "give a number above 0")
        if self.momentum >= 1:
            self._refuse("momentum", "give a number below 1")
        if self.source == "published":
            strange = [n for n in OF_LDC if n not in (*OF_PUBLISHED, "source")]
            for name in strange:
                if getattr(self, name) is not None:
                    self._refuse(name, "LDC as published has no such option: leave it away")
        if self.momentum and self.optimizer != "sgd":
            self._refuse("momentum", f"it is sgd's: leave it away for {self.optimizer}")

    def _variant(self) -> None:
        if self.stiffness is None or self.stiffness in VARIANTS:
            return
        name, _, exponent = str(self.stiffness).partition(":")
        try:
            good = name == "power" and 0.0 < float(exponent) < math.inf
        except ValueError:
            good = False
        if not good:
            known = ", ".join(VARIANTS)
            self._refuse("stiffness", f"choose one of {known}, or power:P with P above 0")

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
        first = "" if self.first_tasks is None else f"the first {self.first_tasks} of "
        size = "all" if self.train_size is None else self.train_size
        net = f"mlp {'-'.join(map(str, self.hidden))}" if self.model == "mlp" else "cnn"
        return (
            f"{self.data}, {first}{self.tasks} {tasks}, {size} images a task; {net}, "
            f"{self.optimizer} lr {self.lr:g}, batch {self.batch_size}, {self.epochs} epochs; "
            f"{self.seeds} seeds from {self.seed}"
        )
