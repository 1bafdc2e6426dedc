"""LDC in Avalanche: ``LDCPlugin`` and the ``LDC`` strategy.

A thin adapter: hooks are translated into calls of ``flatcl.core.engine.Landscape``, nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatcl.core.choice import BasisOption
from flatcl.core.describe import Description
from flatcl.core.engine import Landscape
from flatcl.core.options import Directions, LDCOptions, Source
from flatcl.errors import OptionError, StateError
from flatcl.experience import boundary_of, random_batches, steps_of
from flatcl.host import ensure_avalanche
from flatcl.offset import OldClassOffset

ensure_avalanche()

from avalanche.core import BasePlugin  # noqa: E402
from avalanche.models import avalanche_forward  # noqa: E402
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

_OPTIONS = tuple(field.name for field in fields(LDCOptions))
_DEFAULT = LDCOptions()
__all__ = ["LDC", "LDCPlugin", "OldClassOffset"]


# The base without per-step hooks: an empty hook costs a call a step.
class LDCPlugin(BasePlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Adds LDC to a strategy; it needs no argument.

    Any template serves that calls ``before_training_exp``, ``after_update``,
    ``after_training_exp``, ``before_eval`` and ``after_eval``. One plugin object serves one
    strategy.
    On several processes, wrap the model in ``DistributedDataParallel``.

    Args:
        **options: fields of ``flatcl.LDCOptions``.

    Raises:
        OptionError: an option is unknown or out of its range.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise OptionError(f"LDC has no option {unknown[0]!r}; it has {', '.join(_OPTIONS)}")
        self.options = LDCOptions(**options)
        self.landscape: Landscape | None = None
        self._owner: SupervisedTemplate | None = None
        self._evaluation = ExitStack()
        self._seen: list[Any] = []  # data of the running task, in parts if it comes as a stream

    def __getstate__(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the strategy that loads it becomes the owner.

        Returns:
            Attributes by name.
        """
        return {**vars(self), "_owner": None, "_evaluation": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what ``__getstate__`` returned.

        Args:
            state: attributes by name.
        """
        self.__dict__.update(state)
        self._evaluation = ExitStack()

    def _forward(self, batch: Sequence[Tensor]) -> Tensor:
        assert self.landscape is not None
        outputs: Tensor = avalanche_forward(self.landscape.model, batch[0], batch[-1])
        return outputs

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Begin a task, after Avalanche has adapted the model and the optimiser.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.

        Raises:
            StateError: the plugin already serves another strategy.
        """
        if self._owner is not None and self._owner is not strategy:
            raise StateError(
                "this LDCPlugin already holds the tasks of another strategy: make one LDCPlugin "
                "for each strategy"
            )
        self._owner = strategy
        if self.landscape is None:
            self.landscape = self._landscape_of(strategy)
        boundary = boundary_of(strategy.experience, 1)
        if boundary.first:
            self.landscape.attach(strategy.model, strategy.optimizer)
            self.landscape.begin_task(steps_of(strategy) if boundary.last else None)
            self._seen = []
        self._seen.append(strategy.experience.dataset.eval())

    def _landscape_of(self, strategy: SupervisedTemplate) -> Landscape:
        return Landscape(
            strategy.model,
            strategy.optimizer,
            options=self.options,
            forward=self._forward,
        )

    def after_update(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Count the optimiser's step; pull where one is due.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self.landscape is not None
        self.landscape.step(len(strategy.mb_y) * self.landscape.peers.size)

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """End the task: centre, measure, merge.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self.landscape is not None
        if boundary_of(strategy.experience, len(self._seen)).last:
            peers, generator = self.landscape.peers, self.landscape.generator
            self.landscape.end_task(
                random_batches(
                    self._seen, self.options, generator, rank=peers.rank, size=peers.size
                )
                if self.options.source != "sgd"
                else None
            )
            self._seen = []

    def before_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Show pulled weights to an evaluation in mid-task.

        Args:
            strategy: the strategy that evaluates.
            **kwargs: unused.
        """
        if self.landscape is not None:
            self._evaluation.enter_context(self.landscape.evaluating())

    def after_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put the training's weights back, bit for bit.

        Args:
            strategy: the strategy that evaluates.
            **kwargs: unused.
        """
        self._evaluation.close()

    def bytes_held(self) -> int:
        """Return the bytes kept between tasks, constant in their number.

        Returns:
            Bytes, without the model and its optimiser.
        """
        return 0 if self.landscape is None else self.landscape.bytes_held()

    def describe(self) -> Description:
        """Return how every parameter of the model is held; ``print`` shows a table.

        Returns:
            One line a parameter.

        Raises:
            StateError: no task has begun.
        """
        if self.landscape is None:
            raise StateError("no task has begun: call describe() after the first train()")
        return self.landscape.describe()


def _steps(strategy: SupervisedTemplate) -> int | None:
    """Return the task's number of steps, None where it may stop early or cannot be known."""
    if any(type(plugin).__name__ == "EarlyStoppingPlugin" for plugin in strategy.plugins):
        return None
    try:
        return len(strategy.dataloader) * int(strategy.train_epochs)
    except (TypeError, AttributeError):
        return None


class LDC(SupervisedTemplate):
    """The LDC strategy: Avalanche's ``EWC`` by another name, and with nothing to tune.

    Takes what ``avalanche.training.EWC`` takes, with the fields of ``flatcl.LDCOptions`` in place
    of EWC's own. ``ewc_lambda``, ``mode``, ``decay_factor`` and ``keep_importance_data`` are
    accepted from an old script, ignored, and named in one warning.

    Args:
        model: the network.
        optimizer: the optimiser that trains it.
        criterion: the loss.
        train_mb_size: samples a training minibatch.
        train_epochs: epochs an experience.
        eval_mb_size: samples an evaluation minibatch.
        device: where to train.
        plugins: further plugins; the caller's list is left as it is.
        evaluator: metrics and loggers.
        eval_every: as in every Avalanche strategy.
        strength: field of ``LDCOptions``, as all down to ``seed``.
        interval: field of ``LDCOptions``.
        source: field of ``LDCOptions``.
        damping: field of ``LDCOptions``.
        width: field of ``LDCOptions``.
        centre: field of ``LDCOptions``.
        stiffness: field of ``LDCOptions``.
        directions: field of ``LDCOptions``.
        probe_inputs: field of ``LDCOptions``.
        probe_batch: field of ``LDCOptions``.
        basis: field of ``LDCOptions``.
        rank: field of ``LDCOptions``.
        seed: field of ``LDCOptions``.
        ewc_lambda: of EWC; ignored, as the next three.
        mode: of EWC; ignored.
        decay_factor: of EWC; ignored.
        keep_importance_data: of EWC; ignored.
        **kwargs: further arguments of ``SupervisedTemplate``.

    Raises:
        OptionError: an option is out of its range.
        TypeError: a keyword that neither LDC nor ``SupervisedTemplate`` knows.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor],
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        strength: float = _DEFAULT.strength,
        interval: int = _DEFAULT.interval,
        source: Source = _DEFAULT.source,
        damping: float | None = _DEFAULT.damping,
        width: float = _DEFAULT.width,
        centre: bool | None = _DEFAULT.centre,
        stiffness: str = _DEFAULT.stiffness,
        directions: Directions = _DEFAULT.directions,
        probe_inputs: int = _DEFAULT.probe_inputs,
        probe_batch: int = _DEFAULT.probe_batch,
        basis: BasisOption = _DEFAULT.basis,
        rank: int = _DEFAULT.rank,
        seed: int = _DEFAULT.seed,
        ewc_lambda: float | None = None,
        mode: str | None = None,
        decay_factor: float | None = None,
        keep_importance_data: bool | None = None,
        **kwargs: Any,
    ) -> None:
        of_ewc = {
            "ewc_lambda": ewc_lambda,
            "mode": mode,
            "decay_factor": decay_factor,
            "keep_importance_data": keep_importance_data,
        }
        ignored = [name for name, value in of_ewc.items() if value is not None]
        if ignored:
            warnings.warn(
                # The frames between are Avalanche's wrapper of every strategy's __init__.
                f"LDC has nothing to tune: {', '.join(ignored)} of EWC ignored",
                stacklevel=3,
            )
        self.ldc = LDCPlugin(
            strength=strength,
            interval=interval,
            source=source,
            damping=damping,
            width=width,
            centre=centre,
            stiffness=stiffness,
            directions=directions,
            probe_inputs=probe_inputs,
            probe_batch=probe_batch,
            basis=basis,
            rank=rank,
            seed=seed,
        )
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=[*(plugins or ()), self.ldc],
            evaluator=evaluator,
            eval_every=eval_every,
            **kwargs,
        )

    def bytes_held(self) -> int:
        """Return the bytes that LDC keeps between tasks.

        Returns:
            Bytes, without the model and its optimiser.
        """
        return self.ldc.bytes_held()

    def describe(self) -> Description:
        """Return ``LDCPlugin.describe()``.

        Returns:
            One line a parameter.
        """
        return self.ldc.describe()
