"""LDC in Avalanche: ``LDCPlugin`` and the ``LDC`` strategy.

A thin adapter: hooks are translated into calls of ``flatcl.core.engine.Landscape``, nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flatcl.core.engine import Landscape
from flatcl.core.metric import StepMetric
from flatcl.core.options import LDCOptions, OnBudget, Source
from flatcl.errors import OptionError, StateError
from flatcl.experience import random_batches, training_steps
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


class LDCPlugin(BasePlugin):  # the base without per-step hooks: an empty hook costs a call a step
    """Adds LDC to a strategy; it needs no argument.

    Any template serves that calls ``before_training_exp``, ``after_update``,
    ``after_training_exp``, ``before_eval`` and ``after_eval``. One plugin object serves one
    strategy.

    Args:
        **options: fields of ``flatcl.LDCOptions``.

    Raises:
        OptionError: an option is unknown or out of its range.
    """

    supports_distributed = False

    def __init__(self, **options: Any) -> None:
        super().__init__()
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise OptionError(f"LDC has no option {unknown[0]!r}; it has {', '.join(_OPTIONS)}")
        self.options = LDCOptions(**options)
        self.landscape: Landscape | None = None
        self._owner: SupervisedTemplate | None = None
        self._evaluation = ExitStack()

    def fit(self, model: nn.Module, batches: Iterable[Sequence[Tensor] | Tensor]) -> None:
        """Take a pretrained model as task zero, before the strategy trains it.

        Args:
            model: the strategy's, on the device where it will be trained.
            batches: as of ``Landscape.fit``; the last part of each the task labels, if it needs
                them.

        Raises:
            StateError: an experience has been trained on, or ``fit`` was called before.
        """
        if self.landscape is not None:
            raise StateError("fit comes once, before the first experience: make a new LDCPlugin")
        # The strategy's own optimiser takes this one's place; none is needed to fit.
        self.landscape = self._landscape(model, SGD(model.parameters(), lr=0.0))
        self.landscape.fit(batches)

    def _landscape(self, model: nn.Module, optimizer: Optimizer) -> Landscape:
        def forward(batch: Sequence[Tensor]) -> Tensor:
            assert self.landscape is not None
            outputs: Tensor = avalanche_forward(self.landscape.model, batch[0], batch[-1])
            return outputs

        return Landscape(model, optimizer, options=self.options, forward=forward)

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
            self.landscape = self._landscape(strategy.model, strategy.optimizer)
        self.landscape.model = strategy.model
        if self.landscape.metric.optimizer is not strategy.optimizer:
            self.landscape.metric = StepMetric(strategy.optimizer)
        self.landscape.begin_task(training_steps(strategy, self.options))

    def after_update(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Count the optimiser's step; pull where one is due; stop where the budget says so.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self.landscape is not None
        self.landscape.step(len(strategy.mb_y))
        if self.landscape.over_budget:
            strategy.stop_training()

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """End the task: centre, measure, merge.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        assert self.landscape is not None
        self.landscape.end_task(
            random_batches(strategy, self.options, self.landscape.generator)
            if self.options.source == "probe"
            else None
        )
        if self.options.budget is not None and self.options.on_budget == "stop":
            # Avalanche clears the mark only when another epoch would have begun.
            strategy._stop_training = False

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
        strength: field of ``LDCOptions``, as all down to ``on_budget``.
        interval: field of ``LDCOptions``.
        source: field of ``LDCOptions``.
        damping: field of ``LDCOptions``.
        width: field of ``LDCOptions``.
        centre: field of ``LDCOptions``.
        probe_inputs: field of ``LDCOptions``.
        probe_batch: field of ``LDCOptions``.
        seed: field of ``LDCOptions``.
        per_task: field of ``LDCOptions``.
        budget: field of ``LDCOptions``.
        on_budget: field of ``LDCOptions``.
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
        probe_inputs: int = _DEFAULT.probe_inputs,
        probe_batch: int = _DEFAULT.probe_batch,
        seed: int = _DEFAULT.seed,
        per_task: bool = _DEFAULT.per_task,
        budget: float | None = _DEFAULT.budget,
        on_budget: OnBudget = _DEFAULT.on_budget,
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
            probe_inputs=probe_inputs,
            probe_batch=probe_batch,
            seed=seed,
            per_task=per_task,
            budget=budget,
            on_budget=on_budget,
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
