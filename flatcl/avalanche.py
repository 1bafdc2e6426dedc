"""LDC in Avalanche: ``LDCPlugin`` for any strategy, and the ``LDC`` strategy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatcl.core.choice import BasisOption
from flatcl.core.describe import Description
from flatcl.core.options import Directions, LDCOptions, OnBudget, Source
from flatcl.host import ensure_avalanche
from flatcl.ldc_plugin import LDCPlugin
from flatcl.offset import OldClassOffset

ensure_avalanche()

from avalanche.core import BasePlugin  # noqa: E402
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

_DEFAULT = LDCOptions()

__all__ = ["LDC", "LDCPlugin", "OldClassOffset", "PseudoRehearsal"]


class PseudoRehearsal(LDCPlugin):
    """LDC's pseudo-rehearsal without its constraint: it composes with every method.

    Adds to the loss how far the network's predictions at Gaussian pseudo-inputs are from what they
    were when the experience began; see ``flatcl.core.rehearsal``. LDC has it already.

    Args:
        pseudo_inputs: draws a step; None for LDC's own number.
        seed: of the draws, and of the inputs whose moments are taken.

    Raises:
        OptionError: an argument is out of its range.
    """

    def __init__(self, pseudo_inputs: int | None = None, seed: int = 0) -> None:
        number = LDCOptions().use_pseudo_inputs if pseudo_inputs is None else pseudo_inputs
        super().__init__(strength=0.0, pseudo_inputs=number, seed=seed)


class LDC(SupervisedTemplate):
    """The LDC strategy: Avalanche's ``EWC`` by another name, and with nothing to tune.

    Takes what ``avalanche.training.EWC`` takes, with the fields of ``flatcl.LDCOptions`` in place
    of EWC's own. ``ewc_lambda``, ``mode``, ``decay_factor`` and ``keep_importance_data`` are
    accepted from an old script, ignored, and named in one warning. They stand where EWC has them:
    Avalanche takes arguments without a name in the order of the names.

    Args:
        model: the network.
        optimizer: the optimiser that trains it.
        criterion: the loss.
        ewc_lambda: of EWC; ignored, as the next three.
        mode: of EWC; ignored.
        decay_factor: of EWC; ignored.
        keep_importance_data: of EWC; ignored.
        train_mb_size: samples a training minibatch.
        train_epochs: epochs an experience.
        eval_mb_size: samples an evaluation minibatch.
        device: where to train.
        plugins: further plugins; the caller's list is left as it is.
        evaluator: metrics and loggers.
        eval_every: as in every Avalanche strategy.
        strength: field of ``LDCOptions``, as all down to ``on_budget``.
        pseudo_inputs: field of ``LDCOptions``.
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
        hold_statistics: field of ``LDCOptions``.
        witnesses: field of ``LDCOptions``.
        budget: field of ``LDCOptions``.
        on_budget: field of ``LDCOptions``.
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
        ewc_lambda: float | None = None,
        mode: str | None = None,
        decay_factor: float | None = None,
        keep_importance_data: bool | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        strength: float = _DEFAULT.strength,
        pseudo_inputs: int | None = _DEFAULT.pseudo_inputs,
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
        hold_statistics: float = _DEFAULT.hold_statistics,
        witnesses: int = _DEFAULT.witnesses,
        budget: float | None = _DEFAULT.budget,
        on_budget: OnBudget = _DEFAULT.on_budget,
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
            pseudo_inputs=pseudo_inputs,
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
            hold_statistics=hold_statistics,
            witnesses=witnesses,
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

    def describe(self) -> Description:
        """Return ``LDCPlugin.describe()``.

        Returns:
            One line a parameter.
        """
        return self.ldc.describe()
