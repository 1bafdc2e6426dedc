"""Leading directions of a side's second moment, without the matrix [d, d].

The moment is a sum of outer products of rows. By merge and truncate, the rows kept so far and new
ones are decomposed together and the weakest dropped; the trace is summed apart and stays exact.
Exact as long as the rows kept span all that was added.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flatcl.errors import NonFiniteError, StateError

_SMALLEST = 128  # rows kept at least: a narrow side is then exact


class RowSketch:
    """A sum Σ xᵀx over rows x [d], by its leading eigenvectors and its trace.

    Args:
        size: d.
        rank: r, directions wanted, at most d; twice as many rows are kept between merges, and
            twice as many again wait for one.
        like: gives device and dtype; float32 or wider is used.
    """

    def __init__(self, size: int, rank: int, like: Tensor) -> None:
        self.size, self.rank = size, rank
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.trace = torch.zeros((), dtype=self.dtype, device=like.device)
        self._keep = max(2 * rank, _SMALLEST)
        self._rows = torch.zeros(0, size, dtype=self.dtype, device=like.device)
        self._used = 0

    def add(self, rows: Tensor) -> None:
        """Add outer products of rows.

        Args:
            rows: [n, d]; weights as their square roots.
        """
        rows = rows.to(self.dtype)
        self.trace += rows.square().sum()
        if len(self._rows) == 0:
            self._rows = rows.new_zeros(2 * self._keep, self.size)
        while len(rows):
            taken = rows[: len(self._rows) - self._used]
            self._rows[self._used : self._used + len(taken)] = taken
            self._used += len(taken)
            rows = rows[len(taken) :]
            if self._used == len(self._rows):
                self._truncate()

    def add_spectrum(self, U: Tensor, values: Tensor) -> None:
        """Add U diag(values) Uᵀ, or with one value more, that much on the complement of U.

        Args:
            U: [d, r], orthonormal columns.
            values: [r] or [r + 1], ≥ 0.
        """
        r = U.shape[1]
        # A multiple of the identity has no direction of its own: it counts in the trace alone.
        floor = values[r:].sum()
        above = (values[:r] - floor).clamp_min(0.0)
        whole = values[:r].sum() + floor * (self.size - r)
        self.trace += (whole - above.sum()).to(self.dtype)
        self.add((U * above.sqrt()).T)

    def scaled(self, factor: float) -> RowSketch:
        """Return the sketch of the sum multiplied by a number.

        Args:
            factor: ≥ 0.

        Returns:
            A new sketch.
        """
        other = RowSketch(self.size, self.rank, self.trace)
        other.add(self._rows[: self._used] * factor**0.5)
        other.trace = self.trace * factor
        return other

    def directions(self) -> Tensor:
        """Return the leading eigenvectors.

        Returns:
            [d, r] orthonormal columns by falling eigenvalue, each one's largest entry positive;
            beyond the rank of the sum, any that complete them.

        Raises:
            NonFiniteError: a row was not finite.
        """
        if not bool(torch.isfinite(self.trace)):
            raise NonFiniteError(
                "a second moment of the gradients is not finite: lower the learning rate or check "
                "the inputs"
            )
        rows = self._rows[: max(self._used, self.rank)]
        if len(rows) < self.rank:
            rows = torch.cat([rows, rows.new_zeros(self.rank - len(rows), self.size)])
        _, vectors = _decomposed(rows)
        vectors = vectors[:, : self.rank]
        peaks = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return vectors.mul_(torch.where(peaks < 0, -1.0, 1.0).to(vectors)).contiguous()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sketch as tensors.

        Returns:
            ``{"rows", "trace"}``, copied.
        """
        return {"rows": self._rows[: self._used].clone(), "trace": self.trace.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a saved state.

        Args:
            state: from ``state_dict``, of a sketch of the same size and rank.

        Raises:
            StateError: it is of another size.
        """
        rows, trace = state.get("rows"), state.get("trace")
        if rows is None or trace is None or rows.shape[1:] != (self.size,):
            seen = None if rows is None else tuple(rows.shape)
            raise StateError(
                f"the saved sketch of a wide side has rows {seen}, the layer needs (n, "
                f"{self.size}): load it into the model that it was saved with"
            )
        self.trace = trace.to(self.trace, copy=True)
        self._used = len(rows)
        self._rows = self.trace.new_zeros(2 * self._keep if len(rows) else 0, self.size)
        self._rows[: len(rows)] = rows

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.trace.device

    def _truncate(self) -> None:
        values, vectors = _decomposed(self._rows)
        kept = min(self._keep, len(values))
        self._rows[:kept] = (vectors[:, :kept] * values[:kept]).T
        self._rows[kept:] = 0.0
        self._used = kept


def _decomposed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values by falling size and right singular vectors [d, n] of rows [n, d].

    Through a QR decomposition: as stable as that of the rows, and several times as fast.
    """
    Q, R = torch.linalg.qr(rows.T)
    left, values, _ = torch.linalg.svd(R, full_matrices=False)
    return values, Q @ left
