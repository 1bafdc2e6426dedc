"""Second moments of a layer's gradients: raw sums and counts, divided only at use.

A Linear layer's gradient over n inputs is an outer product, G = Dᵀ A, of rank n or less. With fewer
inputs than outputs its moments are cheaper from the factors than from G.
"""

from __future__ import annotations

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
    """

    D: Tensor
    A: Tensor

    def dense(self) -> Tensor:
        """Return G.

        Returns:
            [out, in].
        """
        return self.D.T @ self.A


Gradient: TypeAlias = "Tensor | OuterProduct"


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
        first: Σ w z, in the coordinates' shape.
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
            z = (D @ self.basis.U_out).T @ (A @ self.basis.U_in)
        else:
            dense = gradient.dense() if isinstance(gradient, OuterProduct) else gradient
            G = dense.to(self.first.dtype)
            z = G if self.basis is None else self.basis.project(G)
        self.first.add_(z, alpha=weight)
        self.second.addcmul_(z, z, value=weight)
        self.weight += weight
        self.count += 1
