"""The generalisation gap of a network through one of its layers: the whole measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flatcl.duality.checks import ask_finite, check_pairs
from flatcl.duality.decomposition import Decomposition, decompose
from flatcl.duality.dual import DualMoves, dual_moves
from flatcl.duality.layer import DualLayer
from flatcl.duality.pairs import Pairs, nearest_pairs, random_pairs
from flatcl.errors import DataError, OptionError
from flatcl.fluctuations.loss import Loss, cross_entropy
from flatcl.tables import markdown_table

Space = Literal["inputs", "activity"]
_FLAT = 1e-6  # of the largest curvature: eigenvectors up to it are arbitrary, and are pooled


@dataclass(frozen=True)
class Matched:
    """One way of pairing test with training samples, and what came of it.

    Attributes:
        gap: ⟨ℓ(x'_k)⟩ − ⟨ℓ(x_k)⟩ over the kept pairs, nats.
        partner_loss: ⟨ℓ(x_k)⟩ over them, nats.
        without, tiny, still: pairs of each kind, see ``DualMoves``.
        error: largest |ℓ(x'_k; W) − ℓ(x_k; W + ΔW*_k)|, nats: rounding, if all is well.
        decomposition: direction by direction.
        first_order: ⟨∇ℓ·Δw⟩, nats.
        second_order: ½⟨Δwᵀ h Δw⟩, nats.
        expansion_error: root-mean-square of Δℓ_k less its expansion to second order, over that of
            Δℓ_k.
    """

    gap: float
    partner_loss: float
    without: int
    tiny: int
    still: int
    error: float
    decomposition: Decomposition
    first_order: float
    second_order: float
    expansion_error: float


@dataclass(frozen=True)
class Gap:
    """The generalisation gap and its decomposition.

    Attributes:
        train_loss: ⟨ℓ⟩ over the training samples, nats.
        test_loss: ⟨ℓ⟩ over the test samples, nats.
        curvature: h [n] of the directions, nats/w², in their order, which is that of every
            decomposition: falling, or that of the basis that was given.
        basis: directions [P, n].
        matched: by pairing: "nearest", "second" and "random".
        flat: directions whose curvature is not above 1e-6 of the largest. Of the Hessian's own
            eigenvectors these are the last ones and arbitrary, so only sums over them mean
            something.
    """

    train_loss: float
    test_loss: float
    curvature: Tensor
    basis: Tensor
    matched: dict[str, Matched]
    flat: int

    @property
    def gap(self) -> float:
        """⟨ℓ⟩_test − ⟨ℓ⟩_train, nats."""
        return self.test_loss - self.train_loss

    def __str__(self) -> str:
        """Return the gaps by pairing, as a table."""
        header = ["pairing", "matched gap", "true gap", "apart", "Σ cσσ", "Σ μμ", "c", "c, null"]
        header += ["1st + 2nd order", "without dual"]
        rows = []
        for name, m in self.matched.items():
            d = m.decomposition
            rows.append([
                name,
                f"{m.gap:.4f}",
                f"{self.gap:.4f}",
                f"{self.gap - m.gap:+.4f}",
                f"{d.leading:.4f}",
                f"{d.of_means:.4f}",
                f"{d.overall_correlation:.2f}",
                f"{_mean(d.null_correlation):.2f}",
                f"{m.first_order:.4f} + {m.second_order:.4f}",
                str(m.without + m.tiny),
            ])  # fmt: skip
        return markdown_table(header, rows)


def generalization_gap(
    model: nn.Module,
    layer: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    loss: Loss = cross_entropy,
    labels: tuple[Tensor, Tensor] | None = None,
    space: Space = "inputs",
    basis: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch: int = 500,
) -> Gap:
    """Return the generalisation gap, and what each direction of a layer's weights contributes.

    The gap through pairs is exact for any pairing; how near it is to the true gap depends on how
    well the partners' loss stands for all training samples', and is reported, not assumed.

    Source: Feng, Zhang and Tu, Nature Machine Intelligence 5, 908 (2023), arXiv 2203.10736.

    Args:
        model: a network in which samples do not mix; left as it is.
        layer: name of a Linear or Conv2d layer.
        train: inputs [N, …] and targets [N].
        test: inputs [K, …] and targets [K].
        loss: from outputs and targets to one loss a sample.
        labels: classes of training and test samples for the pairing; the targets if None.
        space: where partners are near: that of the "inputs", or the layer's own "activity".
        basis: orthonormal directions [P, n]; the eigenvectors of the layer's Hessian of the
            training loss if None.
        generator: of the random partners and the null's permutations; seeded with 0 if None.
        batch: samples evaluated together.

    Returns:
        The gap.

    Raises:
        OptionError: ``space`` is neither.
        DataError: there is one test sample; what ``ask_finite``, ``DualLayer``, ``dual_moves``
            and ``nearest_pairs`` raise goes through.
    """
    if space not in ("inputs", "activity"):
        raise OptionError(f"space is {space!r}: choose inputs or activity")
    if labels is None:
        labels = train[1], test[1]
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    view = DualLayer(model, layer, loss=loss, batch=batch)
    x, y = train
    z, t = test
    check_pairs(x, y)
    check_pairs(z, t)
    if len(z) < 2:
        raise DataError("one test sample has no mean over pairs: give at least two")
    a, b = view.activity(x), view.activity(z)
    train_losses, test_losses = view.losses(x, y), view.losses(z, t)
    ask_finite(
        **{"activity in training": a, "activity in the test": b},
        **{"losses in training": train_losses, "losses in the test": test_losses},
    )
    if basis is None:
        values, vectors = torch.linalg.eigh(view.hessian(x, y))
        curvature, basis = values.flip(0), vectors.flip(1)
    else:
        basis = basis.to(view.weight)
        curvature = _along(view, x, y, basis)
    near, other = (z, x) if space == "inputs" else (b, a)
    near, other = near.to(view.dtype), other.to(view.dtype)
    pairings = {
        "nearest": nearest_pairs(near, labels[1], other, labels[0]),
        "second": nearest_pairs(near, labels[1], other, labels[0], rank=2),
        "random": random_pairs(labels[1], labels[0], generator),
    }
    matched = {}
    for name, pairs in pairings.items():
        moves = dual_moves(view.weight, a[pairs.train], b[pairs.test])
        rises = test_losses[pairs.test] - train_losses[pairs.train]
        matched[name] = _matched(
            view, train, a, pairs, moves, rises, train_losses, basis, generator
        )
    return Gap(
        float(train_losses.mean()),
        float(test_losses.mean()),
        curvature,
        basis,
        matched,
        int((curvature <= _FLAT * curvature.max()).sum()),
    )


def _matched(
    view: DualLayer,
    train: tuple[Tensor, Tensor],
    activity: Tensor,
    pairs: Pairs,
    moves: DualMoves,
    rises: Tensor,
    train_losses: Tensor,
    basis: Tensor,
    generator: torch.Generator,
) -> Matched:
    kept = moves.kept
    if int(kept.sum()) < 2:
        raise DataError(f"{int(kept.sum())} pairs have a dual move: is the layer's input all 0?")
    chosen, used = pairs.train[kept], moves.select(kept)
    x, y, rise = train[0][chosen], train[1][chosen], rises[kept]
    before = train_losses[chosen]
    moved = view.losses(x, y, _acting(used, activity[chosen]))
    first, second = view.along(x, y, used.shift)
    left_over = rise - first - second / 2
    size = rise.square().mean().sqrt()
    return Matched(
        float(rise.mean()),
        float(before.mean()),
        moves.without,
        moves.tiny,
        moves.still,
        float((moved - before - rise).abs().max()),
        decompose(moves, rises, basis, generator=generator),
        float(first.mean()),
        float(second.mean() / 2),
        float(left_over.square().mean().sqrt() / size) if size > 0 else 0.0,
    )


def _acting(moves: DualMoves, activity: Tensor) -> Tensor:
    """Return ΔW A [K, L, out] by way of ΔW, not of what it was made to equal."""
    return (moves.left @ (moves.right.mT @ activity.mT)).mT


def _along(view: DualLayer, x: Tensor, y: Tensor, basis: Tensor) -> Tensor:
    if view.weight.numel() != len(basis):
        raise OptionError(
            f"directions have {len(basis)} entries, layer {view.name!r} has {view.size} weights"
        )
    return view.curvature(x, y, basis)


def _mean(values: Tensor) -> float:
    return float(values[values.isfinite()].mean())
