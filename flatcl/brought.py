"""A caller's own network, benchmark and optimiser: checked, and the same for every method."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flatcl.cells import BenchmarkSource, ModelSource, OptimizerSource, Own
from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.protocol import CompareOptions
from flatcl.records import Cell
from flatcl.seeds import derive_seed

ensure_avalanche()
from avalanche.models import MultiTaskModule  # noqa: E402
from avalanche.models.dynamic_modules import avalanche_model_adaptation  # noqa: E402

_SEEDS = 2**32  # NumPy's own and many a data set's go no further
# Fields of the options that say nothing where the caller brings the thing itself.
_OF_STREAM = (
    "data", "scenario", "tasks", "train_size", "val_size", "max_angle", "pad", "class_order",
)  # fmt: skip
_OF_MODEL = ("model", "hidden", "bias", "init")
_OF_OPTIMIZER = ("optimizer", "lr", "momentum", "weight_decay")


class _Seeded:
    """One experience, before which torch's global random state is set.

    Avalanche's loaders draw the order of the batches from that state, and so do methods for their
    own purposes: without this, methods would part after the first task.
    """

    def __init__(self, experience: object, seed: int) -> None:
        self.experience, self.seed = experience, seed

    def __iter__(self) -> Iterator[object]:
        torch.manual_seed(self.seed)
        yield self.experience


class _Streams:
    """A benchmark whose tasks begin at random states of their own."""

    def __init__(self, benchmark: Any, seed: int, *, together: bool) -> None:
        self._benchmark = benchmark
        train = list(benchmark.train_stream)
        seeds = [derive_seed(seed, "training", task) for task in range(len(train))]
        pairs = zip(train, seeds, strict=True)
        self.train_stream = train if together else [_Seeded(*pair) for pair in pairs]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._benchmark, name)


@dataclass(frozen=True)
class Brought:
    """What a caller brings to a comparison in place of what the options name.

    Attributes:
        model: copied for each run, or called with the run's seed.
        benchmark: used in each run, or called with the run's seed.
        optimizer: called with the model's parameters.
    """

    model: ModelSource | None = None
    benchmark: BenchmarkSource | None = None
    optimizer: OptimizerSource | None = None
    _latest: list[Any] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be what it is given as.

        Raises:
            OptionError: it is of the wrong kind, or a benchmark comes without a model.
        """
        model, benchmark, optimizer = self.model, self.benchmark, self.optimizer
        if isinstance(model, type) or not (isinstance(model, nn.Module | None) or callable(model)):
            raise OptionError(
                f"model is {_shown(model)}: give a network, which is copied for each run, or a "
                "function of the seed that returns one"
            )
        if benchmark is not None and model is None:
            raise OptionError("benchmark is given without a model: give model= that fits it")
        if benchmark is not None and not callable(benchmark):
            _lengths(benchmark)
        if isinstance(optimizer, Optimizer) or not (optimizer is None or callable(optimizer)):
            raise OptionError(
                f"optimizer is {_shown(optimizer)}: give a function of the model's parameters "
                "that returns one, for instance lambda weights: torch.optim.SGD(weights, lr=0.1)"
            )

    @property
    def given(self) -> bool:
        """Whether there is anything: then the options alone do not determine a run."""
        return not (self.model is None and self.benchmark is None and self.optimizer is None)

    def of(self, cell: Cell) -> Own:
        """Return it for one run.

        Args:
            cell: the run. Its tasks begin at random states that are the same for every method; but
                joint training has one task.

        Returns:
            The model with the heads of all tasks, where it has a head a task: those of tasks to
            come are judged too.
        """
        seed, together = cell.seed % _SEEDS, cell.method == "joint"

        def benchmark(_: int) -> Any:
            made = self.benchmark(seed) if callable(self.benchmark) else self.benchmark
            _lengths(made)
            self._latest[:] = [made]
            return _Streams(made, seed, together=together)

        def model(_: int) -> nn.Module:
            given: Any = self.model
            if isinstance(given, nn.Module):
                made = copy.deepcopy(given)
            else:
                made = given(seed)
                if not isinstance(made, nn.Module):
                    raise OptionError(f"model(seed) returned {_shown(made)}: return a network")
            if any(isinstance(layer, MultiTaskModule) for layer in made.modules()):
                for experience in self._latest[0].train_stream if self._latest else ():
                    avalanche_model_adaptation(made, experience)
            return made

        return Own(
            None if self.model is None else model,
            None if self.benchmark is None else benchmark,
            self.optimizer,
        )

    def config(self, options: CompareOptions) -> dict[str, object]:
        """Return what was compared, for ``summary.json``.

        Args:
            options: of the comparison.

        Returns:
            The options, None where they do not count; and under "own" the kinds of what does.
        """
        brought = (
            ("benchmark", self.benchmark, _OF_STREAM),
            ("model", self.model, _OF_MODEL),
            ("optimizer", self.optimizer, _OF_OPTIMIZER),
        )
        found, own = asdict(options), {}
        for name, value, fields in brought:
            if value is not None:
                own[name] = _name(value)
                found |= dict.fromkeys(fields)
        return {**found, "own": own} if own else found

    def headline(self, options: CompareOptions) -> str:
        """Return one line that names the stream, the network and the training.

        Args:
            options: of the comparison.

        Returns:
            The options' own line where nothing was brought.
        """
        if not self.given:
            return options.headline()
        stream, network, optimizer = (
            f"{options.data}, {options.tasks} {options.scenario} tasks",
            options.model,
            f"{options.optimizer} lr {options.lr:g}",
        )
        if self.benchmark is not None:
            stream = f"own benchmark ({_name(self.benchmark)})"
        if self.model is not None:
            network = f"own network ({_name(self.model)})"
        if self.optimizer is not None:
            optimizer = f"own optimiser ({_name(self.optimizer)})"
        return (
            f"{stream}; {network}, {optimizer}, batch {options.batch_size}, {options.epochs} "
            f"epochs; {options.seeds} seeds from {options.seed}"
        )


def _lengths(benchmark: object) -> None:
    """Refuse what is no benchmark, or one that does not judge each task that it trains.

    Raises:
        OptionError: it is such.
    """
    lengths = {
        name: len(list(getattr(benchmark, name)))
        for name in ("train_stream", "test_stream", "val_stream", "valid_stream")
        if hasattr(benchmark, name)
    }
    if "train_stream" not in lengths or "test_stream" not in lengths:
        raise OptionError(
            f"the benchmark is {_shown(benchmark)}, without a train_stream and a test_stream: give "
            "an Avalanche benchmark, or a function of the seed that returns one"
        )
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{number} in {name}" for name, number in lengths.items())
        raise OptionError(
            f"the benchmark has experiences {told}: each task that is trained is judged on data of "
            "its own, so give as many of each; split a test set that serves all of them"
        )


def _name(value: object) -> str:
    return str(getattr(value, "__qualname__", type(value).__name__))


def _shown(value: object) -> str:
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {kind}"
