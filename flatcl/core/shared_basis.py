"""The basis that a unit's earlier constraint and its new task share, from second moments."""

from __future__ import annotations

import torch
from torch import Tensor

from flatcl.core.choice import ranks
from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.layers import Unit
from flatcl.core.merge import joint_directions
from flatcl.core.moments import KroneckerMoments
from flatcl.core.options import LDCOptions


def side_moments(unit: Unit, like: Tensor, options: LDCOptions) -> KroneckerMoments | None:
    """Return empty moments of both sides of a unit, as its basis asks for them.

    Args:
        unit: any.
        like: a tensor of its view.
        options: of LDC; ``basis`` and ``rank`` count.

    Returns:
        The moments, None for a unit held entry by entry.
    """
    if not unit.matrix:
        return None
    held = ranks(options.basis, options.rank, unit.name, tuple(like.shape))
    return None if held is None else KroneckerMoments.zeros(like, held)


def merged_basis(
    old: Constraint | None, moments: KroneckerMoments, *, damping: float
) -> KroneckerBasis:
    """Return the basis that the earlier constraint and a new task will share.

    Args:
        old: the constraint held so far, or None; one held entry by entry prefers no direction.
        moments: the new task's; their means are its partial traces, nats/w².
        damping: δ that will be added to the new stiffness; it shifts the traces alike.

    Returns:
        Eigenbasis of the summed partial traces.
    """
    out, width = moments.side_means()
    if isinstance(out, Tensor):
        out = out + damping * (torch.eye(len(out)).to(out) * (out.trace() / len(out)))
    grown = 1.0 + damping
    width = width * grown if isinstance(width, Tensor) else width.scaled(grown)
    spectra = (None, None) if old is None or old.basis is None else old.side_spectra()
    return KroneckerBasis.of_sides(
        joint_directions(spectra[0], out), joint_directions(spectra[1], width)
    )
