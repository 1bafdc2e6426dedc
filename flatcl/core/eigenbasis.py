"""The Kronecker eigenbasis of a layer: one orthonormal basis a side, never their product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.errors import NonFiniteError


def eigenvectors(matrix: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix as columns, by falling eigenvalue.

    Computed in the matrix's own precision, float32 at least: moments summed in float32 are no
    better known, and their eigendecomposition is half of a task's end and twice as long in
    float64. Each column's largest entry is positive, so that equal inputs give equal bases.

    Args:
        matrix: [d, d], positive semi-definite up to rounding.

    Returns:
        [d, d] orthonormal columns, in the dtype of ``matrix``.

    Raises:
        NonFiniteError: an entry is not finite.
    """
    symmetric = 0.5 * (matrix + matrix.T)
    symmetric = symmetric.to(torch.promote_types(matrix.dtype, torch.float32))
    if not bool(torch.isfinite(symmetric).all()):
        raise NonFiniteError(
            "a second moment of the gradients is not finite: lower the learning rate or check "
            "the inputs"
        )
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors.flip(1).to(matrix.dtype)
    peaks = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors.mul_(torch.where(peaks < 0, -1.0, 1.0).to(vectors)).contiguous()


@dataclass(frozen=True)
class KroneckerBasis:
    """An orthonormal basis of matrix space, {u vᵀ}: columns u of U_out, v of U_in.

    Attributes:
        U_out: [out, out], orthonormal columns.
        U_in: [in, in], orthonormal columns.
    """

    U_out: Tensor
    U_in: Tensor

    @classmethod
    def from_moments(cls, M_out: Tensor, M_in: Tensor) -> KroneckerBasis:
        """Return the eigenbasis of a pair of second moments.

        Args:
            M_out: [out, out], ⟨G Gᵀ⟩ or a partial trace over inputs.
            M_in: [in, in], ⟨Gᵀ G⟩ or a partial trace over outputs.

        Returns:
            The basis, each side by falling eigenvalue.
        """
        return cls(eigenvectors(M_out), eigenvectors(M_in))

    def project(self, matrix: Tensor) -> Tensor:
        """Return the coordinates U_outᵀ W U_in.

        Args:
            matrix: W [out, in].

        Returns:
            [out, in], one number an eigendirection.
        """
        return self.U_out.T @ (matrix @ self.U_in)

    def unproject(self, coordinates: Tensor) -> Tensor:
        """Return the matrix U_out Z U_inᵀ that has the given coordinates.

        Args:
            coordinates: Z [out, in].

        Returns:
            [out, in].
        """
        return (self.U_out @ coordinates) @ self.U_in.T

    def overlaps(self, other: KroneckerBasis) -> tuple[Tensor, Tensor]:
        """Return the squared overlaps of this basis with another, side by side.

        A diagonal changes basis only through these: k' = |U'ᵀU|² k (|V'ᵀV|²)ᵀ.

        Args:
            other: a basis of the same shape.

        Returns:
            [out, out] and [in, in], entry [i, j] = (self_i · other_j)², rows and columns sum to 1.
        """
        return (self.U_out.T @ other.U_out).square(), (self.U_in.T @ other.U_in).square()
