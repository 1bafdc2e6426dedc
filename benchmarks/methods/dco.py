"""Direction-Constrained Optimization: no way along the top directions of earlier trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.methods._weights import flat, gradient_of, trainable, weights_of
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

_DIRECTIONS = 100  # a task; the paper: 1000 factored ones, or 250 in the compressed method
_RECORDED = 256  # steps at the end of a task whose gradients are decomposed; the paper: 128
_CLIP = 20.0  # largest norm of the penalty's gradient, the authors' --ae_grad_norm


@dataclass(frozen=True)
class _Forbidden:
    """What one task forbids: orthonormal rows [k, P], and the weights [P] to measure from."""

    directions: Tensor
    anchor: Tensor


class DCOPlugin(SupervisedPlugin):
    """Penalty λ Σ_tasks ‖U (w − w*)‖² along the top principal directions U of each trajectory.

    U [k, P] are the leading right singular vectors of the gradients of the last steps of the
    task, uncentred, all layers together; w* are the weights at its end. The gradient of the
    penalty is clipped at norm 20 before that of the loss is added, as the authors do.

    Source: Teng et al. 2022, arXiv 2011.12581, the uncompressed method. Departures:

    - The paper trains a linear autoencoder (Adam, 200 epochs, code and decoder tied) to
      reconstruct the gradients; its minimum is spanned by their principal directions, which are
      computed here from the Gram matrix of the recorded gradients. The authors' encoder is
      restricted to rank-one directions u vᵀ in each layer, 1000 of them; without that
      restriction 100 of the 256 recorded directions span 87 to 95 percent of their squared
      length on MNIST, so k is 100. It takes k·P numbers a task where
      theirs takes k · Σ (in + out).
    - Gradients are those of the task's loss, without the penalty, at the last steps of training
      and not of further SGD that is drawn back to w* after it; and w* is not pushed .2 along
      the direction of ten further epochs. No other method trains longer than the stream says.

    Frozen parameters are left out.

    Args:
        strength: λ, ≥ 0. Under SGD of rate lr, 2 · lr · λ must stay below 2 / tasks.
        directions: k, at most; fewer where a task has fewer steps.
    """

    def __init__(self, strength: float, directions: int = _DIRECTIONS) -> None:
        super().__init__()
        self.strength = strength
        self.directions = directions
        self.forbidden: list[_Forbidden] = []
        self._recorded: Tensor | None = None
        self._steps = 0
        self._pull: Tensor | None = None

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Forget the steps of the task before."""
        self._recorded, self._steps = None, 0

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the penalty to ``strategy.loss``, from the second task on."""
        self._pull = None
        if not self.forbidden:
            return
        weights = trainable(strategy.model)
        with torch.no_grad():
            here = flat(weights)
            pull, energy = torch.zeros_like(here), here.new_zeros(())
            for task in self.forbidden:
                code = task.directions @ (here - task.anchor)
                energy += code.square().sum()
                pull += code @ task.directions
            pull *= 2 * self.strength
            share = (_CLIP / pull.norm()).clamp(max=1.0)
            pull *= share
        self._pull = pull
        pieces = torch.split(pull, [weight.numel() for weight in weights])
        along = torch.stack(
            [
                (piece.view_as(weight) * weight).sum()
                for piece, weight in zip(pieces, weights, strict=True)
            ]
        ).sum()
        # value and gradient of the clipped penalty, without a second product with the directions
        value = share * self.strength * energy
        strategy.loss = strategy.loss + value + (along - along.detach())

    @torch.no_grad()
    def after_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Record the gradient of the task's loss."""
        gradient = gradient_of(strategy.model)
        if self._pull is not None:
            gradient -= self._pull
        if self._recorded is None:
            self._recorded = gradient.new_empty(_RECORDED, len(gradient))
        self._recorded[self._steps % _RECORDED] = gradient
        self._steps += 1

    @torch.no_grad()
    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Find the task's directions, and let go of the gradients."""
        if self._recorded is not None:
            gradients = self._recorded[: min(self._steps, _RECORDED)]
            top = principal_directions(gradients, self.directions)
            self.forbidden.append(_Forbidden(top, weights_of(strategy.model)))
        self._recorded = self._pull = None


def principal_directions(vectors: Tensor, count: int) -> Tensor:
    """Return the directions that span most of the squared length of some vectors.

    Found from the Gram matrix [n, n]: with V Vᵀ = Q Λ Qᵀ they are Λ^(−½) Qᵀ V.

    Args:
        vectors: V [n, P]; their mean is not taken off.
        count: of the directions, at most; directions of no length are left out.

    Returns:
        Orthonormal rows [k, P], longest share first.
    """
    gram = vectors @ vectors.T
    values, rotation = torch.linalg.eigh(gram.double())
    # float32 products leave a noise of about n ε in the smaller eigenvalues
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(vectors.dtype).eps
    kept = int((values > floor).sum().clamp(max=count))
    top = rotation[:, len(values) - kept :].flip(1) / values[len(values) - kept :].flip(0).sqrt()
    return top.T.to(vectors) @ vectors


# the authors have λ = 100 at a rate of 0.001; λ · lr is what counts under SGD
RIVAL = Rival("dco", "strength", (0.01, 0.1, 1.0, 10.0, 100.0), lambda value, _: [DCOPlugin(value)])
