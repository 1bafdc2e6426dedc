"""The methods that LDC is compared with: Avalanche's own, three of them repaired.

Repaired means: made to do what its paper says, and nothing more. SI on the CPU is Naive as
shipped (its old weights are views of the live ones); MAS stops where the loss is exactly zero
and moves running statistics while it measures; LwF's teacher stays in training mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from flatcl.core.gradients import evaluation_mode
from flatcl.errors import OptionError
from flatcl.footprint import bytes_held as bytes_held
from flatcl.host import ensure_avalanche
from flatcl.streams import fast

ensure_avalanche()

from avalanche.models import avalanche_forward  # noqa: E402
from avalanche.training import JointTraining  # noqa: E402
from avalanche.training.plugins import (  # noqa: E402
    EWCPlugin,
    LwFPlugin,
    MASPlugin,
    ReplayPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.templates import SupervisedTemplate  # noqa: E402
from avalanche.training.utils import zerolike_params_dict  # noqa: E402


class RepairedSI(SynapticIntelligencePlugin):
    """Synaptic Intelligence that also works on the CPU, with importances ≥ 0.

    Avalanche 0.6.0 keeps old weights as ``param.detach().cpu().flatten()``. On the CPU that is
    a view of the live parameter, so no step is ever seen, every importance is 0, and training
    equals Naive's bit for bit: here they are copied. Its importances may also be negative
    where the path increased the loss, which pushes away from the anchor: here they are
    clamped at 0. The upper clamp at 0.001, the damping 1e-7 and the gradient of loss plus
    penalty along the path are Avalanche's; with them nearly all importances of a small network
    lie at the clamp, and the penalty is close to an L2 distance from the anchor.

    Source: Zenke et al. 2017, arXiv 1703.04200, eqs. 3-5.

    Args:
        si_lambda: factor of the penalty ½ Σ importance · (w − anchor)², ≥ 0.
    """

    def __init__(self, si_lambda: float) -> None:
        super().__init__(si_lambda=si_lambda)

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Keep a copy of the weights that the task starts from."""
        super().before_training_exp(strategy, **kwargs)
        self._detach(self.ewc_data[0])

    def before_training_iteration(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Keep a copy of the weights that the step starts from."""
        super().before_training_iteration(strategy, **kwargs)
        self._detach(self.syn_data["old_theta"])

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Take up the task's importances; let go of the copy that only a step needs."""
        super().after_training_exp(strategy, **kwargs)
        for importance in self.ewc_data[1].values():
            importance.data = importance.data.clamp(min=0.0)
        for name, weights in self.syn_data["new_theta"].items():
            self.syn_data["old_theta"][name].data = weights.data

    @staticmethod
    def _detach(weights: Mapping[str, object]) -> None:
        for held in weights.values():
            held.data = held.data.clone()  # type: ignore[attr-defined]


class RepairedMAS(MASPlugin):
    """Memory Aware Synapses that accepts a loss of zero and measures in evaluation mode.

    Avalanche 0.6.0 takes a loss of exactly 0 for a missing one and raises; and it measures
    importance in training mode, so that dropout is on and running statistics move. The rest
    is Avalanche's: importance from the batch-mean gradient of the squared output norm,
    averaged over tasks with weight ``alpha`` = ½.

    Source: Aljundi et al. 2018, arXiv 1711.09601, eqs. 3-5.

    Args:
        lambda_reg: factor of the penalty Σ importance · (w − anchor)², ≥ 0.
    """

    def __init__(self, lambda_reg: float) -> None:
        super().__init__(lambda_reg=lambda_reg)

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the penalty to ``strategy.loss``, from the second task on."""
        if not self.importance:
            return
        penalty = torch.zeros((), device=strategy.device)
        for name, weight in strategy.model.named_parameters():
            if name in self.importance and name in self.params:
                importance = self.importance[name].expand(weight.shape)
                anchor = self.params[name].expand(weight.shape)
                penalty = penalty + (importance * (weight - anchor).pow(2)).sum()
        strategy.loss = strategy.loss + self._lambda * penalty

    def _get_importance(self, strategy: SupervisedTemplate) -> dict[str, object]:
        model, data = strategy.model, strategy.experience.dataset
        importance = dict(zerolike_params_dict(model))
        batches = DataLoader(data, batch_size=strategy.train_mb_size, collate_fn=data.collate_fn)
        with evaluation_mode(model):
            for batch in batches:
                strategy.optimizer.zero_grad()
                out = avalanche_forward(model, batch[0].to(strategy.device), batch[-1])
                out.pow(2).sum(dim=1).mean().backward()
                for name, weight in model.named_parameters():
                    if weight.grad is not None:
                        importance[name].data += weight.grad.abs() / len(batches)
        strategy.optimizer.zero_grad()
        return importance


class RepairedLwF(LwFPlugin):
    """Learning without Forgetting whose teacher is in evaluation mode.

    Avalanche 0.6.0 leaves the copied model in training mode: its dropout is on and its running
    statistics drift with the new task's data. Two properties are kept: no factor
    temperature² (so ``alpha`` and the temperature, 2, act together), and a model that is no
    ``MultiTaskModule``, on a stream with task labels, distils only the first task's classes.

    Source: Li and Hoiem 2016, arXiv 1606.09282.

    Args:
        alpha: factor of the distillation loss, ≥ 0.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__(alpha=alpha, temperature=2)

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Copy the model as the next task's teacher."""
        super().after_training_exp(strategy, **kwargs)
        self.lwf.prev_model.eval()


class _QuietReplay(ReplayPlugin):
    """Avalanche's replay, without the deprecation warning it gives itself after every task."""

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        self.storage_policy.post_adapt(strategy, strategy.experience)


@dataclass(frozen=True)
class Rival:
    """One method of the comparison.

    Attributes:
        name: as given to ``flatcl compare --methods``.
        hyperparameter: name of the one number that is tuned; None if there is none.
        grid: its values to start from, equal ratios; empty if there is none.
        own_plugins: the method itself, made from the tuned number and the buffer's size.
        template: the strategy class that the plugins go into.
        stores_data: whether it keeps samples of earlier tasks.
        code: the files that have the method, if it is not flatcl's own; its runs are made anew
            when one of them changes.
    """

    name: str
    hyperparameter: str | None
    grid: tuple[float, ...]
    own_plugins: Callable[[float, int], list[SupervisedPlugin]]
    template: type[SupervisedTemplate] = SupervisedTemplate
    stores_data: bool = False
    code: tuple[Path, ...] = ()

    def build(
        self,
        value: float | None,
        *,
        memory: int = 200,
        plugins: Sequence[SupervisedPlugin] | None = None,
        **common: object,
    ) -> SupervisedTemplate:
        """Return the method as a strategy whose batches are read by tensor indexing.

        Args:
            value: the tuned number, ≥ 0; None where there is none.
            memory: samples that a replay buffer may hold, ≥ 1.
            plugins: the caller's, called before the method's own; the list is not changed.
            **common: what every Avalanche strategy takes: ``model``, ``optimizer``, ...

        Returns:
            The strategy, untrained.

        Raises:
            OptionError: ``value`` or ``memory`` cannot be used.
        """
        if self.hyperparameter is None:
            value = 0.0
        elif value is None or not math.isfinite(value) or value < 0:
            raise OptionError(f"{self.hyperparameter} is {value}: give a finite number ≥ 0")
        if memory < 1:
            raise OptionError(f"memory is {memory} samples: give at least 1")
        own = self.own_plugins(value, memory)
        return fast(self.template)(plugins=[*(plugins or []), *own], **common)


_RIVALS = (
    Rival("naive", None, (), lambda _, __: []),
    Rival("ewc", "ewc_lambda", (3.0, 10.0, 30.0, 100.0, 300.0), lambda x, _: [EWCPlugin(x)]),
    Rival(
        "ewc-online",
        "ewc_lambda",
        (3.0, 10.0, 30.0, 100.0, 300.0),
        # decay 1: the plain sum over tasks, and no second number to tune
        lambda x, _: [EWCPlugin(x, mode="online", decay_factor=1.0)],
    ),
    # importances are at most 0.001, hence the large factors
    Rival("si", "si_lambda", (1.0, 10.0, 100.0, 1e3, 1e4), lambda x, _: [RepairedSI(x)]),
    Rival("mas", "lambda_reg", (0.01, 0.1, 1.0, 10.0, 100.0), lambda x, _: [RepairedMAS(x)]),
    Rival("lwf", "alpha", (0.01, 0.1, 1.0, 10.0, 100.0), lambda x, _: [RepairedLwF(x)]),
    Rival("replay", None, (), lambda _, memory: [_QuietReplay(memory)], stores_data=True),
    Rival("joint", None, (), lambda _, __: [], template=JointTraining, stores_data=True),
)

RIVALS: dict[str, Rival] = {rival.name: rival for rival in _RIVALS}
"""The methods by name, in the order in which tables show them."""


def register(rival: Rival) -> None:
    """Make a method known to ``flatcl.cells`` beside the built-in ones.

    Args:
        rival: of a new name; the same object may be given again.

    Raises:
        OptionError: another method has the name.
    """
    if RIVALS.setdefault(rival.name, rival) is not rival:
        raise OptionError(f"there is a method {rival.name!r} already: give it another name")
