"""Orthonormal directions beside a trajectory's own: of the Hessian, of a layer, of chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.moments import EigenMoments, KroneckerMoments
from flatcl.errors import DataError, OptionError
from flatcl.fluctuations.surface import LossSurface

_DENSE = 4096
_SLICE = 64  # columns of a Hessian that are computed together


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions, each with a number.

    Attributes:
        vectors: [k, P], of unit norm.
        values: [k], by falling size: eigenvalues of the Hessian, nats/w², or variances.
    """

    vectors: Tensor
    values: Tensor


def hessian(surface: LossSurface, point: Tensor | None = None) -> Tensor:
    """Return the block's Hessian as a dense matrix.

    Args:
        surface: the loss, of a block of at most 4096 weights.
        point: [P], w; the model's weights if None.

    Returns:
        [P, P], float64, symmetrised, nats/w².

    Raises:
        OptionError: the block is larger.
    """
    if surface.size > _DENSE:
        raise OptionError(
            f"{surface.size} weights make a Hessian of as many rows; the limit is {_DENSE}: use "
            "hessian_directions with a k, or choose a smaller block"
        )
    point = surface.reference if point is None else point
    rows = torch.eye(surface.size, dtype=surface.dtype, device=surface.reference.device)
    H = torch.cat([surface.hessian_products(point, part) for part in torch.split(rows, _SLICE)])
    return 0.5 * (H + H.T)


def hessian_directions(
    surface: LossSurface,
    k: int | None = None,
    *,
    point: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Directions:
    """Return eigenvectors of the block's Hessian, by falling eigenvalue.

    All of them by a dense decomposition, or the k largest by Lanczos (ARPACK).

    Args:
        surface: the loss.
        k: how many of the largest; None for all.
        point: [P], w; the model's weights if None.
        generator: of Lanczos' first vector.

    Returns:
        Directions; values may be negative.

    Raises:
        OptionError: k is not between 1 and P − 1, or None for more than 4096 weights.
        DataError: Lanczos did not converge, or the Hessian is 0.
    """
    point = surface.reference if point is None else point
    if k is None:
        values, vectors = torch.linalg.eigh(hessian(surface, point))
        return Directions(vectors.T.flip(0).contiguous(), values.flip(0))
    if not 1 <= k < surface.size:
        raise OptionError(f"k is {k}; Lanczos finds 1 to {surface.size - 1} directions here")
    start = torch.randn(surface.size, dtype=torch.float64, generator=generator)

    def apply(v: np.ndarray) -> np.ndarray:
        row = torch.from_numpy(np.ascontiguousarray(v)).reshape(1, -1)
        product: np.ndarray = surface.hessian_products(point, row)[0].cpu().numpy()
        return product

    if not apply(start.numpy()).any():  # ARPACK has no word for it in some of its releases
        raise DataError("Lanczos failed: the block's Hessian is 0, and every direction is as flat")
    shape = (surface.size, surface.size)
    operator = LinearOperator(shape, matvec=apply, dtype=np.float64)
    try:
        found, vectors_ = eigsh(operator, k=k, which="LA", v0=start.numpy())
    except ArpackNoConvergence as error:
        raise DataError(
            f"Lanczos found {len(error.eigenvalues)} of {k} eigenvalues: ask for fewer, or use "
            "float64 and more samples"
        ) from error
    except ArpackError as error:
        raise DataError(f"Lanczos failed ({error}): use float64 and more samples") from error
    order = np.argsort(found)[::-1]
    rows = torch.from_numpy(np.ascontiguousarray(vectors_[:, order].T))
    return Directions(rows, torch.from_numpy(found[order].copy()))


def kronecker_directions(snapshots: Tensor, shape: tuple[int, int], k: int) -> Directions:
    """Return the directions u vᵀ of a layer in which its fluctuation is largest.

    The basis that LDC keeps a layer's stiffness in: eigenvectors of ⟨G Gᵀ⟩ and ⟨Gᵀ G⟩, here of
    the centred snapshots, with the exact variance along each pair.

    Args:
        snapshots: [T, out · in], of one matrix, row-major: weights, increments or gradients.
        shape: (out, in).
        k: how many; all out · in of them at most.

    Returns:
        Directions [k, out · in] and variances.

    Raises:
        DataError: the snapshots have another number of weights, or are fewer than 2.
        OptionError: k is below 1.
    """
    out, width = shape
    if snapshots.ndim != 2 or snapshots.shape[1] != out * width:
        raise DataError(f"snapshots of shape {tuple(snapshots.shape)} are not of a {shape} matrix")
    if len(snapshots) < 2:
        raise DataError(f"{len(snapshots)} snapshots: a variance needs at least 2")
    if k < 1:
        raise OptionError(f"k is {k}; at least one direction is needed")
    mean = snapshots.mean(0, dtype=torch.float64)
    like = torch.zeros(shape, dtype=torch.float64)
    sides = KroneckerMoments.zeros(like)
    for row in snapshots:
        sides.add((row.double() - mean).reshape(shape))
    basis = KroneckerBasis.from_moments(*sides.means())
    moments = EigenMoments.zeros(basis, like)
    for row in snapshots:
        moments.add((row.double() - mean).reshape(shape))
    values, order = (moments.second / len(snapshots)).reshape(-1).sort(descending=True)
    pairs = order[:k]
    u, v = basis.U_out[:, pairs // width], basis.U_in[:, pairs % width]
    vectors = torch.einsum("ik,jk->kij", u, v).reshape(len(pairs), -1)
    return Directions(vectors, values[:k])


def random_directions(size: int, k: int, *, generator: torch.Generator) -> Tensor:
    """Return orthonormal directions drawn uniformly.

    Args:
        size: P.
        k: how many, at most P.
        generator: of the draw.

    Returns:
        [k, P], float64.

    Raises:
        OptionError: k is not between 1 and P.
    """
    if not 1 <= k <= size:
        raise OptionError(f"k is {k}; there are 1 to {size} orthonormal directions")
    draw = torch.randn(size, k, dtype=torch.float64, generator=generator)
    columns: Tensor = torch.linalg.qr(draw).Q
    return columns.T.contiguous()
