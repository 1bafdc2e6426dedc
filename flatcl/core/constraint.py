"""A quadratic constraint on one unit: where it is stiff, about which weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        stiffness: k ≥ 0, [out, in] or the parameter's shape, nats/w²; [s_out, s_in] in a truncated
            basis, the mean over the complement's directions for a pooled coordinate.
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
            z, in the stiffness's shape, w; in a truncated basis in that of its ``project``.
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
        return 0.5 * (self._expanded() * self.coordinates(weight).square()).sum()

    def apply(self, displacement: Tensor) -> Tensor:
        """Return K x, the gradient of the energy at W* + x.

        Args:
            displacement: x, in the anchor's shape, w.

        Returns:
            K x, in the same shape, nats/w.
        """
        if self.basis is None:
            return self.stiffness * displacement
        return self.basis.unproject(self._expanded() * self.basis.project(displacement))

    def _expanded(self) -> Tensor:
        return self.stiffness if self.basis is None else self.basis.expand(self.stiffness)

    def squared_norm(self) -> Tensor:
        """Return ‖K‖², the sum over all directions of k².

        Returns:
            A scalar, (nats/w²)².
        """
        squares = self.stiffness.square()
        if self.basis is not None and self.basis.truncated:
            out, width = self.basis.directions()
            squares = squares * out[:, None] * width
        return squares.sum()

    def side_spectra(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the two partial traces of K by eigenvectors and eigenvalues.

        Returns:
            (U_out, p [s_out]) and (U_in, q [s_in]), nats/w²; for a pooled side the last eigenvalue
            is that of each direction of the complement.

        Raises:
            StateError: the unit has no Kronecker basis.
        """
        if self.basis is None:
            raise StateError("a constraint held entry by entry has no partial traces")
        basis, k = self.basis, self.stiffness
        if not basis.truncated:
            return (basis.U_out, k.sum(1)), (basis.U_in, k.sum(0))
        out, width = basis.directions()
        return (basis.U_out, k @ width), (basis.U_in, out @ k)

    def partial_traces(self) -> tuple[Tensor, Tensor]:
        """Return the two partial traces of K, what a merge preserves exactly.

        Returns:
            P = U_out diag(k 1) U_outᵀ [out, out] and Q = U_in diag(1ᵀk) U_inᵀ [in, in], nats/w².
        """
        P, Q = (dense_spectrum(U, values) for U, values in self.side_spectra())
        return P, Q

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
        k = self._expanded().reshape(-1)
        basis = self.basis
        if basis is None:
            return torch.diag(k)
        Q = torch.kron(_frame(basis.U_out, basis.pooled_out), _frame(basis.U_in, basis.pooled_in))
        return (Q * k) @ Q.T

    def to(self, device: torch.device) -> Constraint:
        """Return the constraint on a device.

        Args:
            device: where its tensors shall be.

        Returns:
            The same numbers there.
        """
        basis = None if self.basis is None else self.basis.to(device)
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
        anchor = weight.detach().to(self.anchor.dtype).clone()
        anchor[: old[0]] = self.anchor
        k, basis, kept = self.stiffness, self.basis, old[0]
        if basis is not None:
            # New rows are directions of their own, before the pooled one, which stays the same.
            kept = basis.U_out.shape[1]
            basis = replace(basis, U_out=_pad(basis.U_out, new[0]))
        free = k.new_zeros(new[0] - old[0], *k.shape[1:])
        return Constraint(basis, torch.cat([k[:kept], free, k[kept:]]), anchor)


def _pad(vectors: Tensor, size: int) -> Tensor:
    """Return an orthonormal basis of the larger space: the old one, then unit vectors."""
    d, r = vectors.shape
    padded = vectors.new_zeros(size, r + size - d)
    padded[:d, :r] = vectors
    padded[d:, r:].fill_diagonal_(1.0)
    return padded


def dense_spectrum(U: Tensor, values: Tensor) -> Tensor:
    """Return U diag(values) Uᵀ, with one value more that much on the complement of U.

    Args:
        U: [d, r], orthonormal columns.
        values: [r] or [r + 1].

    Returns:
        [d, d].
    """
    r = U.shape[1]
    if len(values) == r:
        return (U * values) @ U.T
    return (U * (values[:r] - values[r])) @ U.T + values[r] * torch.eye(len(U)).to(U)


def _frame(U: Tensor, pooled: bool) -> Tensor:
    """Return the frame's vectors as columns: those kept, then the complement's projector."""
    return torch.cat([U, torch.eye(len(U)).to(U) - U @ U.T], dim=1) if pooled else U
