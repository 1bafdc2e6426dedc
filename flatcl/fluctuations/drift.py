"""The straight part of a trajectory: its slope, the trajectory without it, and what lies along it.

Feng & Tu find that the first principal direction is a drift, nearly aligned with the mean motion of
the weights, and leave it out of the relation between variance and flatness (PNAS 118, 2021).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flatcl.errors import DataError
from flatcl.fluctuations.finite import refuse_not_finite

_HELD = 1 << 20  # numbers of a trajectory that are held in float64 at a time, 8 MB


def linear_drift(snapshots: Tensor) -> Tensor:
    """Return each weight's least-squares slope in time.

    Read in blocks of rows, so that the tensor may be mapped from a file; sums are in float64.
    A snapshot that is not finite is a NonFiniteError.

    Args:
        snapshots: [T, P], w, evenly spaced; T ≥ 2.

    Returns:
        [P], float64, w per spacing; over the recorder's stride it is w/step.

    Raises:
        DataError: there are fewer than two snapshots.
    """
    if snapshots.ndim != 2 or len(snapshots) < 2 or snapshots.shape[1] == 0:
        raise DataError(
            f"snapshots have shape {tuple(snapshots.shape)}; a slope needs (T, P) with T ≥ 2"
        )
    T, P = snapshots.shape
    times = _times(snapshots)
    slope = snapshots.new_zeros(P, dtype=torch.float64)
    for part in _blocks(T, P):
        slope += times[part] @ snapshots[part].detach().double()
    refuse_not_finite(slope)
    # Σ (t − ⟨t⟩)² of T whole numbers in closed form.
    return slope / (T * (T**2 - 1) / 12)


def without_drift(snapshots: Tensor) -> Tensor:
    """Return the trajectory less its linear trend; each weight keeps its mean.

    What is subtracted, (t − ⟨t⟩) times ``linear_drift``, is 0 in the middle of the window, so that
    directions and flatness are about the same centre as before.

    Args:
        snapshots: [T, P], w, evenly spaced; T ≥ 2. Not written to.

    Returns:
        [T, P], w, in memory, in the snapshots' dtype.
    """
    slope, times = linear_drift(snapshots), _times(snapshots)
    out = torch.empty_like(snapshots.detach(), memory_format=torch.contiguous_format)
    for part in _blocks(*snapshots.shape):
        out[part] = snapshots[part].detach().double() - times[part, None] * slope
    return out


def alignment(direction: Tensor, reference: Tensor) -> Tensor:
    """Return |cos| of the angle between directions and a reference.

    For random directions it is about 1/√P: near 1 for the drift's own direction.

    Args:
        direction: [P] or [k, P], any norm.
        reference: [P], such as ``linear_drift``.

    Returns:
        One number, or [k], float64, 0 … 1.

    Raises:
        DataError: the numbers of weights differ, or a vector is 0.
    """
    if reference.ndim != 1 or direction.ndim > 2 or direction.shape[-1:] != reference.shape:
        raise DataError(
            f"directions have shape {tuple(direction.shape)}, the reference "
            f"{tuple(reference.shape)}; they must be (P,) or (k, P), and (P,)"
        )
    reference = reference.detach().double()
    rows = direction.detach().reshape(-1, len(reference))
    # Row by row: k directions in float64 would be twice what they are in float32.
    cosines = [_cosine(row.double(), reference) for row in rows]
    return torch.stack(cosines).reshape(direction.shape[:-1])


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    size = a.norm() * b.norm()
    if not float(size) > 0:
        raise DataError("a vector is 0 or not finite: it has no direction to compare")
    cosine: Tensor = (a @ b).abs() / size
    return cosine.clamp_max(1.0)


def _blocks(T: int, P: int) -> Iterator[slice]:
    size = max(1, _HELD // P)
    for start in range(0, T, size):
        yield slice(start, start + size)


def _times(snapshots: Tensor) -> Tensor:
    """Return t − ⟨t⟩ [T]."""
    T = len(snapshots)
    return torch.arange(T, dtype=torch.float64, device=snapshots.device) - (T - 1) / 2
