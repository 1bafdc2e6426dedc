"""Natural Continual Learning: steps shaped by the precision that earlier tasks leave behind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.methods._fisher import kronecker_factors
from benchmarks.methods._layers import layers_of, matrix_of
from benchmarks.methods._steps import ShapedSteps
from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.training.templates import SupervisedTemplate  # noqa: E402

_ROUNDS = 200  # of the fixed point; about ten suffice
_TOLERANCE = 1e-10


@dataclass
class _Prior:
    """A layer's Gaussian: precision right ⊗ left about a mean, weights W [out, d]."""

    left: Tensor  # [out, out]
    right: Tensor  # [d, d]
    mean: Tensor  # [out, d]


class NCLPlugin(ShapedSteps):
    """Laplace's posterior as prior of the next task, and steps in its metric.

    With N the task's samples, L its mean loss and Λ the prior's precision about w*, the loss is
    L + (w − w*)ᵀ Λ (w − w*) / 2N, and the optimiser's step is multiplied by p Λ⁻¹, p the
    precision before the first task, whose w* is 0. SGD then takes −lr p Λ⁻¹ ∇L − lr p/N (w − w*),
    which in the first task is plain SGD with a weight decay of p/N. After a task Λ ← the
    Kronecker product that is nearest, in KL divergence, to Λ + N · Fisher of the task, the
    Fisher being K-FAC's with labels drawn from the network.

    Source: Kao et al. 2021, arXiv 2106.08085, section 2.3 and appendix on sums of Kronecker
    products. Departures:

    - What is multiplied by p Λ⁻¹ is the optimiser's step and not its gradient: the same for SGD
      with or without momentum, and defined for Adam.
    - The weight of the prior is 1, as Bayes has it, and no number is added to Λ before it is
      inverted (the authors' 1e-6): the prior of the first task keeps it positive. p is tuned.
    - Convolutions, which the paper has none of, take Grosse and Martens' factors (arXiv
      1602.01407): inputs summed over places, gradients averaged over them.

    Layers that do not train are left out.

    Args:
        precision: p, > 0; large keeps all directions open, small closes all that were used.

    Raises:
        OptionError: ``precision`` is 0, which has no inverse.
    """

    def __init__(self, precision: float) -> None:
        super().__init__()
        if precision <= 0:
            raise OptionError(f"precision is {precision}: give a number > 0")
        self.precision = precision
        self.priors: dict[str, _Prior] = {}
        self._inverses: dict[str, tuple[Tensor, Tensor]] = {}

    def constrained(self) -> list[str]:
        """Return the layers with a precision left behind by earlier tasks."""
        return list(self._inverses)

    def shaped(self, moves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the moves multiplied by p Λ⁻¹."""
        inverses = self._inverses
        return {
            name: inverses[name][0] @ (move @ inverses[name][1]) for name, move in moves.items()
        }

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Invert the precisions, once a task."""
        layers_of(strategy.model)
        half = self.precision**0.5
        self._inverses = {
            name: tuple((half * _inverse(f)).to(f) for f in (prior.left, prior.right))  # type: ignore[misc]
            for name, prior in self.priors.items()
        }

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the prior's energy to ``strategy.loss``."""
        samples = len(strategy.experience.dataset)
        for name, layer in layers_of(strategy.model).items():
            weights = matrix_of(layer, attached=True)
            here, prior = weights.detach(), self.priors.get(name)
            if prior is None:
                away, pull = here, self.precision * here
            else:
                away = here - prior.mean
                pull = prior.left @ (away @ prior.right)
            # the gradient is known: no products with Λ in the backward pass
            along = (weights * pull).sum() / samples
            value = (away * pull).sum() / (2 * samples)
            strategy.loss = strategy.loss + value + (along - along.detach())

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the task's Fisher to the precisions, and move their means to the weights."""
        layers = layers_of(strategy.model)
        for name, (left, right) in kronecker_factors(strategy, layers).items():
            prior = self.priors.get(name)
            if prior is None:
                half = self.precision**0.5
                old = half * torch.eye(len(left)).to(left), half * torch.eye(len(right)).to(right)
            else:
                old = prior.left.double(), prior.right.double()
            new_left, new_right = nearest_product(old, (left, right))
            mean = matrix_of(layers[name])
            self.priors[name] = _Prior(new_left.to(mean), new_right.to(mean), mean)
        self._inverses = {}


def nearest_product(
    old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the Kronecker product that is nearest to a sum of two.

    Nearest in the divergence ½ [log det(E ⊗ F) + tr((E ⊗ F)⁻¹ S)] of S = B ⊗ B' + C ⊗ C'. Its
    minimum has E = e₁B + e₂C with e₁ = tr(B' F⁻¹)/n', e₂ = tr(C' F⁻¹)/n', and F alike, so that
    only four numbers are iterated, through the eigenvalues of C relative to B.

    Args:
        old: B and B', positive definite, float64.
        new: C and C', positive semidefinite, float64.

    Returns:
        E and F, of equal mean eigenvalue.
    """
    ratios = [_relative(b, c) for b, c in zip(old, new, strict=True)]
    first, second = ratios[0].new_ones(2), ratios[0].new_ones(2)
    for _ in range(_ROUNDS):
        last = first
        second = _traces(first, ratios[0])
        first = _traces(second, ratios[1])
        if float((first / last - 1).abs().max()) < _TOLERANCE:
            break
    product = [
        scale[0] * b + scale[1] * c for scale, b, c in zip((first, second), old, new, strict=True)
    ]
    means = [matrix.trace() / len(matrix) for matrix in product]
    balance = (means[1] / means[0]).sqrt()
    return product[0] * balance, product[1] / balance


def _relative(b: Tensor, c: Tensor) -> Tensor:
    root = torch.linalg.cholesky(b)
    half = torch.linalg.solve_triangular(root, c, upper=False)
    both = torch.linalg.solve_triangular(root, half.T, upper=False)
    return torch.linalg.eigvalsh((both + both.T) / 2).clamp(min=0)


def _traces(scale: Tensor, ratios: Tensor) -> Tensor:
    shares = 1 / (scale[0] + scale[1] * ratios)
    return torch.stack([shares.mean(), (ratios * shares).mean()])


def _inverse(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix.double()))


RIVAL = Rival(
    "ncl", "precision", (0.1, 1.0, 10.0, 100.0, 1000.0), lambda value, _: [NCLPlugin(value)]
)
