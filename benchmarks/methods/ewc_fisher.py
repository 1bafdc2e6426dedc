"""Elastic weight consolidation with the Fisher information of single samples, in three variants.

A library's EWC squares gradients of whole batches, which at a fitted model is about 1/B of the
Fisher information, B the batch size; here every sample counts by itself.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.methods._fisher import Directions, empirical, exact, fisher_diagonal, sampled
from benchmarks.methods._passes import task_batches
from benchmarks.methods._weights import QuadraticPenalty, weights_of
from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.training.templates import SupervisedTemplate  # noqa: E402

FISHER_SAMPLES = 1000
"""Training samples a task. Van de Ven (ICLR blog posts 2025, "On the computation of the Fisher
information in continual learning"): 500 do nearly as well as all."""

_GRID = (3.0, 10.0, 30.0, 100.0, 300.0)  # as for Avalanche's own EWC


class FisherEWC(QuadraticPenalty):
    """The penalty ``½ λ Σ_t Σ_i F_t,i (w_i − w_t,i)²`` over all earlier tasks t.

    This is EWC with separate terms, every task at its own anchor. The sum of two parabolas
    ``F (w − m)² + F_t (w − w_t)²`` is ``(F + F_t)(w − m')² + c`` with
    ``m' = m + F_t/(F + F_t) · (w_t − m)`` and ``c = F F_t/(F + F_t) · (w_t − m)²``, so that the
    sum over tasks is kept exactly in 2P numbers and one constant, whatever their number.

    Source: Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3, the sum over tasks as in their
    section 2.1. The Fisher information is a mean over at most ``FISHER_SAMPLES`` random samples of
    the task, with its training transforms, for speed.

    Args:
        ewc_lambda: λ ≥ 0.
        directions: whose labels the Fisher information takes.
    """

    def __init__(self, ewc_lambda: float, directions: Directions) -> None:
        super().__init__(ewc_lambda / 2)
        self.directions = directions
        self.constant = 0.0

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the penalty to ``strategy.loss``, from the second task on.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        super().before_backward(strategy, **kwargs)
        if self.anchor is not None:
            strategy.loss = strategy.loss + self.factor * self.constant

    @torch.no_grad()
    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Measure the task's Fisher information and add its parabola to the others.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.

        Raises:
            OptionError: the loss is no cross-entropy.
        """
        if not isinstance(strategy._criterion, nn.CrossEntropyLoss):
            raise OptionError(
                f"the loss is {strategy._criterion}: the Fisher information here is that of a "
                "softmax, give nn.CrossEntropyLoss()"
            )
        x, y, *_, t = next(task_batches(strategy, FISHER_SAMPLES, count=FISHER_SAMPLES))
        fisher = fisher_diagonal(strategy.model, (x, y, t), self.directions)
        weights = weights_of(strategy.model)
        if self.anchor is None or self.importance is None:
            self.anchor, self.importance = weights, fisher
            return
        total = self.importance + fisher
        share = torch.where(total > 0, fisher / total, 1.0)  # any anchor serves where both are 0
        moved = weights - self.anchor
        self.constant += float((self.importance * share * moved.square()).sum())
        self.anchor = self.anchor + share * moved
        self.importance = total


RIVALS = (
    Rival("ewc-exact", "ewc_lambda", _GRID, lambda x, _: [FisherEWC(x, exact)]),
    Rival("ewc-sampled", "ewc_lambda", _GRID, lambda x, _: [FisherEWC(x, sampled)]),
    Rival("ewc-empirical", "ewc_lambda", _GRID, lambda x, _: [FisherEWC(x, empirical)]),
)
"""EWC by the expectation over predicted labels, by one label drawn from the predictions a sample,
and by the true labels."""
