"""Second moments of a layer's gradients: raw sums and counts, divided only at use.

A Linear layer's gradient over n inputs is an outer product, G = Dᵀ A, of rank n or less. With fewer
inputs than outputs its moments are cheaper from the factors than from G. Where each row is an input
of its own, with an output direction of its own, the terms that join two rows vanish in expectation,
and leaving them out estimates the same moments with less noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flatcl.core import frame
from flatcl.core.choice import COMPLETE, Ranks
from flatcl.core.eigenbasis import KroneckerBasis, decomposed
from flatcl.core.sketch import RowSketch
from flatcl.errors import StateError


@dataclass(frozen=True)
class OuterProduct:
    """A gradient G = Dᵀ A [out, in], by its factors.

    Attributes:
        D: [n, out], gradients at the layer's outputs.
        A: [n, in], the layer's inputs, a last column of ones for a bias.
        independent: True if D's rows are uncorrelated and of zero mean, so that E[G ⊗ G] is the sum
            of the rows' own terms: second moments are then summed row by row. Rows that the network
            mixes (nodes of a graph, a batch normalised by its own statistics) are not.
    """

    D: Tensor
    A: Tensor
    independent: bool = False

    def dense(self) -> Tensor:
        """Return G.

        Returns:
            [out, in].
        """
        return self.D.T @ self.A


Gradient: TypeAlias = "Tensor | OuterProduct"
SideMoment: TypeAlias = "Tensor | RowSketch"
"""Second moment of one side: [d, d], or the leading part of it for a truncated side."""


def _add_(S: SideMoment, X: Tensor, weights: Tensor | None, factor: float) -> None:
    """Add ``factor`` Xᵀ W X, W = I, or diagonal by its ``weights`` [n], or a matrix [n, n]."""
    if isinstance(S, Tensor):
        if weights is None:
            weighted = X
        else:
            weighted = X * weights[:, None] if weights.ndim == 1 else weights @ X
        S.addmm_(X.T, weighted, alpha=factor)
        return
    rows = X
    if weights is not None and weights.ndim == 1:
        rows = X * weights.sqrt()[:, None]
    elif weights is not None:
        values, vectors = decomposed(weights)
        rows = (vectors * values.clamp_min(0.0).sqrt()).T @ X
    S.add(rows * factor**0.5)


def stacked(gradients: Iterable[list[Gradient]], *, rows: int) -> Iterator[list[Gradient]]:
    """Yield the same gradients, those of independent rows joined to larger ones where all are such.

    Args:
        gradients: lists of one gradient a unit.
        rows: to join, at least; the last may have fewer.

    Yields:
        Lists of one gradient a unit, whose moments sum to the same.
    """
    waiting: list[list[OuterProduct]] = []
    for found in gradients:
        independent = [g for g in found if isinstance(g, OuterProduct) and g.independent]
        if len(independent) < len(found):
            yield found
            continue
        waiting.append(independent)
        if sum(len(first.A) for first, *_ in waiting) >= rows:
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _join(products: list[list[OuterProduct]]) -> list[Gradient]:
    return [
        OuterProduct(torch.cat([p.D for p in unit]), torch.cat([p.A for p in unit]), True)
        for unit in zip(*products, strict=True)
    ]


@dataclass
class KroneckerMoments:
    """Sums of G Gᵀ and Gᵀ G over gradients G [out, in]; traces of the two agree.

    Attributes:
        S_out: [out, out], Σ w G Gᵀ; a sketch of it for a truncated side.
        S_in: [in, in], Σ w Gᵀ G; likewise.
        total: Σ of the divisors handed to ``add``.
    """

    S_out: SideMoment
    S_in: SideMoment
    total: float = 0.0

    @classmethod
    def zeros(cls, like: Tensor, ranks: Ranks = COMPLETE) -> KroneckerMoments:
        """Return empty moments for gradients of the shape of ``like``, float32 or wider.

        Args:
            like: [out, in].
            ranks: of truncated sides.

        Returns:
            Moments with zero sums.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        S_out, S_in = (
            torch.zeros(size, size, dtype=dtype, device=like.device)
            if rank is None
            else RowSketch(size, rank, like)
            for size, rank in zip(like.shape, (ranks.out, ranks.width), strict=True)
        )
        return cls(S_out, S_in)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.S_in.device

    def add(self, gradient: Gradient, *, weight: float = 1.0, count: float = 1.0) -> None:
        """Add one gradient.

        Args:
            gradient: G [out, in], or its factors.
            weight: factor of its products in the sums.
            count: what it adds to the divisor.
        """
        dtype = self.S_in.dtype
        if isinstance(gradient, OuterProduct):
            D, A = gradient.D.to(dtype), gradient.A.to(dtype)
            if gradient.independent:
                _add_(self.S_out, D, A.square().sum(1), weight)
                _add_(self.S_in, A, D.square().sum(1), weight)
            else:
                _add_(self.S_out, D, A @ A.T, weight)
                _add_(self.S_in, A, D @ D.T, weight)
        else:
            G = gradient.to(dtype)
            _add_(self.S_out, G.T, None, weight)
            _add_(self.S_in, G, None, weight)
        self.total += count

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean second moments of two complete sides.

        Returns:
            S_out / total [out, out] and S_in / total [in, in].

        Raises:
            StateError: nothing has been added, or a side is a sketch.
        """
        S_out, S_in = self.side_means()
        if not (isinstance(S_out, Tensor) and isinstance(S_in, Tensor)):
            raise StateError("a sketched side has no dense moment: use side_means")
        return S_out, S_in

    def side_means(self) -> tuple[SideMoment, SideMoment]:
        """Return the mean second moments.

        Returns:
            As ``means``, with a sketch for a truncated side.

        Raises:
            StateError: nothing has been added.
        """
        if self.total <= 0:
            raise StateError("no gradient was recorded: pass at least one batch of the task")
        S_out, S_in = (
            S / self.total if isinstance(S, Tensor) else S.scaled(1.0 / self.total)
            for S in (self.S_out, self.S_in)
        )
        return S_out, S_in


@dataclass
class EigenMoments:
    """Weighted first and second moments of a gradient's coordinates in a frozen basis.

    For a unit held entry by entry the basis is None and the coordinates are its entries.

    Attributes:
        basis: the frozen basis, or None.
        first: Σ w z, in the coordinates' shape, or Σ w G in the gradients' where the basis is
            truncated; independent rows, of zero mean, add nothing to it.
        second: Σ w z², for a pooled coordinate summed over its directions.
        weight: Σ w.
        count: number of gradients.
    """

    basis: KroneckerBasis | None
    first: Tensor
    second: Tensor
    weight: float = 0.0
    count: int = 0

    @classmethod
    def zeros(cls, basis: KroneckerBasis | None, like: Tensor) -> EigenMoments:
        """Return empty moments for gradients of the shape of ``like``, float32 or wider.

        Args:
            basis: the basis the coordinates are taken in, or None for the entries themselves.
            like: [out, in] or any shape without a basis.

        Returns:
            Moments with zero sums.
        """
        zero = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        shape = like.shape if basis is None else basis.coordinates
        return cls(basis, zero, zero.new_zeros(shape))

    def add(self, gradient: Gradient, *, weight: float = 1.0) -> None:
        """Add one gradient.

        Args:
            gradient: G, in the shape given to ``zeros``, or its factors.
            weight: w, e.g. the batch size.
        """
        if isinstance(gradient, OuterProduct):
            D, A = gradient.D.to(self.first.dtype), gradient.A.to(self.first.dtype)
            if gradient.independent:
                self.second.addmm_(*self._squares(D, A), alpha=weight)
                self.count += 1
                return
            G = D.T @ A
        else:
            G = gradient.to(self.first.dtype)
        z = G if self.basis is None else self.basis.project(G)
        if self.basis is not None and self.basis.truncated:
            self.first.add_(G, alpha=weight)
            self.second.add_(self.basis.gathered(z.square_()), alpha=weight)
        else:
            self.first.add_(z, alpha=weight)
            self.second.addcmul_(z, z, value=weight)
        self.weight += weight
        self.count += 1

    def _squares(self, D: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows' squared coordinates, [s_out, n] and [n, s_in]."""
        if self.basis is None:
            return D.square().T, A.square()
        U, V = self.basis.U_out, self.basis.U_in
        pooled_out, pooled_in = self.basis.pooled_out, self.basis.pooled_in
        D = frame.analyse_columns(U, D, pooled=pooled_out).square_()
        A = frame.analyse_columns(V, A, pooled=pooled_in).square_()
        if pooled_out:
            D = frame.summed(D, U.shape[1], dim=1)
        if pooled_in:
            A = frame.summed(A, V.shape[1], dim=1)
        return D.T, A

    def second_moment(self) -> Tensor:
        """Return Σ w z², for a pooled coordinate the mean over its directions.

        Returns:
            In the coordinates' shape.
        """
        return self.second if self.basis is None else self.basis.per_direction(self.second)

    def squared_sum(self) -> Tensor:
        """Return (Σ w z)², for a pooled coordinate the mean over its directions.

        Returns:
            In the coordinates' shape.
        """
        if self.basis is None or not self.basis.truncated:
            return self.first.square()
        squares = self.basis.project(self.first).square_()
        return self.basis.per_direction(self.basis.gathered(squares))
