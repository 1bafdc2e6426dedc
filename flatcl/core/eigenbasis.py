"""The Kronecker eigenbasis of a layer: one orthonormal basis a side, never their product.

A side may be truncated to its leading directions; see ``frame``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flatcl.core import frame
from flatcl.errors import NonFiniteError


def decomposed(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, rising, and eigenvectors, whatever zeros the matrix has.

    The libraries' divide and conquer can fail, or return NaN without a word, where many rows are
    next to zero: inputs hardly seen, such as the outer places of a kernel on small images. Often in
    float32, seldom in float64, which is taken only then; where it fails too, these rows are left
    out.

    Args:
        symmetric: [d, d], finite, positive semi-definite up to rounding.

    Returns:
        Values [d] and orthonormal columns [d, d], in the dtype of ``symmetric``.
    """
    dtype = symmetric.dtype
    for matrix in (symmetric, symmetric.double()):
        try:
            values, vectors = torch.linalg.eigh(matrix)
        except torch.linalg.LinAlgError:
            continue
        if bool(torch.isfinite(vectors).all()):
            return values.to(dtype), vectors.to(dtype)
    values, vectors = _of_rows_above_rounding(symmetric.double(), torch.finfo(dtype).eps)
    return values.to(dtype), vectors.to(dtype)


