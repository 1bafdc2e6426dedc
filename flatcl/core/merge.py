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

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
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


def spectrum_in(constraint: Constraint, basis: KroneckerBasis) -> Tensor:
    """Return the exact diagonal of a constraint's K in another basis.

    Args:
        constraint: with a Kronecker basis.
        basis: the new basis.

    Returns:
        k' [out, in], nats/w²; its sum is the trace of K.

    Raises:
        OptionError: the constraint is held entry by entry.
    """
    if constraint.basis is None:
        raise OptionError("a constraint held entry by entry has no basis to change")
    out, width = basis.overlaps(constraint.basis)
    return out @ constraint.stiffness @ width.T


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
    basis = joint_basis([c.partial_traces() for c in constraints])
    stiffness = torch.stack([spectrum_in(c, basis) for c in constraints]).sum(0)
    whole = sum(float(_inner(a, b)) for a in constraints for b in constraints)
    kept = float(stiffness.square().sum())
    lost = max(0.0, 1.0 - kept / whole) if whole > 0 else 0.0
    return Constraint(basis, stiffness, last.anchor), lost


def _inner(a: Constraint, b: Constraint) -> Tensor:
    """Return tr(K_a K_b) through the squared overlaps, nothing of size weights²."""
    assert a.basis is not None
    return (a.stiffness * spectrum_in(b, a.basis)).sum()
