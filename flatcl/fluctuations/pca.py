"""Principal directions of a weight trajectory, exact or from a stream.

A trajectory of T snapshots of P weights has at most T − 1 directions. With T < P they follow from
the Gram matrix X Xᵀ [T, T]; from a stream, by merge and truncate: the sketch's rows (singular value
times direction) and a block of new rows are decomposed together and the weakest dropped. What is
dropped bounds the error, so that a sketch knows how far it can be trusted.

Sums are taken in float64 whatever the snapshots' dtype, a block of columns at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.errors import DataError, NonFiniteError, OptionError

_COLUMNS = 8192  # of the trajectory that are held in float64 at a time


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
        return (snapshots - self.mean.to(snapshots)) @ self.directions.to(snapshots).T


def principal_directions(snapshots: Tensor, k: int) -> PrincipalDirections:
    """Return the exact leading principal directions of a trajectory.

    By the Gram matrix of the snapshots: T² P operations and T² extra memory. k < 1 is an
    OptionError, a snapshot that is not finite a NonFiniteError.

    Args:
        snapshots: [T, P], w; T ≥ 2.
        k: how many; fewer come back where the trajectory has fewer.

    Returns:
        Its directions, variances divided by T.

    Raises:
        DataError: there are fewer than two snapshots.
    """
    _check(snapshots, k)
    T = len(snapshots)
    if T < 2:
        raise DataError(f"{T} snapshot: a variance needs at least 2; record more of them")
    mean = snapshots.mean(0, dtype=torch.float64)
    gram = _gram(snapshots, mean)
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    k = min(k, _rank(values))
    coefficients = vectors[:, :k] / values[:k].sqrt()
    directions = torch.empty(k, snapshots.shape[1], dtype=snapshots.dtype, device=snapshots.device)
    for start in range(0, snapshots.shape[1], _COLUMNS):
        block = slice(start, start + _COLUMNS)
        centred = snapshots[:, block].double() - mean[block]
        directions[:, block] = (coefficients.T @ centred).to(snapshots.dtype)
    total = float(gram.trace()) / T
    return PrincipalDirections(
        _signed(directions), values[:k] / T, mean.to(snapshots.dtype), total, T
    )


class StreamingDirections:
    """Leading principal directions of a trajectory of any length, in constant memory.

    Args:
        k: directions wanted.
        sketch: rows kept between merges, 2 k if None; more are slower and nearer to exact.
        block: rows gathered before a merge, as many as the sketch if None.

    Raises:
        OptionError: k < 1, a sketch below k, or a block below 1.
    """

    def __init__(self, k: int, *, sketch: int | None = None, block: int | None = None) -> None:
        self.k = k
        self.sketch = 2 * k if sketch is None else sketch
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
        self._rows: Tensor | None = None
        self._waiting: list[Tensor] = []

    def add(self, snapshots: Tensor) -> None:
        """Take up one snapshot, or several in their order.

        Args:
            snapshots: [P] or [n, P], w.

        Raises:
            DataError: the number of weights has changed.
        """
        rows = snapshots.detach().reshape(-1, snapshots.shape[-1])
        _check(rows, self.k)
        if self._mean is not None and rows.shape[1] != len(self._mean):
            raise DataError(
                f"a snapshot has {rows.shape[1]} weights, those before had {len(self._mean)}"
            )
        if self._mean is None:
            self._mean = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
            self._rows = rows.new_zeros(0, rows.shape[1])
        for row in rows:
            self._waiting.append(row.clone())
            if len(self._waiting) >= self.block:
                self._merge()

    def directions(self) -> PrincipalDirections:
        """Return the leading directions of all that was added.

        Returns:
            At most k directions, with ``error_bound``.

        Raises:
            DataError: there were fewer than two snapshots.
        """
        if self._waiting:
            self._merge()
        if self.count < 2 or self._mean is None or self._rows is None:
            raise DataError(f"{self.count} snapshots: a variance needs at least 2; record more")
        values = self._rows.double().square().sum(1)
        k = min(self.k, _rank(values))
        directions = self._rows[:k] / values[:k].sqrt().to(self._rows)[:, None]
        return PrincipalDirections(
            _signed(directions),
            values[:k] / self.count,
            self._mean.to(self._rows.dtype),
            self.total / self.count,
            self.count,
            self.dropped / self.count,
        )

    @torch.no_grad()
    def _merge(self) -> None:
        """Decompose sketch, new rows and the shift of the mean together; keep the strongest."""
        assert self._mean is not None
        assert self._rows is not None
        block = torch.stack(self._waiting)
        self._waiting = []
        n, m = self.count, len(block)
        mean = block.mean(0, dtype=torch.float64)
        shift = mean - self._mean
        block.sub_(mean.to(block))
        parts = [self._rows, block]
        if n:
            # Scatter about a common mean: both parts' own, and the means' (Chan et al., 1983).
            parts.append(((n * m / (n + m)) ** 0.5 * shift).to(block)[None])
        rows = torch.cat(parts)
        gram = _gram(rows)
        self.total += float(gram.diagonal()[len(self._rows) :].sum())  # the sketch has counted
        self._mean.add_(shift, alpha=m / (n + m))
        self.count = n + m
        values, vectors = torch.linalg.eigh(gram)
        vectors = vectors.flip(1)[:, : self.sketch]
        values = values.flip(0)
        if len(values) > self.sketch:
            self.dropped += max(0.0, float(values[self.sketch]))
        self._rows = vectors.T.to(rows) @ rows


def _check(snapshots: Tensor, k: int) -> None:
    if k < 1:
        raise OptionError(f"k is {k}; ask for 1 direction or more")
    if snapshots.ndim != 2 or snapshots.shape[1] == 0:
        raise DataError(f"snapshots have shape {tuple(snapshots.shape)}; they must be (T, P)")
    if not bool(torch.isfinite(snapshots).all()):
        raise NonFiniteError("a snapshot is not finite: the training diverged; lower its rate")


def _gram(rows: Tensor, mean: Tensor | None = None) -> Tensor:
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], _COLUMNS):
        block = rows[:, start : start + _COLUMNS].double()
        if mean is not None:
            block = block - mean[start : start + _COLUMNS]  # never in place: it may be a view
        gram.addmm_(block, block.T)
    return gram


def _rank(values: Tensor) -> int:
    """Return how many of the eigenvalues, by falling size, are more than rounding."""
    floor = float(values[0]) * len(values) * torch.finfo(torch.float64).eps
    return max(1, int((values > floor).sum()))


def _signed(directions: Tensor) -> Tensor:
    peaks = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * torch.where(peaks < 0, -1.0, 1.0).to(directions)
