"""Orthogonal Weights Modification: steps orthogonal to the inputs of earlier tasks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.methods._layers import Layer, input_rows, layers_of
from benchmarks.methods._passes import check_finite, watched
from benchmarks.methods._steps import ShapedSteps
from flatcl.core.gradients import evaluation_mode
from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.models import avalanche_forward  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


class OWMPlugin(ShapedSteps):
    """Multiplies each layer's step by a projector P that the layer's earlier inputs shrink.

    With A [d, n] the mean inputs of the n batches of all finished tasks, a bias being one more
    input that is 1, P = I − A (AᵀA + αI)⁻¹ Aᵀ = α (αI + AAᵀ)⁻¹. It is found task by task: the
    batches of a task give R = Σ x̄x̄ᵀ, and P ← α-regularised recursive least squares over them,
    which is L (I + LᵀRL/α)⁻¹ Lᵀ with P = LLᵀ, in one solution instead of n rank-one updates.
    A convolution has one mean patch for each place of the image.

    Source: Zeng, Chen, Cui and Yu 2019, arXiv 1810.01256, Methods, steps 1-5: P is updated after
    the task, in a further pass over its batches, and the step of plain training is multiplied by
    the P of the tasks before. Four things differ:

    - α is one number, the same for all layers and batches; the authors lower it within a task
      and choose its course by layer and data set.
    - x̄ is the mean of what enters the layer, as in the authors' code, and not what enters it
      when the network is given the batch's mean image, as in the text: old inputs are what the
      layer sees.
    - What is projected is the step that the optimiser took, not the gradient. For SGD they are
      the same; Adam and weight decay would leave the subspace after a projected gradient.
    - The authors clip gradients at norm 10; nothing is clipped here, as for every other method.

    Layers that do not train are left out.

    Args:
        alpha: how much the projector gives way, > 0; nothing is projected as it grows.

    Raises:
        OptionError: ``alpha`` is 0, for which the recursion is not defined.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        if alpha <= 0:
            raise OptionError(f"alpha is {alpha}: give a number > 0")
        self.alpha = alpha
        self.projectors: dict[str, Tensor] = {}

    def constrained(self) -> list[str]:
        """Return the layers with a projector."""
        return list(self.projectors)

    def shaped(self, moves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the moves multiplied by the projectors."""
        return {name: move @ self.projectors[name] for name, move in moves.items()}

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Refuse a network with a layer that cannot be projected."""
        layers_of(strategy.model)

    @torch.no_grad()
    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the task's inputs to the projectors."""
        model, data = strategy.model, strategy.experience.dataset
        layers = layers_of(model)
        batches = DataLoader(
            data, batch_size=strategy.train_mb_size, shuffle=True, collate_fn=data.collate_fn
        )
        squares: dict[str, Tensor] = {}

        def watch(name: str, layer: Layer, x: Tensor, _: Tensor) -> None:
            rows = input_rows(layer, x.mean(0, keepdim=True))[0].double()
            if name not in squares:
                squares[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
            squares[name].addmm_(rows.T, rows)

        with evaluation_mode(model), watched(layers, watch):
            for batch in batches:
                check_finite(avalanche_forward(model, batch[0].to(strategy.device), batch[-1]))
        for name, square in squares.items():
            old = self.projectors.get(name)
            new = shrunk(old, square, self.alpha)
            self.projectors[name] = new.to(layers[name].weight)


def shrunk(projector: Tensor | None, squares: Tensor, alpha: float) -> Tensor:
    """Return a projector after recursive least squares over further inputs.

    Args:
        projector: P [d, d], positive semidefinite; None for I.
        squares: Σ x̄x̄ᵀ of the inputs [d, d], float64.
        alpha: regularisation, > 0.

    Returns:
        P (I + Σ x̄x̄ᵀ P / α)⁻¹ [d, d], symmetric, float64.
    """
    identity = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    if projector is None:
        factor = identity
    else:  # rounding to float32 leaves eigenvalues of −1e-7, which the solution would amplify
        values, vectors = torch.linalg.eigh(projector.double())
        factor = vectors * values.clamp(min=0).sqrt()
    inner = torch.linalg.cholesky(identity + factor.T @ squares @ factor / alpha)
    root = torch.linalg.solve_triangular(inner, factor.T, upper=False)
    return root.T @ root


RIVAL = Rival("owm", "alpha", (0.01, 0.1, 1.0, 10.0, 100.0), lambda value, _: [OWMPlugin(value)])
