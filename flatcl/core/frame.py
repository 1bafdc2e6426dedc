"""One side of a layer in a basis that need not be complete.

A *truncated* side has r orthonormal directions u_i of d, the columns of U, and takes all that is
orthogonal to them together, as one *pooled* coordinate with projector I − U Uᵀ. Its coordinates are
written in a Parseval frame, L = [Uᵀ; I − U Uᵀ] with r + d rows and Lᵀ L = I: products with L and Lᵀ
cost 4 d r a column, no matrix [d, d] is formed, and what is a diagonal in a complete basis is one
in the frame too. A side that is not pooled has L = Uᵀ.
"""

from __future__ import annotations

import torch
from torch import Tensor


def analyse_rows(U: Tensor, x: Tensor, *, pooled: bool) -> Tensor:
    """Return L x, the frame coordinates of the columns of x.

    Args:
        U: [d, r], orthonormal columns.
        x: [d, n].
        pooled: whether the complement is a coordinate.

    Returns:
        [r, n], or [r + d, n] if pooled: the kept directions, then the remainder.
    """
    z = U.T @ x
    return torch.cat([z, torch.addmm(x, U, z, alpha=-1.0)]) if pooled else z


def analyse_columns(V: Tensor, x: Tensor, *, pooled: bool) -> Tensor:
    """Return x Lᵀ, the frame coordinates of the rows of x.

    Args:
        V: [d, r], orthonormal columns.
        x: [n, d].
        pooled: whether the complement is a coordinate.

    Returns:
        [n, r], or [n, r + d] if pooled.
    """
    z = x @ V
    return torch.cat([z, torch.addmm(x, z, V.T, alpha=-1.0)], dim=1) if pooled else z


def synthesise_rows(U: Tensor, z: Tensor, *, pooled: bool) -> Tensor:
    """Return Lᵀ z.

    Args:
        U: [d, r], orthonormal columns.
        z: [r, n], or [r + d, n] if pooled.
        pooled: whether the complement is a coordinate.

    Returns:
        [d, n].
    """
    if not pooled:
        return U @ z
    kept, rest = z[: U.shape[1]], z[U.shape[1] :]
    return torch.addmm(rest, U, kept - U.T @ rest)


def synthesise_columns(V: Tensor, z: Tensor, *, pooled: bool) -> Tensor:
    """Return z L.

    Args:
        V: [d, r], orthonormal columns.
        z: [n, r], or [n, r + d] if pooled.
        pooled: whether the complement is a coordinate.

    Returns:
        [n, d].
    """
    if not pooled:
        return z @ V.T
    kept, rest = z[:, : V.shape[1]], z[:, V.shape[1] :]
    return torch.addmm(rest, kept - rest @ V, V.T)


def directions(U: Tensor, *, pooled: bool) -> Tensor:
    """Return how many directions each coordinate of a side stands for.

    Args:
        U: [d, r].
        pooled: whether the complement is a coordinate.

    Returns:
        [r] ones, and d − r at the end if pooled.
    """
    ones = U.new_ones(U.shape[1])
    return torch.cat([ones, ones.new_full((1,), U.shape[0] - U.shape[1])]) if pooled else ones


def shares(U: Tensor, *, pooled: bool) -> Tensor:
    """Return each coordinate's share of each entry, the diagonals of the side's projectors.

    Args:
        U: [d, r], orthonormal columns.
        pooled: whether the complement is a coordinate.

    Returns:
        [d, r], or [d, r + 1] if pooled; rows then sum to 1.
    """
    squares = U.square()
    if not pooled:
        return squares
    return torch.cat([squares, (1.0 - squares.sum(1, keepdim=True)).clamp_min_(0.0)], dim=1)


def overlaps(U: Tensor, U2: Tensor, *, pooled: bool, pooled2: bool) -> Tensor:
    """Return the overlaps of one side's coordinates with those of another basis of that side.

    Args:
        U: [d, r], orthonormal columns.
        U2: [d, r2], the other basis.
        pooled: whether the first has its complement as a coordinate.
        pooled2: whether the second has.

    Returns:
        tr(P_a P'_i) / tr P_a over the projectors of both, [r (+1), r2 (+1)]: the squared cosine
        of two kept directions; rows sum to 1.
    """
    found = (U.T @ U2).square()
    if pooled2:
        rest = (1.0 - found.sum(1, keepdim=True)).clamp_min_(0.0)
        found = torch.cat([found, rest], dim=1)
    if pooled:
        dimension = U.shape[0] - U.shape[1]
        left = (directions(U2, pooled=pooled2) - found.sum(0)).clamp_min_(0.0)
        found = torch.cat([found, left[None] / dimension])
    return found


def summed(squares: Tensor, kept: int, *, dim: int) -> Tensor:
    """Return sums over the pooled coordinate's entries, the kept ones as they are.

    Args:
        squares: [.., r + d, ..], a quantity in frame coordinates that adds up over them.
        kept: r.
        dim: 0 or 1, the pooled side.

    Returns:
        [.., r + 1, ..].
    """
    rest = squares.narrow(dim, kept, squares.shape[dim] - kept)
    return torch.cat([squares.narrow(dim, 0, kept), rest.sum(dim, keepdim=True)], dim=dim)


def repeated(values: Tensor, size: int, *, dim: int) -> Tensor:
    """Return values with the pooled one repeated, to multiply frame coordinates.

    Args:
        values: [.., r + 1, ..], one number a coordinate, the pooled one last.
        size: d.
        dim: 0 or 1, the pooled side.

    Returns:
        [.., r + d, ..].
    """
    kept = values.shape[dim] - 1
    shape = list(values.shape)
    shape[dim] = size
    return torch.cat(
        [values.narrow(dim, 0, kept), values.narrow(dim, kept, 1).expand(shape)], dim=dim
    )
