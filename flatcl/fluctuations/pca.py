"""Principal directions of a weight trajectory, exact or from a stream.

A trajectory of T snapshots of P weights has at most min(T − 1, P) directions. They follow from the
Gram matrix X Xᵀ [T, T], or the scatter Xᵀ X [P, P] where weights are fewer; from a stream, by
merge and truncate: the sketch's rows (singular value times direction) and a block of new rows are
decomposed together and the weakest dropped. What is dropped bounds the error, so that a sketch
knows how far it can be trusted.

Sums are taken in float64 whatever the snapshots' dtype, a block at a time, so that snapshots
mapped from a file are never held in memory whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.errors import DataError, OptionError
from flatcl.fluctuations.finite import refuse_not_finite

_HELD = 1 << 20  # numbers of a trajectory that are held in float64 at a time, 8 MB
_TILE = 64  # rows of a product with itself that are taken together: half of it is not needed


@dataclass(frozen=True)
class PrincipalDirections:
    """Directions of largest variance of a trajectory, w(t) = mean + Σ_i θ_i(t) p_i + rest.

    Attributes:
        directions: p_i [k, P], orthonormal rows by falling variance, each row's largest entry
            positive, in the snapshots' dtype.
        variances: σ_i² [k], float64, w²: means of θ_i² over the T snapshots.
        mean: ⟨w⟩ [P], w.
        total: the trajectory's whole variance, w²; Σ σ_i² and what lies off the k directions.
        snapshots: T.
        error_bound: the true σ_i² exceed ``variances`` by at most this, w²; 0 where exact.
    """

    directions: Tensor
    variances: Tensor
    mean: Tensor
    total: float
    snapshots: int
    error_bound: float = 0.0

    def scores(self, snapshots: Tensor) -> Tensor:
        """Return θ_i(t), the displacement from the mean along each direction.

        Args:
            snapshots: [n, P], w.

        Returns:
            [n, k], w.

        Raises:
            DataError: the snapshots have another number of weights.
        """
        if snapshots.ndim != 2 or snapshots.shape[1] != len(self.mean):
            raise DataError(
                f"snapshots have shape {tuple(snapshots.shape)}; these directions need (n, "
                f"{len(self.mean)})"
            )
        theta = snapshots.new_zeros(len(snapshots), len(self.directions), dtype=torch.float64)
        mean = self.mean.to(theta)
        for part in _blocks(len(mean), max(len(snapshots), len(self.directions))):
            centred = snapshots[:, part].double() - mean[part]
            theta.addmm_(centred, self.directions[:, part].to(theta).T)
        return theta.to(snapshots.dtype)


@torch.no_grad()
def principal_directions(snapshots: Tensor, k: int) -> PrincipalDirections:
    """Return the exact leading principal directions of a trajectory.

    By the Gram matrix of the snapshots, T² P operations and T² extra memory, or where weights are
    fewer than snapshots by their scatter, P² T and P². The tensor may be mapped from a file: it is
    read in blocks and never written. k < 1 is an OptionError, a snapshot that is not finite a
    NonFiniteError.

    Args:
        snapshots: [T, P], w; T ≥ 2.
        k: how many; fewer come back where the trajectory has fewer.

    Returns:
        Its directions, variances divided by T.

    Raises:
        DataError: there are fewer than two snapshots, or they are all the same.
    """
    _check_shape(snapshots, k)
    T, P = snapshots.shape
    if T < 2:
        raise DataError(f"{T} snapshot: a variance needs at least 2; record more of them")
    mean, scatter = _scatter_of_weights(snapshots) if P < T else _gram_of_snapshots(snapshots)
    values, vectors = _eigh(scatter)
    k = min(k, _rank(values, mean, T))
    if P < T:
        directions = vectors[:, :k].T.to(snapshots.dtype).contiguous()
    else:
        coefficients = (vectors[:, :k] / values[:k].sqrt()).T
        directions = snapshots.new_empty(k, P)
        for part in _blocks(P, T):
            directions[:, part] = coefficients @ (snapshots[:, part].double() - mean[part])
        # A variance near rounding is wrong by a share, which the direction's norm shows.
        sound = ((directions.norm(dim=1) - 1.0).abs() < 1e-4).long().cumprod(0)
        directions = directions[: (k := int(sound.sum()))]
    mean, total = mean.to(snapshots.dtype), float(scatter.trace()) / T
    return PrincipalDirections(_signed_(directions), values[:k] / T, mean, total, T)


class StreamingDirections:
    """Leading principal directions of a trajectory of any length, in constant memory.

    Holds sketch + block + 1 rows of P weights, in float32 or wider.

    Args:
        k: directions wanted.
        sketch: rows kept between merges, 4 k if None; more are slower and nearer to exact.
        block: new rows gathered before a merge, as many as the sketch if None; more are faster
            and a little nearer to exact. The first merge waits for sketch + block.

    Raises:
        OptionError: k < 1, a sketch below k, or a block below 1.
    """

    def __init__(self, k: int, *, sketch: int | None = None, block: int | None = None) -> None:
        self.k = k
        self.sketch = 4 * k if sketch is None else sketch
        self.block = self.sketch if block is None else block
        if k < 1 or self.sketch < k or self.block < 1:
            raise OptionError(
                f"k {k}, sketch {self.sketch}, block {self.block}: k and block must be 1 or more, "
                "and the sketch at least k"
            )
        self.count = 0
        self.total = 0.0  # Σ |w − mean|², float64
        self.dropped = 0.0  # Σ over merges of the largest eigenvalue left out
        self._mean: Tensor | None = None
        self._rows: Tensor | None = None  # the sketch, then what waits, then room for a shift
        self._kept = 0  # rows of the sketch
        self._waiting = 0
        self._dtype = torch.float32

    @torch.no_grad()
    def add(self, snapshots: Tensor) -> None:
        """Take up one snapshot, or several in their order.

        One that is not finite is a NonFiniteError; those before it are taken up.

        Args:
            snapshots: [P] or [n, P], w.

        Raises:
            DataError: the number of weights has changed.
        """
        new = snapshots if snapshots.ndim > 1 else snapshots[None]
        _check_shape(new, self.k)
        P = new.shape[1]
        if self._mean is not None and len(self._mean) != P:
            raise DataError(f"a snapshot has {P} weights, those before had {len(self._mean)}")
        if self._mean is None or self._rows is None:
            self._dtype = new.dtype
            wide = torch.promote_types(new.dtype, torch.float32)
            self._mean = new.new_zeros(P, dtype=torch.float64)
            self._rows = new.new_empty(self.sketch + self.block + 1, P, dtype=wide)
        for row in new:
            place = self._rows[self._kept + self._waiting].copy_(row)
            refuse_not_finite(place.sum())  # which no weight can hide from, in a tenth of the time
            self._waiting += 1
            if self._kept + self._waiting == len(self._rows) - 1:
                self._merge()

    def directions(self) -> PrincipalDirections:
        """Return the leading directions of all that was added.

        Returns:
            At most k directions, with ``error_bound``.

        Raises:
            DataError: there were fewer than two snapshots, or they are all the same.
        """
        if self._waiting:
            self._merge()
        if self.count < 2 or self._mean is None or self._rows is None:
            raise DataError(f"{self.count} snapshots: a variance needs at least 2; record more")
        rows = self._rows[: self._kept]
        values = torch.stack([row.double().square().sum() for row in rows])
        k = min(self.k, _rank(values, self._mean, self.count))
        directions = rows[:k] / values[:k].sqrt().to(rows)[:, None]
        return PrincipalDirections(
            _signed_(directions.to(self._dtype)),
            values[:k] / self.count,
            self._mean.to(self._dtype),
            self.total / self.count,
            self.count,
            self.dropped / self.count,
        )

    @torch.no_grad()
    def _merge(self) -> None:
        """Decompose sketch, new rows and the shift of the mean together; keep the strongest."""
        assert self._mean is not None
        assert self._rows is not None
        n, m, kept = self.count, self._waiting, self._kept
        # Scatter about a common mean: both parts' own, and the means' (Chan et al., 1983).
        rows = self._rows[: kept + m + (n > 0)]
        gram = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
        for part in _blocks(rows.shape[1], len(rows)):
            new = rows[kept : kept + m, part].double()
            mean = new.mean(0)
            rows[kept : kept + m, part] = new - mean
            shift = mean - self._mean[part]
            if n:
                rows[-1, part] = shift.mul((n * m / (n + m)) ** 0.5)
            self._mean[part] += shift * (m / (n + m))
            _add_product_(gram, rows[:, part].double())
        self.total += float(gram.diagonal()[kept:].sum())  # the sketch has counted
        self.count = n + m
        values, vectors = _eigh(gram)
        if len(values) > self.sketch:
            self.dropped += float(values[self.sketch])
        self._kept, self._waiting = min(self.sketch, len(values)), 0
        rotation = vectors[:, : self._kept].T.to(rows)
        for part in _blocks(rows.shape[1], len(rows)):
            rows[: self._kept, part] = rotation @ rows[:, part]


def _check_shape(snapshots: Tensor, k: int) -> None:
    if k < 1:
        raise OptionError(f"k is {k}; ask for 1 direction or more")
    if snapshots.ndim != 2 or snapshots.shape[1] == 0:
        raise DataError(f"snapshots have shape {tuple(snapshots.shape)}; they must be (T, P)")


def _blocks(length: int, other: int) -> Iterator[slice]:
    """Yield slices that cover ``length``, each about ``_HELD`` numbers with ``other`` each."""
    size = max(1, _HELD // other)
    for start in range(0, length, size):
        yield slice(start, start + size)


def _gram_of_snapshots(snapshots: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [P] and X Xᵀ [T, T] of the centred snapshots, on and above the diagonal."""
    T, P = snapshots.shape
    mean = snapshots.new_empty(P, dtype=torch.float64)
    gram = snapshots.new_zeros(T, T, dtype=torch.float64)
    for part in _blocks(P, T):
        block = snapshots[:, part].double()
        mean[part] = block.mean(0)
        _add_product_(gram, block - mean[part])  # never in place: it may be a view
    refuse_not_finite(mean)  # which no other value of a trajectory can hide from
    return mean, gram


