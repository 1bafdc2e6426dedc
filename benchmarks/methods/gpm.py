"""Gradient Projection Memory: steps are kept orthogonal to the inputs that earlier tasks used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.methods._layers import Layer, input_rows, layers_of
from benchmarks.methods._passes import check_finite, task_batches, watched
from benchmarks.methods._steps import ProjectedSteps
from flatcl.core.gradients import evaluation_mode
from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()
from avalanche.models import MultiTaskModule, avalanche_forward  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

# On permuted MNIST the paper lets the first layer miss 0.05 of the energy and the others 0.01.
FIRST = 5.0
# Samples whose inputs are analysed: section 5 and the authors' settings.
SAMPLES_MLP = 300
SAMPLES_CNN = 125
# Of the energy: what is left of float32 inputs after projection, so that it counts as nothing.
_ROUNDING = 1e-12


class GradientProjection(ProjectedSteps):
    """Gradient Projection Memory: each layer's gradient loses its part along stored inputs.

    After each task the inputs of each layer are gathered at some of its samples, what the stored
    basis M spans is removed, and the leading left singular vectors are added until the basis holds
    the share 1 − ``residual`` of the inputs' energy. From then on every gradient G becomes
    G − G M Mᵀ, so that a step of SGD changes no output of the layer at an input in the basis.

    Source: Saha, Garg and Roy 2021, arXiv 2103.09762, eqs. 6-9 and algorithm 1. Departures:

    - A bias is the weight of an input that is always 1; the paper's networks have none.
    - With momentum, weight decay or Adam the step is projected too (``ProjectedSteps``): Adam
      would undo most of what a projected gradient is for. The paper trains with plain SGD.
    - In networks that are told the task the last layer is not projected, as in the paper; its
      outputs for other tasks get no gradient.

    Args:
        residual: share of the inputs' energy that the basis may miss, in [0, 1]: 1 minus the
            paper's threshold.
        first: the same for the first layer; None for ``residual`` there too.
        steps: False projects gradients alone, whatever the optimiser.

    Raises:
        OptionError: a share lies outside [0, 1].
    """

    def __init__(self, residual: float, first: float | None = None, *, steps: bool = True) -> None:
        super().__init__(steps=steps)
        for name, share in (("residual", residual), ("first", first)):
            if share is not None and not 0 <= share <= 1:
                raise OptionError(f"{name} is {share}: give a share of energy from 0 to 1")
        self.residual = residual
        self.first = residual if first is None else first
        self.bases: dict[str, Tensor] = {}

    def constrained(self) -> list[str]:
        """Return the layers with a basis."""
        return [name for name, basis in self.bases.items() if basis.shape[1]]

    def shaped(self, moves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the part that acts on no input in the bases."""
        return {name: _outside(move, self.bases[name]) for name, move in moves.items()}

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Add the inputs of the task just trained to the bases."""
        gathered = self._inputs(strategy)
        for place, (name, inputs) in enumerate(gathered.items()):
            share = self.residual if place else self.first
            held = self.bases.get(name, inputs.new_empty(inputs.shape[1], 0))
            basis = extended(held.double(), inputs, share)
            self.bases[name] = basis.to(strategy.model.get_submodule(name).weight)

    def _inputs(self, strategy: SupervisedTemplate) -> dict[str, Tensor]:
        # Of each layer that is projected [rows, columns], in the order of the forward pass.
        model = strategy.model
        layers = layers_of(model)
        found: dict[str, list[Tensor]] = {}

        def watch(name: str, layer: Layer, x: Tensor, _: Tensor) -> None:
            found.setdefault(name, []).append(input_rows(layer, x).flatten(0, 1).double())

        convolutional = any(isinstance(layer, nn.Conv2d) for layer in layers.values())
        count = SAMPLES_CNN if convolutional else SAMPLES_MLP
        with evaluation_mode(model), torch.no_grad(), watched(layers, watch):
            for x, *_, labels in task_batches(strategy, count, count=count):
                check_finite(avalanche_forward(model, x, labels))
        if isinstance(model, MultiTaskModule):
            found.popitem()
        return {name: torch.cat(rows) for name, rows in found.items()}


def _outside(matrix: Tensor, basis: Tensor) -> Tensor:
    return matrix - (matrix @ basis) @ basis.T


def extended(basis: Tensor, inputs: Tensor, residual: float) -> Tensor:
    """Return a basis with the fewest further directions that hold enough of the inputs.

    Args:
        basis: orthonormal [d, k].
        inputs: one a row [n, d].
        residual: share of Σ‖x‖² that may lie outside the result.

    Returns:
        Orthonormal [d, k + r], spanning ``basis`` and the r leading directions of what lies
        outside it.
    """
    outside = _outside(inputs, basis)
    energies, directions = _principal(outside)
    missed = energies.flip(0).cumsum(0).flip(0)  # by the basis with the directions before this one
    allowed = (residual + _ROUNDING) * inputs.square().sum()
    further = directions[:, missed > allowed][:, : len(basis) - basis.shape[1]]
    joint, _ = torch.linalg.qr(torch.cat([basis, further], 1))
    return joint


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    # Energies, largest first, and directions [d, ·]; from the smaller of two problems.
    if len(rows) < rows.shape[1]:
        _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
        return singular.square(), directions.T
    energies, vectors = torch.linalg.eigh(rows.T @ rows)
    return energies.clamp(min=0).flip(0), vectors.flip(1)


_RESIDUALS = (0.1, 0.03, 0.01, 0.003, 0.001)
RIVALS = (
    Rival("gpm", "residual", _RESIDUALS, lambda x, _: [GradientProjection(x)]),
    Rival(
        "gpm-first", "residual", _RESIDUALS, lambda x, _: [GradientProjection(x, first=FIRST * x)]
    ),
)
