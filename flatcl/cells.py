"""One run of a comparison: a method trained on a stream, task by task, and measured."""

from __future__ import annotations

import copy
import gc
import math
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from flatcl.avalanche import LDCPlugin, OldClassOffset, PseudoRehearsal
from flatcl.clock import EpochClock
from flatcl.data import kept_images
from flatcl.errors import FlatclError, NonFiniteError, OptionError
from flatcl.evaluation import judge
from flatcl.host import ensure_avalanche
from flatcl.models import make_model
from flatcl.protocol import OF_LDC, OF_PUBLISHED, CompareOptions
from flatcl.published_plugin import PublishedLDCPlugin
from flatcl.records import Cell, Record
from flatcl.rivals import RIVALS, bytes_held
from flatcl.seeds import derive_seed
from flatcl.streams import Stream, StreamOptions, fast, make_stream

ensure_avalanche()
from avalanche.benchmarks.scenarios import CLScenario  # noqa: E402
from avalanche.logging import BaseLogger  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

ModelSource: TypeAlias = nn.Module | Callable[[int], nn.Module]
BenchmarkSource: TypeAlias = "CLScenario | Callable[[int], CLScenario]"
OptimizerSource: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Own:
    """What a caller brings in place of the options' network, stream or optimiser.

    Attributes:
        model: copied for each run, or called with the run's seed.
        benchmark: used in each run, or called with the run's seed.
        optimizer: called with the model's parameters.
    """

    model: ModelSource | None = None
    benchmark: BenchmarkSource | None = None
    optimizer: OptimizerSource | None = None

    def given(self) -> bool:
        """Return whether there is anything of the caller's.

        Returns:
            True if so; then the options alone do not determine a run.
        """
        return not (self.model is None and self.benchmark is None and self.optimizer is None)


def run_cell(options: CompareOptions, cell: Cell, own: Own | None = None) -> Record:
    """Return the record of one run, which depends on the arguments alone.

    Torch's global random state and number of threads are set for the run, because Avalanche's
    buffers and loaders draw from that state, and restored after it. What the run raises becomes
    a record: of a "diverged" run for a NonFiniteError, else of a "failed" one.

    Args:
        options: of the comparison.
        cell: the run.
        own: the caller's model, benchmark or optimiser.

    Returns:
        The record.

    Raises:
        FlatclError: an option or the data set cannot be used, whatever the run.
    """
    device = _device(options.device)
    run = _Run(options, cell, own or Own(), device)
    threads = torch.get_num_threads()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(cell.seed, "training"))
        torch.set_num_threads(options.threads)
        try:
            run.train()
        except NonFiniteError as error:
            return run.record("diverged", str(error))
        except FlatclError:
            raise
        except Exception:
            run.accuracy, run.loss = [], []
            return run.record("failed", traceback.format_exc())
        finally:
            torch.set_num_threads(threads)
            run.strategy = None
            # Strategies and their plugins refer to each other: without this a process that makes
            # many runs keeps the images of all of them.
            gc.collect()
    return run.record("done")


def check(options: CompareOptions) -> None:
    """Raise at once what would stop every run.

    An OptionError for a device or scenario, a DataError for a data set that cannot be used.

    Args:
        options: of the comparison.
    """
    _device(options.device)
    _stream(options, 0)


def _stream(options: CompareOptions, seed: int) -> Stream:
    wanted = StreamOptions(
        scenario=cast("Any", options.scenario),
        tasks=options.tasks,
        train_size=options.train_size,
        val_size=options.val_size,
        max_angle=options.max_angle,
        pad=options.pad,
        class_order=cast("Any", options.class_order),
    )
    return make_stream(kept_images(options.data), wanted, seed=seed)


