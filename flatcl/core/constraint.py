"""A quadratic constraint on one unit: where it is stiff, about which weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.errors import OptionError, StateError

_DENSE_LIMIT = 4096


@dataclass(frozen=True)
class Constraint:
    """Energy ½ Σ k ∘ z², z the coordinates of W − W* in the basis; in nats.

    Attributes:
        basis: Kronecker basis of the matrix unit, or None for entry-by-entry.
        stiffness: k ≥ 0, [out, in] or the parameter's shape, nats/w².
        anchor: W*, in the same shape, w.
    """

    basis: KroneckerBasis | None
    stiffness: Tensor
    anchor: Tensor

    def coordinates(self, weight: Tensor) -> Tensor:
        """Return z, the displacement from the anchor in the basis.

        Args:
            weight: W, in the anchor's shape.

        Returns:
            z, in the stiffness's shape, w.
        """
        x = weight - self.anchor
        return x if self.basis is None else self.basis.project(x)

    def energy(self, weight: Tensor) -> Tensor:
        """Return ½ Σ k z², the predicted rise of the earlier tasks' loss.

        Args:
            weight: W, in the anchor's shape.

        Returns:
            A scalar, nats.
        """
        return 0.5 * (self.stiffness * self.coordinates(weight).square()).sum()

    def apply(self, displacement: Tensor) -> Tensor:
        """Return K x, the gradient of the energy at W* + x.

        Args:
            displacement: x, in the anchor's shape, w.

        Returns:
            K x, in the same shape, nats/w.
        """
        if self.basis is None:
            return self.stiffness * displacement
        return self.basis.unproject(self.stiffness * self.basis.project(displacement))

    def partial_traces(self) -> tuple[Tensor, Tensor]:
        """Return the two partial traces of K, what a merge preserves exactly.

        Returns:
            P = U_out diag(k 1) U_outᵀ [out, out] and Q = U_in diag(1ᵀk) U_inᵀ [in, in], nats/w².

        Raises:
            StateError: the unit has no Kronecker basis.
        """
        if self.basis is None:
            raise StateError("a constraint held entry by entry has no partial traces")
        U, V, k = self.basis.U_out, self.basis.U_in, self.stiffness
        return (U * k.sum(1)) @ U.T, (V * k.sum(0)) @ V.T

    def to_dense(self) -> Tensor:
        """Return K as a dense matrix over the row-major entries, for tests and small models.

        Returns:
            [n, n], n = number of weights.

        Raises:
            OptionError: there are more than 4096 weights.
        """
        n = self.anchor.numel()
        if n > _DENSE_LIMIT:
            raise OptionError(f"{n} weights make a dense matrix of {n}²; the limit is 4096")
        k = self.stiffness.reshape(-1)
        if self.basis is None:
            return torch.diag(k)
        Q = torch.kron(self.basis.U_out, self.basis.U_in)
        return (Q * k) @ Q.T

    def to(self, device: torch.device) -> Constraint:
        """Return the constraint on a device.

        Args:
            device: where its tensors shall be.

        Returns:
            The same numbers there.
        """
        basis = self.basis
        if basis is not None:
            basis = KroneckerBasis(basis.U_out.to(device), basis.U_in.to(device))
        return Constraint(basis, self.stiffness.to(device), self.anchor.to(device))

    def grown_to(self, weight: Tensor) -> Constraint:
        """Return the constraint for a layer that has gained rows or columns: the new ones free.

        Args:
            weight: the layer's present view, with as many output rows or more.

        Returns:
            The same constraint on the old slice; zero stiffness, anchored at ``weight``, elsewhere.

        Raises:
            StateError: anything but the number of output rows has changed, or that has fallen.
        """
        old, new = self.anchor.shape, weight.shape
        if old == new:
            return self
        if len(old) != len(new) or old[1:] != new[1:] or not old or new[0] < old[0]:
            raise StateError(
                f"a layer's view changed from {tuple(old)} to {tuple(new)}; only new output rows "
                "are supported: begin anew with a fresh Landscape"
            )
        stiffness = torch.zeros_like(weight, dtype=self.stiffness.dtype)
        stiffness[: old[0]] = self.stiffness
        anchor = weight.detach().to(self.anchor.dtype).clone()
        anchor[: old[0]] = self.anchor
        basis = self.basis
        if basis is not None:
            basis = KroneckerBasis(_pad(basis.U_out, new[0]), basis.U_in)
        return Constraint(basis, stiffness, anchor)


def _pad(vectors: Tensor, size: int) -> Tensor:
    """Return an orthonormal basis of the larger space: the old one, then unit vectors."""
    padded = torch.eye(size, dtype=vectors.dtype, device=vectors.device)
    padded[: len(vectors), : len(vectors)] = vectors
    return padded
