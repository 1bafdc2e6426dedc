"""Riemannian walk (RWalk): a running Fisher information and what each weight did for the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.methods._weights import QuadraticPenalty, gradient_of, weights_of
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.training.plugins import RWalkPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

ALPHA = 0.9
"""Weight of the newest Fisher information in the running one: the paper's experiments."""
INTERVAL = 10
"""Steps Δt from one score to the next: the paper's experiments."""
EPSILON = 1e-3
"""ε under the score: the authors' own code, github.com/facebookresearch/agem."""

_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)


class RWalk(QuadraticPenalty):
    """The penalty ``λ Σ (F + s)(w − anchor)²``, F and s each divided by its largest value.

    F is a running mean of squared gradients, s sums, over intervals of ``INTERVAL`` steps, how
    much the loss fell by a weight's move in units of how far the predictions moved:
    ``s += max(0, −Σ g · Δw) / (½ F (w_end − w_start)² + ε)``. After each task but the first s is
    the mean of its old value and of the task's own, which halves the past.

    Source: Chaudhry et al. 2018, arXiv 1801.10112, eqs. 6-8 and their section 4. As in the
    authors' own code, not in the text: F takes the mean of an interval once an interval (a mean
    over single steps with α = 0.9 would be little more than the last batch's), and negative scores
    are cut at 0 an interval. Departures: F starts at the first interval's mean, not at 0; an
    interval that a task's end cuts short counts too; the minimum, which is 0 wherever a weight is
    unused, is not subtracted. F squares gradients of batch means, as theirs does. Gradients are
    the training step's own less the penalty's in closed form, which spares a second pass; they
    hold what other plugins add to the loss. Avalanche 0.6.0's plugin puts the model in evaluation
    mode at every step and never back, and makes that second pass.

    Args:
        rwalk_lambda: λ ≥ 0.
    """

    def __init__(self, rwalk_lambda: float) -> None:
        super().__init__(rwalk_lambda)
        self.fisher: Tensor | None = None
        self.score: Tensor | None = None
        self._walk: _Walk | None = None

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Start a walk.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        self._walk = _Walk(weights_of(strategy.model), self.fisher)

    @torch.no_grad()
    def before_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Keep the weights and the task's own gradient that the step starts from.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        if self._walk is None:
            return
        weights, gradient = weights_of(strategy.model), gradient_of(strategy.model)
        if self.anchor is not None and self.importance is not None:
            gradient -= 2 * self.factor * self.importance * (weights - self.anchor)
        self._walk.leave(weights, gradient)

    @torch.no_grad()
    def after_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Take the step up.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        if self._walk is not None:
            self._walk.arrive(weights_of(strategy.model))

    @torch.no_grad()
    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Anchor the weights by the Fisher information and the score.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        walk, self._walk = self._walk, None
        if walk is None:
            return
        walk.close_interval()
        if walk.fisher is None:  # there was no step
            return
        self.fisher = walk.fisher
        self.score = walk.score if self.score is None else (self.score + walk.score) / 2
        self.importance = _to_one(self.fisher) + _to_one(self.score)
        self.anchor = weights_of(strategy.model)


class _Walk:
    """One task's way through the weights, in intervals."""

    def __init__(self, weights: Tensor, fisher: Tensor | None) -> None:
        self.fisher = fisher
        self.score = torch.zeros_like(weights)
        self._start = self._here = weights
        self._gradient = torch.zeros_like(weights)
        self._squares = torch.zeros_like(weights)
        self._fall = torch.zeros_like(weights)
        self._steps = 0

    def leave(self, weights: Tensor, gradient: Tensor) -> None:
        self._here, self._gradient = weights, gradient

    def arrive(self, weights: Tensor) -> None:
        self._fall.addcmul_(self._gradient, weights - self._here, value=-1)
        self._squares.addcmul_(self._gradient, self._gradient)
        self._here = weights
        self._steps += 1
        if self._steps == INTERVAL:
            self.close_interval()

    def close_interval(self) -> None:
        if self._steps == 0:
            return
        mean = self._squares / self._steps
        fisher = mean if self.fisher is None else self.fisher
        moved = self._here - self._start
        self.score += self._fall.clamp(min=0) / (fisher * moved.square() / 2 + EPSILON)
        self.fisher = mean if self.fisher is None else (1 - ALPHA) * self.fisher + ALPHA * mean
        self._start, self._steps = self._here, 0
        self._squares.zero_()
        self._fall.zero_()


def _to_one(values: Tensor) -> Tensor:
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny)


RIVALS = (
    Rival("rwalk", "rwalk_lambda", _GRID, lambda x, _: [RWalk(x)]),
    Rival("rwalk-stock", "rwalk_lambda", _GRID, lambda x, _: [RWalkPlugin(x, ALPHA, INTERVAL)]),
)
"""RWalk after the paper, and Avalanche 0.6.0's plugin as it is shipped; the authors' λ is 1."""
