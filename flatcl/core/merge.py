"""Many constraints in one: constant memory, partial traces and trace preserved exactly.

A sum of Kronecker-diagonal operators K = Σ_c Q_c diag(k_c) Q_cᵀ has no exact form of that kind
unless the bases agree. The merged basis diagonalises the sum's two partial traces; the merged
spectrum is the exact diagonal of the sum in that basis. Adding Kronecker factors instead would
multiply the trace with every task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flatcl.core.constraint import Constraint, dense_spectrum
from flatcl.core.eigenbasis import KroneckerBasis, eigenvectors
from flatcl.core.sketch import RowSketch
from flatcl.errors import OptionError


def joint_basis(traces: Sequence[tuple[Tensor, Tensor]]) -> KroneckerBasis:
    """Return the eigenbasis of summed partial traces.

    Args:
        traces: pairs (P [out, out], Q [in, in]), nats/w².

    Returns:
        The basis of Σ P and Σ Q, each side by falling eigenvalue.
    """
    return KroneckerBasis.from_moments(
        torch.stack([P for P, _ in traces]).sum(0), torch.stack([Q for _, Q in traces]).sum(0)
    )


def joint_directions(old: tuple[Tensor, Tensor] | None, new: Tensor | RowSketch) -> Tensor:
    """Return the directions of one side that an earlier constraint and a new task will share.

    Args:
        old: eigenvectors and eigenvalues of the earlier partial trace, from ``side_spectra``.
        new: the new task's partial trace [d, d], or its sketch, which takes up the old one's.

    Returns:
        Eigenvectors of the sum, by falling eigenvalue: [d, d], or the leading ones [d, r].
    """
    if isinstance(new, Tensor):
        if old is None:
            return eigenvectors(new)
        return eigenvectors(torch.stack([dense_spectrum(*old).to(new.dtype), new]).sum(0))
    if old is not None:
        new.add_spectrum(*old)
    return new.directions()


def spectrum_in(constraint: Constraint, basis: KroneckerBasis | None) -> Tensor:
    """Return the exact diagonal of a constraint's K in another basis.

    Args:
        constraint: with a Kronecker basis or without.
        basis: the new basis, None for the weights' own.

    Returns:
        k' [out, in], nats/w²; its sum, in a truncated basis that over all directions, is the trace
        of K.
    """
    k, old = constraint.stiffness, constraint.basis
    if basis is None:
        return k if old is None else old.entries(k)
    if old is None:
        return basis.per_direction(basis.gathered(basis.weighed(k)))
    out, width = basis.overlaps(old)
    return out @ k @ width.T


def shared_basis(constraints: Sequence[Constraint]) -> KroneckerBasis:
    """Return the basis that several constraints share, of a rank that holds the largest's.

    Args:
        constraints: on one unit, each with a Kronecker basis.

    Returns:
        Eigenbasis of their summed partial traces; a side that one of them truncates is truncated.
    """
    if not any(c.basis.truncated for c in constraints if c.basis is not None):
        return joint_basis([c.partial_traces() for c in constraints])
    sides = []
    for spectra in zip(*(c.side_spectra() for c in constraints), strict=True):
        d = len(spectra[0][0])
        pooled = [U.shape[1] for U, _ in spectra if U.shape[1] < d]
        sketch = RowSketch(d, max(pooled, default=d), spectra[0][0])
        for U, values in spectra:
            sketch.add_spectrum(U, values)
        sides.append(sketch.directions())
    return KroneckerBasis.of_sides(*sides)


def merge(constraints: Sequence[Constraint]) -> tuple[Constraint, float]:
    """Return one constraint for the sum of several, and the share of it that was lost.

    Args:
        constraints: on one unit, oldest first; the anchor of the result is the last one's.

    Returns:
        The merged constraint, and 1 − ‖diagonal‖² / ‖Σ K‖² in the Frobenius norm, a number in
        [0, 1): the off-diagonal share that a single basis cannot hold, 0 where the bases agree.

    Raises:
        OptionError: nothing to merge, or units of different kinds or shapes.
    """
    if not constraints:
        raise OptionError("no constraint to merge: pass at least one")
    last = constraints[-1]
    if any(
        c.anchor.shape != last.anchor.shape or (c.basis is None) != (last.basis is None)
        for c in constraints
    ):
        raise OptionError("constraints of different shapes or kinds cannot be merged")
    if last.basis is None:
        return Constraint(
            None, torch.stack([c.stiffness for c in constraints]).sum(0), last.anchor
        ), 0.0
    basis = shared_basis(constraints)
    stiffness = torch.stack([spectrum_in(c, basis) for c in constraints]).sum(0)
    whole = sum(float(_inner(a, b)) for a in constraints for b in constraints)
    merged = Constraint(basis, stiffness, last.anchor)
    lost = max(0.0, 1.0 - float(merged.squared_norm()) / whole) if whole > 0 else 0.0
    return merged, lost


def _inner(a: Constraint, b: Constraint) -> Tensor:
    """Return tr(K_a K_b) through the squared overlaps, nothing of size weights²."""
    assert a.basis is not None
    products = a.stiffness * spectrum_in(b, a.basis)
    if a.basis.truncated:
        out, width = a.basis.directions()
        products = products * out[:, None] * width
    return products.sum()
