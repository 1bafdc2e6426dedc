"""The generalisation gap of one layer, direction by direction, with the null beside it.

Pair k has the dual move Δw_k and the loss rise Δℓ_k = ℓ(x_k; w + Δw_k) − ℓ(x_k; w), which is the
test sample's loss less its partner's. With the secant gradient g_k = Δℓ_k Δw_k / |Δw_k|²,

    ⟨Δℓ⟩ = Σ_n ⟨g_n Δw_n⟩ = Σ_n [μ_g,n μ_w,n + c_n σ_g,n σ_w,n]

over any orthonormal basis: an identity, for any data. What of it is built in: g_k is parallel to
Δw_k, g_k,n = s_k Δw_k,n with s_k = Δℓ_k / |Δw_k|². If s does not depend on the direction, then
c_n = ⟨s⟩/√⟨s²⟩ for every n and σ_g,n = √⟨s²⟩ σ_w,n. So a constant c_n is no finding; the finding,
if any, is

    r_n = ⟨s Δw_n²⟩ / (⟨s⟩ ⟨Δw_n²⟩),

which is 1 where direction and loss are unrelated. It has two parts: pairs that move far may pay
more than in proportion to |Δw|², in every direction alike, r̄ = ⟨Δℓ⟩ / (⟨s⟩ ⟨|Δw|²⟩); and what is
a direction's own, r_n / r̄.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.duality.checks import ask_finite, ask_real
from flatcl.duality.dual import DualMoves
from flatcl.errors import DataError, OptionError

_PAIRS = 2000  # dense moves held at once


@dataclass(frozen=True)
class Decomposition:
    """The gap along n directions, from K pairs.

    Attributes:
        mean_gradient: μ_g [n], nats/w.
        mean_move: μ_w [n], w.
        sharpness: σ_g [n], nats/w.
        size: σ_w [n], w.
        correlation: c [n], of g_n and Δw_n over pairs.
        contribution: ⟨g_n Δw_n⟩ [n], nats; sums to ``total`` if the directions are complete.
        ratio: r [n].
        overall_ratio: r̄, of all directions together.
        null_correlation: c [n] with s permuted over pairs, mean over permutations.
        null_ratio: standard deviation of r [n] under permutation, about its mean of 1.
        total: ⟨Δℓ⟩, nats.
        pairs: K.
    """

    mean_gradient: Tensor
    mean_move: Tensor
    sharpness: Tensor
    size: Tensor
    correlation: Tensor
    contribution: Tensor
    ratio: Tensor
    overall_ratio: float
    null_correlation: Tensor
    null_ratio: Tensor
    total: float
    pairs: int

    @property
    def leading(self) -> float:
        """Σ_n c_n σ_g,n σ_w,n, nats: the gap without the product of the means."""
        return float((self.correlation * self.sharpness * self.size).nansum())

    @property
    def of_means(self) -> float:
        """Σ_n μ_g,n μ_w,n, nats; the papers call it negligible."""
        return float((self.mean_gradient * self.mean_move).sum())

    @property
    def overall_correlation(self) -> float:
        """Mean of c_n, weighted with σ_g,n σ_w,n; NaN where nothing moves."""
        weights = self.sharpness * self.size
        return float((self.correlation * weights).nansum() / weights.sum())


def decompose(
    moves: DualMoves,
    rises: Tensor,
    basis: Tensor,
    *,
    generator: torch.Generator,
    permutations: int = 20,
) -> Decomposition:
    """Return what each direction contributes to the mean loss rise.

    Source: Feng, Zhang and Tu 2023, arXiv 2203.10736, for the sum and its factors; the null and r
    are flatcl's.

    Args:
        moves: dual moves [K]; pairs that are not kept are left out.
        rises: Δℓ_k [K], nats.
        basis: orthonormal directions as columns [P, n]; n = P makes the sum complete.
        generator: of the permutations, on the CPU.
        permutations: of the null; 0 leaves it out (NaN).

    Returns:
        The decomposition.

    Raises:
        DataError: fewer than two pairs are kept, their number is not that of ``rises``, or a rise
            is no number.
        OptionError: the columns are not orthonormal, or of another length than the moves.
    """
    if rises.dim() != 1 or rises.is_complex():
        raise DataError(f"the loss rises have shape {tuple(rises.shape)}: give one a move, [K]")
    ask_finite(rises=rises)
    ask_real((2, 3), moves=moves.left, basis=basis)
    rows = moves.left.shape[1] * moves.right.shape[1]
    if basis.dim() != 2 or basis.shape[0] != rows or not basis.shape[1]:
        raise OptionError(
            f"directions have shape {tuple(basis.shape)}, the moves {rows} entries: give [P, n]"
        )
    if len(moves) != len(rises):
        raise DataError(f"{len(moves)} moves and {len(rises)} loss rises: give as many of each")
    overlap = basis.mT @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    if float(overlap.abs().max()) > 1e-6:
        raise OptionError(
            f"the directions' overlaps differ from those of orthonormal ones by "
            f"{float(overlap.abs().max()):.2g}: orthonormalise them"
        )
    kept = moves.select(moves.kept)
    rises = rises[moves.kept].to(basis)
    K = len(rises)
    if K < 2:
        raise DataError(f"{K} pairs have a dual move: two are needed for a variance")
    along = torch.cat(
        [
            (left @ right.mT).flatten(1) @ basis
            for left, right in zip(
                torch.split(kept.left, _PAIRS), torch.split(kept.right, _PAIRS), strict=True
            )
        ]
    )
    squares = kept.norms().square()
    # A pair whose move is 0 rises by 0; its secant is 0/0 and taken as 0.
    s = torch.where(squares > 0, rises / squares.clamp(min=torch.finfo(squares.dtype).tiny), 0.0)
    mean_g, mean_w = s @ along / K, along.mean(0)
    second = along.square()
    sigma_g = (s.square() @ second / K - mean_g.square()).clamp(min=0).sqrt()
    sigma_w = (second.mean(0) - mean_w.square()).clamp(min=0).sqrt()
    product = s @ second / K
    null_c, null_r = _null(s, along, second, mean_w, sigma_w, generator, permutations)
    return Decomposition(
        mean_g,
        mean_w,
        sigma_g,
        sigma_w,
        _ratio(product - mean_g * mean_w, sigma_g * sigma_w),
        product,
        _ratio(product, s.mean() * second.mean(0)),
        float(_ratio(rises.mean(), s.mean() * squares.mean())),
        null_c,
        null_r,
        float(rises.mean()),
        K,
    )


def _null(
    s: Tensor,
    along: Tensor,
    second: Tensor,
    mean_w: Tensor,
    sigma_w: Tensor,
    generator: torch.Generator,
    permutations: int,
) -> tuple[Tensor, Tensor]:
    """Return mean of c and standard deviation of r where s is dealt anew to the pairs."""
    if permutations == 0:
        return torch.full_like(mean_w, torch.nan), torch.full_like(mean_w, torch.nan)
    K = len(s)
    orders = [torch.randperm(K, generator=generator) for _ in range(permutations)]
    dealt = s[torch.stack(orders).to(s.device)]
    mean_g = dealt @ along / K
    sigma_g = (dealt.square() @ second / K - mean_g.square()).clamp(min=0).sqrt()
    product = dealt @ second / K
    correlation = _ratio(product - mean_g * mean_w, sigma_g * sigma_w)
    ratio = _ratio(product, s.mean() * second.mean(0))
    return correlation.mean(0), (ratio - 1).square().mean(0).sqrt()


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return the quotient, NaN where nothing moves."""
    return torch.where(below != 0, above / below, torch.nan)
