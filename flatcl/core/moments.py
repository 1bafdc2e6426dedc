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

from flatcl.core.eigenbasis import KroneckerBasis
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
        S_out: [out, out], Σ w G Gᵀ.
        S_in: [in, in], Σ w Gᵀ G.
        total: Σ of the divisors handed to ``add``.
    """

    S_out: Tensor
    S_in: Tensor
    total: float = 0.0

    @classmethod
    def zeros(cls, like: Tensor) -> KroneckerMoments:
        """Return empty moments for gradients of the shape of ``like``, float32 or wider.

        Args:
            like: [out, in].

        Returns:
            Moments with zero sums.
        """
        out, width = like.shape
        dtype = torch.promote_types(like.dtype, torch.float32)
        return cls(
            torch.zeros(out, out, dtype=dtype, device=like.device),
            torch.zeros(width, width, dtype=dtype, device=like.device),
        )

    def add(self, gradient: Gradient, *, weight: float = 1.0, count: float = 1.0) -> None:
        """Add one gradient.

        Args:
            gradient: G [out, in], or its factors.
            weight: factor of its products in the sums.
            count: what it adds to the divisor.
        """
        if isinstance(gradient, OuterProduct):
            D, A = gradient.D.to(self.S_in.dtype), gradient.A.to(self.S_in.dtype)
            if gradient.independent:
                self.S_out.addmm_(D.T, D * A.square().sum(1, keepdim=True), alpha=weight)
                self.S_in.addmm_(A.T, A * D.square().sum(1, keepdim=True), alpha=weight)
            else:
                self.S_out.addmm_(D.T, (A @ A.T) @ D, alpha=weight)
                self.S_in.addmm_(A.T, (D @ D.T) @ A, alpha=weight)
        else:
            G = gradient.to(self.S_in.dtype)
            self.S_out.addmm_(G, G.T, alpha=weight)
            self.S_in.addmm_(G.T, G, alpha=weight)
        self.total += count

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean second moments.

        Returns:
            S_out / total [out, out] and S_in / total [in, in].

        Raises:
            StateError: nothing has been added.
        """
        if self.total <= 0:
            raise StateError("no gradient was recorded: pass at least one batch of the task")
        return self.S_out / self.total, self.S_in / self.total


@dataclass
class EigenMoments:
    """Weighted first and second moments of a gradient's coordinates in a frozen basis.

    For a unit held entry by entry the basis is None and the coordinates are its entries.

    Attributes:
        basis: the frozen basis, or None.
        first: Σ w z, in the coordinates' shape; independent rows, of zero mean, add nothing to it.
        second: Σ w z².
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
        return cls(basis, zero, zero.clone())

    def add(self, gradient: Gradient, *, weight: float = 1.0) -> None:
        """Add one gradient.

        Args:
            gradient: G, in the shape given to ``zeros``, or its factors.
            weight: w, e.g. the batch size.
        """
        if isinstance(gradient, OuterProduct) and self.basis is not None:
            D, A = gradient.D.to(self.first.dtype), gradient.A.to(self.first.dtype)
            D, A = D @ self.basis.U_out, A @ self.basis.U_in
            if gradient.independent:
                self.second.addmm_(D.square_().T, A.square_(), alpha=weight)
                self.count += 1
                return
            z = D.T @ A
        else:
            dense = gradient.dense() if isinstance(gradient, OuterProduct) else gradient
            G = dense.to(self.first.dtype)
            z = G if self.basis is None else self.basis.project(G)
        self.first.add_(z, alpha=weight)
        self.second.addcmul_(z, z, value=weight)
        self.weight += weight
        self.count += 1