class _Run:
    def __init__(self, options: CompareOptions, cell: Cell, own: Own, device: torch.device) -> None:
        self.options, self.cell, self.own, self.device = options, cell, own, device
        self.accuracy: list[list[float] | None] = []
        self.loss: list[list[float | None] | None] = []
        self.seconds: list[float] = []
        self.task_end: list[float] = []
        self.held: list[int] = []
        self.clock = EpochClock()
        self.strategy: Any = None

    def record(
        self, status: Literal["done", "diverged", "failed"], error: str | None = None
    ) -> Record:
        done = status == "done"
        return Record(
            self.cell,
            status,
            self.accuracy,
            self.seconds,
            self.held[-1] if done else None,
            error,
            self.loss,
            self.task_end,
            self.held[0] if done else None,
        )

    def train(self) -> None:
        benchmark, model = self._stream()
        number = self.options.first_tasks
        judged = _judged(benchmark, self.cell.split)[:number]
        self.strategy = self._strategy(model.to(self.device))
        experiences = list(benchmark.train_stream)[:number]
        if self.cell.method == "joint":  # one call on all tasks: only the last row exists
            self.accuracy = [None] * (len(experiences) - 1)
            self.loss = [None] * (len(experiences) - 1)
            experiences = [experiences]
        for experience in experiences:
            self._train(experience)
            self._judge(model, judged)
        self.held.append(bytes_held(self.strategy))

    def _judge(self, model: nn.Module, judged: Sequence[object]) -> None:
        found = judge(model, judged, device=self.device)
        self.accuracy.append([one.accuracy for one in found])
        # JSON has no infinity: None for a target without an output.
        self.loss.append([one.loss if math.isfinite(one.loss) else None for one in found])

    def _train(self, experience: object) -> None:
        start = time.perf_counter()
        self.strategy.train(experience)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        stop = time.perf_counter()
        self.seconds.append(stop - start)
        self.task_end.append(stop - self.clock.epoch_ended)
        if not self.held:
            self.held.append(bytes_held(self.strategy))
        for name, weight in self.strategy.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise NonFiniteError(
                    f"{self.cell.method}: {name} is not finite after task {len(self.seconds)}; "
                    f"lower lr (now {self.options.lr:g}) or the method's own strength"
                )

    def _stream(self) -> tuple[CLScenario, nn.Module]:
        options, seed = self.options, self.cell.seed
        benchmark, model = self.own.benchmark, self.own.model
        if callable(benchmark):
            benchmark = benchmark(seed)
        stream = None
        if benchmark is None:
            stream = _stream(options, seed)
            benchmark = stream.benchmark
        if isinstance(model, nn.Module):
            return benchmark, copy.deepcopy(model)
        if model is not None:
            return benchmark, model(seed)
        if stream is None:
            raise OptionError("benchmark is given without a model: give model= that fits it")
        return benchmark, make_model(
            stream.input_shape,
            stream.n_outputs,
            seed=seed,
            outputs_per_task=stream.outputs_per_task,
            kind=cast("Any", options.model),
            hidden=options.hidden,
            bias=options.bias,
            init=cast("Any", options.init),
        )

    def _strategy(self, model: nn.Module) -> SupervisedTemplate:
        options, method = self.options, self.cell.method
        own: list[Any] = [OldClassOffset(options.offset)] if options.offset > 0 else []
        if options.rehearsal and not method.startswith("ldc"):
            own.append(PseudoRehearsal(seed=derive_seed(self.cell.seed, "noise", "rehearsal")))
        own.append(self.clock)
        common: dict[str, Any] = {
            "model": model,
            "optimizer": self._optimizer(model),
            "criterion": nn.CrossEntropyLoss(),
            "train_mb_size": options.batch_size,
            "train_epochs": options.epochs,
            "device": self.device,
            "plugins": own,
            "evaluator": EvaluationPlugin(loggers=[BaseLogger()]),  # none would be warned about
        }
        if method != "ldc":
            return RIVALS[method].build(self.cell.value, memory=options.memory, **common)
        common["plugins"] = [*own, self._ldc()]
        return fast(SupervisedTemplate)(**common)

    def _ldc(self) -> LDCPlugin:
        options = self.options
        names = OF_PUBLISHED if options.source == "published" else OF_LDC
        chosen = {name: getattr(options, name) for name in names}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        chosen["seed"] = derive_seed(self.cell.seed, "noise", self.cell.method)
        if options.source == "published":
            return PublishedLDCPlugin(**chosen)
        if not options.centre:
            chosen["centre"] = False
        return LDCPlugin(**chosen)

    def _optimizer(self, model: nn.Module) -> Optimizer:
        options = self.options
        if self.own.optimizer is not None:
            return self.own.optimizer(model.parameters())
        weights: Iterable[Tensor] = model.parameters()
        if options.optimizer == "sgd":
            return SGD(
                weights, options.lr, momentum=options.momentum, weight_decay=options.weight_decay
            )
        kind: type[Adam] = {"adam": Adam, "adamw": AdamW}[options.optimizer]
        return kind(weights, lr=options.lr, weight_decay=options.weight_decay)


def _judged(benchmark: CLScenario, split: str) -> Sequence[object]:
    names = ("test_stream",) if split == "test" else ("val_stream", "valid_stream")
    for name in names:
        if hasattr(benchmark, name):
            return list(getattr(benchmark, name))
    raise OptionError(
        f"the benchmark has no {names[0]}: " + (
            "give it one"
            if split == "test"
            else "make one with avalanche's benchmark_with_validation_stream, or fix ewc_lambda "
            "and leave the other methods that are tuned out"
        )
    )  # fmt: skip


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"device {name!r} cannot be used ({reason}): try cpu") from error
    return device