def _scatter_of_weights(snapshots: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [P] and Xᵀ X [P, P] of the centred snapshots, on and above the diagonal."""
    T, P = snapshots.shape
    mean = snapshots.new_zeros(P, dtype=torch.float64)
    for part in _blocks(T, P):
        mean += snapshots[part].sum(0, dtype=torch.float64) / T
    refuse_not_finite(mean)
    scatter = snapshots.new_zeros(P, P, dtype=torch.float64)
    for part in _blocks(T, P):
        _add_product_(scatter, (snapshots[part].double() - mean).T)
    return mean, scatter


def _add_product_(out: Tensor, rows: Tensor) -> None:
    """Add rows rowsᵀ to ``out``, on and above the diagonal; below it, only within tiles."""
    for start in range(0, len(rows), _TILE):
        out[start:][:_TILE, start:].addmm_(rows[start:][:_TILE], rows[start:].T)


def _eigh(upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, by falling size and not negative, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(upper, UPLO="U")
    return values.flip(0).clamp_min(0.0), vectors.flip(1)


def _rank(values: Tensor, mean: Tensor, T: int) -> int:
    # How many of the eigenvalues, by falling size, are more than rounding.
    eps = torch.finfo(torch.float64).eps
    of_mean = T * float(mean.square().sum()) * (T * eps) ** 2  # what a constant leaves
    rank = int((values > max(float(values[0]) * len(values) * eps, of_mean)).sum())
    if rank == 0:
        raise DataError("the snapshots are all the same: there is no variance to decompose")
    return rank


def _signed_(directions: Tensor) -> Tensor:
    for row in directions:  # in place, as k directions of a large network are gigabytes
        row.mul_(torch.where(row[row.abs().argmax()] < 0, -1.0, 1.0))
    return directions
