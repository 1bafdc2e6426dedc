"""Activity–weight duality: a change of a layer's input as a change of its weights.

W (A + ΔA) = (W + ΔW) A has, if any, infinitely many solutions ΔW. The one of least Frobenius norm
is ΔW* = W ΔA A⁺ with the pseudo-inverse of A [in, L]; for one place, ΔW* = (W Δa) aᵀ / |a|².
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.duality.checks import ask_real
from flatcl.errors import DataError, OptionError

_EXACT = 1e-8  # of |W ΔA|: what a dual move may leave, well above rounding in float64
_SMALL = 1e-6  # of the root-mean-square activity: below, 1/|a| makes a move of any size


@dataclass(frozen=True)
class DualMoves:
    """The dual weight changes of K pairs, ΔW*_k = left_k right_kᵀ.

    Attributes:
        left: W ΔA [K, out, L].
        right: (A⁺)ᵀ [K, in, L].
        kept: pairs with an exact dual that is not blown up by a tiny activity [K], bool.
        without: pairs without an exact dual, e.g. a = 0 with W Δa ≠ 0: a weight cannot act on an
            input that is 0; of a convolution, patches that depend on each other.
        tiny: pairs whose activity is tiny against the others'.
        still: pairs that the layer does not tell apart, W ΔA = 0; kept, with ΔW* = 0.
    """

    left: Tensor
    right: Tensor
    kept: Tensor
    without: int
    tiny: int
    still: int

    def __len__(self) -> int:
        """Return K."""
        return len(self.left)

    @property
    def shift(self) -> Tensor:
        """ΔW* A = W ΔA, what the move adds to the layer's output [K, L, out]."""
        return self.left.mT

    def dense(self) -> Tensor:
        """Return the moves as vectors.

        Returns:
            [K, P], w, weights in the order of ``weight.flatten()``.
        """
        return (self.left @ self.right.mT).flatten(1)

    def norms(self) -> Tensor:
        """Return |Δw_k|, from the factors.

        Returns:
            [K], w.
        """
        gram = (self.left.mT @ self.left) * (self.right.mT @ self.right)
        return gram.sum((1, 2)).clamp(min=0).sqrt()

    def select(self, mask: Tensor) -> DualMoves:
        """Return some of the moves.

        Args:
            mask: [K], bool.

        Returns:
            The moves; the counts are those of the whole.
        """
        return DualMoves(
            self.left[mask],
            self.right[mask],
            self.kept[mask],
            self.without,
            self.tiny,
            self.still,
        )


def dual_moves(weight: Tensor, activity: Tensor, changed: Tensor) -> DualMoves:
    """Return the least weight changes that act on ``activity`` as ``weight`` acts on ``changed``.

    Where the bias is trained, append a 1 to both activities and the bias to W: |a|² becomes
    |a|² + 1. A frozen bias changes nothing. ``DualLayer`` does so.

    Source: Feng, Zhang and Tu, Nature Machine Intelligence 2023, arXiv 2203.10736, for one place;
    for more, the pseudo-inverse takes the place of aᵀ/|a|².

    Args:
        weight: W [out, in].
        activity: A, of the training samples [K, L, in], or [K, in] for one place.
        changed: A + ΔA, of their partners, of the same shape.

    Returns:
        The moves. Those without an exact dual are not kept; what is left of the equation is then
        the part of W ΔA that no weight change can make.

    Raises:
        DataError: shapes or types do not fit, or a value is not finite.
        OptionError: there are more places than inputs, so that no dual exists in general.
    """
    ask_real((2, 3), activity=activity, changed=changed)
    ask_real((2,), weight=weight)
    ask_real((2, 3), activity=activity, weight=weight)
    if activity.dim() == changed.dim() == 2:
        activity, changed = activity[:, None], changed[:, None]
    if activity.shape != changed.shape or activity.shape[-1] != weight.shape[1]:
        raise DataError(
            f"W {tuple(weight.shape)}, activities {tuple(activity.shape)} and "
            f"{tuple(changed.shape)}: both activities must be [K, L, in] or [K, in]"
        )
    if not (activity.isfinite().all() and changed.isfinite().all() and weight.isfinite().all()):
        raise DataError("a weight or an activity is NaN or infinite: the network diverged")
    places, width = activity.shape[1:]
    if not places or not width or not len(weight):
        raise DataError(
            f"W {tuple(weight.shape)}, activities {tuple(activity.shape)}: they are empty"
        )
    if places > width:
        raise OptionError(
            f"the layer's matrix acts on {places} places of {width} inputs each: a weight change "
            "has too few entries to equal any change of so many; take a layer with fewer places"
        )
    A = activity.mT
    left = weight @ (changed - activity).mT
    right = torch.linalg.pinv(A).mT
    missed = (left - left @ (right.mT @ A)).norm(dim=(1, 2))
    size = left.norm(dim=(1, 2))
    strength = activity.norm(dim=(1, 2))
    typical = strength.square().mean().sqrt()
    norms = ((left.mT @ left) * (right.mT @ right)).sum((1, 2))
    # Whatever overflowed compares as false, and so has no dual.
    without = ~((missed <= _EXACT * size) & norms.isfinite())
    tiny = ~without & (size > 0) & (strength < _SMALL * typical)
    return DualMoves(
        left,
        right,
        ~(without | tiny),
        int(without.sum()),
        int(tiny.sum()),
        int((size == 0).sum()),
    )