def _of_rows_above_rounding(symmetric: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the eigendecomposition without rows i where A_ii ≤ ε² max A; unit vectors stand there.

    Since |A_ij|² ≤ A_ii A_jj, no entry that is left out exceeds ε max A.
    """
    diagonal = symmetric.diagonal()
    seen = diagonal > eps**2 * diagonal.max()
    values, vectors = torch.zeros_like(diagonal), torch.eye(len(diagonal)).to(symmetric)
    some = seen.nonzero().squeeze(1)
    values[some], vectors[some[:, None], some] = torch.linalg.eigh(symmetric[some][:, some])
    order = values.argsort(stable=True)
    return values[order], vectors[:, order]


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
    vectors = decomposed(symmetric)[1].flip(1).to(matrix.dtype)
    peaks = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors.mul_(torch.where(peaks < 0, -1.0, 1.0).to(vectors)).contiguous()


@dataclass(frozen=True)
class KroneckerBasis:
    """An orthonormal basis of matrix space, {u vᵀ}: columns u of U_out, v of U_in.

    A side may be truncated: its basis then has fewer columns than rows, and what is orthogonal to
    them is one *pooled* coordinate, the last. Numbers that belong to coordinates (stiffness) have
    shape [s_out, s_in], s = r + 1 for a pooled side, else r; ``project`` gives its result in frame
    coordinates (see ``frame``), in which the pooled coordinate is a whole remainder.

    Attributes:
        U_out: [out, r_out], orthonormal columns.
        U_in: [in, r_in], orthonormal columns.
        pooled_out: whether the complement of U_out is a coordinate.
        pooled_in: whether the complement of U_in is a coordinate.
    """

    U_out: Tensor
    U_in: Tensor
    pooled_out: bool = False
    pooled_in: bool = False

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

    @classmethod
    def of_sides(cls, U_out: Tensor, U_in: Tensor) -> KroneckerBasis:
        """Return the basis of all of matrix space with these directions kept.

        Args:
            U_out: [out, r_out], orthonormal columns; r_out = out for a complete side.
            U_in: [in, r_in].

        Returns:
            The basis; a side with fewer columns than rows is pooled.
        """
        return cls(U_out, U_in, U_out.shape[1] < U_out.shape[0], U_in.shape[1] < U_in.shape[0])

    @property
    def truncated(self) -> bool:
        """Whether a side is pooled."""
        return self.pooled_out or self.pooled_in

    @property
    def coordinates(self) -> tuple[int, int]:
        """The shape [s_out, s_in] of numbers that belong to coordinates."""
        return (
            self.U_out.shape[1] + self.pooled_out,
            self.U_in.shape[1] + self.pooled_in,
        )

    def to(self, device: torch.device) -> KroneckerBasis:
        """Return the basis on a device.

        Args:
            device: where its tensors shall be.

        Returns:
            The same numbers there.
        """
        return replace(self, U_out=self.U_out.to(device), U_in=self.U_in.to(device))

    def leading(self, width: int) -> KroneckerBasis:
        """Return the basis of the space of the first input coordinates.

        Args:
            width: how many, 1 … s_in.

        Returns:
            The basis; its sides span all only if ``width`` is s_in.
        """
        pooled = self.pooled_in and width > self.U_in.shape[1]
        return replace(self, U_in=self.U_in[:, :width], pooled_in=pooled)

    def project(self, matrix: Tensor) -> Tensor:
        """Return the coordinates U_outᵀ W U_in.

        Args:
            matrix: W [out, in].

        Returns:
            [out, in], one number an eigendirection; [r + d] in place of d where a side is pooled.
        """
        columns = frame.analyse_columns(self.U_in, matrix, pooled=self.pooled_in)
        return frame.analyse_rows(self.U_out, columns, pooled=self.pooled_out)

    def unproject(self, coordinates: Tensor) -> Tensor:
        """Return the matrix U_out Z U_inᵀ that has the given coordinates.

        Args:
            coordinates: Z [out, in], or as ``project`` returns it.

        Returns:
            [out, in]; the adjoint of ``project``, and its inverse on what that returns.
        """
        rows = frame.synthesise_rows(self.U_out, coordinates, pooled=self.pooled_out)
        return frame.synthesise_columns(self.U_in, rows, pooled=self.pooled_in)

    def expand(self, values: Tensor) -> Tensor:
        """Return one number a coordinate in the shape of ``project``.

        Args:
            values: [s_out, s_in].

        Returns:
            The pooled ones repeated; ``values`` itself if no side is pooled.
        """
        if self.pooled_out:
            values = frame.repeated(values, len(self.U_out), dim=0)
        if self.pooled_in:
            values = frame.repeated(values, len(self.U_in), dim=1)
        return values

    def gathered(self, squares: Tensor) -> Tensor:
        """Return the sums over each coordinate of a quantity in the shape of ``project``.

        Args:
            squares: squared coordinates, or another quantity that adds up.

        Returns:
            [s_out, s_in]; ``squares`` itself if no side is pooled.
        """
        if self.pooled_out:
            squares = frame.summed(squares, self.U_out.shape[1], dim=0)
        if self.pooled_in:
            squares = frame.summed(squares, self.U_in.shape[1], dim=1)
        return squares

    def directions(self) -> tuple[Tensor, Tensor]:
        """Return how many directions of each side a coordinate stands for.

        Returns:
            [s_out] and [s_in]: ones, and the dimension of the complement where it is pooled.
        """
        return (
            frame.directions(self.U_out, pooled=self.pooled_out),
            frame.directions(self.U_in, pooled=self.pooled_in),
        )

    def per_direction(self, sums: Tensor) -> Tensor:
        """Return means over the directions of each coordinate.

        Args:
            sums: [s_out, s_in].

        Returns:
            [s_out, s_in]; ``sums`` itself if no side is pooled.
        """
        if not self.truncated:
            return sums
        out, width = self.directions()
        return sums / (out[:, None] * width)

    def weighed(self, entries: Tensor) -> Tensor:
        """Return the diagonal, in the shape of ``project``, of what is diagonal in the weights.

        Args:
            entries: [out, in], one number a weight.

        Returns:
            (U_out²)ᵀ ``entries`` U_in²; for a pooled coordinate each entry times its share in it,
            which is its sum's exact part and its diagonal's main part.
        """
        out, width = self.U_out.square(), self.U_in.square()
        found = out.T @ entries
        if self.pooled_out:
            rest = (1.0 - out.sum(1, keepdim=True)).clamp_min_(0.0)
            found = torch.cat([found, rest * entries])
        left = found @ width
        if self.pooled_in:
            rest = (1.0 - width.sum(1)).clamp_min_(0.0)
            left = torch.cat([left, found * rest], dim=1)
        return left

    def entries(self, values: Tensor) -> Tensor:
        """Return the diagonal, in the weights, of what is diagonal in the basis.

        Args:
            values: [s_out, s_in], one number a coordinate.

        Returns:
            [out, in].
        """
        out = frame.shares(self.U_out, pooled=self.pooled_out)
        width = frame.shares(self.U_in, pooled=self.pooled_in)
        return out @ values @ width.T

    def overlaps(self, other: KroneckerBasis) -> tuple[Tensor, Tensor]:
        """Return the squared overlaps of this basis with another, side by side.

        A diagonal changes basis only through these: k' = |U'ᵀU|² k (|V'ᵀV|²)ᵀ.

        Args:
            other: a basis of the same matrix space.

        Returns:
            [s_out, s_out'] and [s_in, s_in'], entry [i, j] = (self_i · other_j)², for pooled ones
            tr(P_i P_j) / tr P_i; rows sum to 1.
        """
        return (
            frame.overlaps(
                self.U_out, other.U_out, pooled=self.pooled_out, pooled2=other.pooled_out
            ),
            frame.overlaps(self.U_in, other.U_in, pooled=self.pooled_in, pooled2=other.pooled_in),
        )
