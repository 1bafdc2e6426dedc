"""Natural Continual Learning: steps shaped by the precision that earlier tasks leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.methods._layers import assign_, input_rows, layers_of, matrix_of
from flatcl.core.gradients import evaluation_mode
from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.models import avalanche_forward  # noqa: E402
from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

_CHUNK = 256  # samples a pass of the Fisher; it changes no result
_ROUNDS = 200  # of the fixed point; about ten suffice
_TOLERANCE = 1e-10


@dataclass
class _Prior:
    """A layer's Gaussian: precision right ⊗ left about a mean, weights W [out, d]."""

    left: Tensor  # [out, out]
    right: Tensor  # [d, d]
    mean: Tensor  # [out, d]


@dataclass
class _Sums:
    """A task's Fisher as right ⊗ left, while it is gathered."""

    left: Tensor
    right: Tensor
    rows: int = 0
    inputs: list[Tensor] = field(default_factory=list)


class NCLPlugin(SupervisedPlugin):
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
        self._before: dict[str, Tensor] = {}

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

    @torch.no_grad()
    def before_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Keep the weights that the step starts from, from the second task on."""
        for name, layer in layers_of(strategy.model).items():
            if name in self._inverses:
                self._before[name] = matrix_of(layer)

    @torch.no_grad()
    def after_update(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Multiply the step by p Λ⁻¹."""
        for name, layer in layers_of(strategy.model).items():
            if name in self._before:
                before = self._before.pop(name)
                left, right = self._inverses[name]
                assign_(layer, before + left @ ((matrix_of(layer) - before) @ right))

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the task's Fisher to the precisions, and move their means to the weights."""
        layers = layers_of(strategy.model)
        for name, (left, right) in fisher(strategy, layers).items():
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


def fisher(
    strategy: SupervisedTemplate, layers: dict[str, nn.Linear | nn.Conv2d]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each layer's Fisher information, summed over the task's samples, as two factors.

    Args:
        strategy: after training on the task.
        layers: of its model.

    Returns:
        By layer, Σ_n aaᵀ [d, d] last and the mean of ggᵀ [out, out] first, float64; a the
        inputs, g the gradient of −log p(label) with a label drawn from the network's own p.
    """
    model, data = strategy.model, strategy.experience.dataset
    batches = DataLoader(data, batch_size=_CHUNK, collate_fn=data.collate_fn)
    sums: dict[str, _Sums] = {}
    with evaluation_mode(model), _watched(layers, sums), torch.enable_grad():
        for batch in batches:
            logits = avalanche_forward(model, batch[0].to(strategy.device), batch[-1])
            chances = logits.log_softmax(1)
            labels = torch.multinomial(chances.detach().exp(), 1)
            weights = [layer.weight for layer in layers.values() if layer.weight.requires_grad]
            weights += [
                layer.bias
                for layer in layers.values()
                if layer.bias is not None and layer.bias.requires_grad
            ]
            torch.autograd.grad(-chances.gather(1, labels).sum(), weights, allow_unused=True)
    return {name: (s.left / s.rows, s.right) for name, s in sums.items() if s.rows}


@contextmanager
def _watched(layers: dict[str, nn.Linear | nn.Conv2d], sums: dict[str, _Sums]) -> Iterator[None]:
    def gradient(name: str, layer: nn.Module, outer: Tensor) -> None:
        out = outer.movedim(1, -1) if isinstance(layer, nn.Conv2d) else outer
        rows = out.reshape(-1, out.shape[-1]).double()
        sums[name].left.addmm_(rows.T, rows)
        sums[name].rows += len(rows)

    def forward(name: str, layer: Any, args: tuple[Any, ...], out: Tensor) -> None:
        rows = input_rows(layer, args[0].detach()).flatten(0, 1).double()
        if name not in sums:
            left = rows.new_zeros(len(layer.weight), len(layer.weight))
            sums[name] = _Sums(left, rows.new_zeros(rows.shape[1], rows.shape[1]))
        sums[name].right.addmm_(rows.T, rows)
        out.register_hook(partial(gradient, name, layer))

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(forward, name)).remove)
        yield


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
