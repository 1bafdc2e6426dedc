"""Kronecker-factored online Laplace: a quadratic penalty by the curvature of earlier tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.methods._fisher import kronecker_factors
from benchmarks.methods._layers import layers_of, matrix_of
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()
from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class KroneckerLaplace(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Online Laplace approximation whose curvature is a Kronecker product for each layer.

    After each task the Fisher matrix of each layer's weights W [out, in + 1] (a bias is the weight
    of an input that is always 1) is approximated by G ⊗ A: A the mean of xxᵀ over the layer's
    inputs x, G that of ggᵀ over the gradients g at its outputs, for labels drawn from the
    network's own predictions. From then on the loss is increased by
    ½ λ Σ_layers ⟨ΔW, Σ_t G_t ΔW A_t⟩, ΔW the distance from the weights at the end of the last task.

    Source: Ritter, Botev and Barber 2018, arXiv 1805.07810: online Laplace (the new task's
    curvature at its mode is added to the precision held, the latest mode is the only mean), with
    the factors of Martens and Grosse 2015, arXiv 1503.05671, and for convolutions of Grosse and
    Martens 2016, arXiv 1602.01407 (A sums over places, G is the mean over them). Choices:

    - A sum of Kronecker products is none. With ``merged`` it is replaced by the one product that
      has both its partial traces, A ∝ Σ tr(G_t) A_t and G ∝ Σ tr(A_t) G_t; adding the factors
      would overrate the sum up to T times. Without it, every task's pair is kept.
    - The loss is a mean over samples, so that λ = 1 weighs an earlier task as the new one, if they
      are of one size.
    - The first task has no prior but what the optimiser's weight decay is. Nothing is inverted, so
      that there is no damping.

    Args:
        strength: λ, ≥ 0.
        merged: whether one pair of factors a layer is held, or one for each task.
    """

    def __init__(self, strength: float, *, merged: bool = True) -> None:
        super().__init__()
        self.strength = strength
        self.merged = merged
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}  # G [T, out, out], A [T, d, d]
        self.anchors: dict[str, Tensor] = {}

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the penalty to ``strategy.loss``, from the second task on."""
        for name, (G, A) in self.factors.items():
            weight = matrix_of(strategy.model.get_submodule(name), attached=True)
            penalty = quadratic(weight - self.anchors[name], G, A)
            strategy.loss = strategy.loss + self.strength * penalty

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the curvature of the task just trained; its weights become the anchor."""
        for name, new in self._curvature(strategy).items():
            pair = new
            if name in self.factors:
                G, A = (torch.cat(both) for both in zip(self.factors[name], new, strict=True))
                pair = merge(G, A) if self.merged else (G, A)
            self.factors[name] = pair
        self.anchors = {
            name: matrix_of(strategy.model.get_submodule(name)) for name in self.factors
        }

    def _curvature(self, strategy: SupervisedTemplate) -> dict[str, tuple[Tensor, Tensor]]:
        layers = layers_of(strategy.model)
        count = len(strategy.experience.dataset)
        return {
            name: (G[None].to(layers[name].weight), (A[None] / count).to(layers[name].weight))
            for name, (G, A) in kronecker_factors(strategy, layers).items()
        }


def quadratic(move: Tensor, G: Tensor, A: Tensor) -> Tensor:
    """Return ½ Σ_t ⟨Δ, G_t Δ A_t⟩, whose gradient costs no second product.

    Args:
        move: Δ [out, d].
        G: symmetric [T, out, out].
        A: symmetric [T, d, d].

    Returns:
        A scalar, to be differentiated once.
    """
    held = move.detach()
    pull = torch.bmm(G @ held, A).sum(0)
    return (move * pull).sum() - 0.5 * (held * pull).sum()


def merge(G: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Kronecker product with the partial traces of Σ_t G_t ⊗ A_t.

    Args:
        G: [T, out, out], positive semi-definite.
        A: [T, d, d], positive semi-definite.

    Returns:
        The same with T = 1.
    """
    of_G, of_A = (factor.diagonal(dim1=1, dim2=2).sum(1) for factor in (G, A))
    scale = (of_G @ of_A).clamp(min=torch.finfo(G.dtype).tiny).rsqrt()
    return (
        scale * torch.einsum("t,tij->ij", of_A, G)[None],
        scale * torch.einsum("t,tij->ij", of_G, A)[None],
    )


RIVAL = Rival(
    "kfac-laplace",
    "strength",
    (0.1, 1.0, 10.0, 100.0, 1000.0),
    lambda x, _: [KroneckerLaplace(x)],
)
