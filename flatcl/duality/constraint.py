"""What a constraint of earlier tasks says of new inputs: the energy of their dual moves.

To a network that has learned a task, a new task's inputs are, layer by layer, a move of its
weights. LDC's constraint of the old task knows what a move of the weights costs there; so it has an
opinion on inputs that it has never seen, before anything is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.duality.dual import DualMoves
from flatcl.errors import DataError

_ENTRIES = 10_000_000  # coordinates held at once


def dual_energies(moves: DualMoves, constraint: Constraint) -> Tensor:
    """Return ½ Δw*ᵀ K Δw* of each dual move.

    Args:
        moves: of a layer [K].
        constraint: of the same layer, its bias joined as in ``DualLayer``; of
            ``Landscape.constraints``.

    Returns:
        [K], nats; NaN for pairs without a dual.

    Raises:
        DataError: the constraint is of another shape.
    """
    out, width = moves.left.shape[1], moves.right.shape[1]
    if tuple(constraint.anchor.shape) != (out, width):
        raise DataError(
            f"the moves are of a matrix {(out, width)}, the constraint of one "
            f"{tuple(constraint.anchor.shape)}: take the constraint of the same layer"
        )
    found = []
    basis = constraint.basis
    left, right = moves.left.to(constraint.anchor), moves.right.to(constraint.anchor)
    chunk = max(1, _ENTRIES // (out * width))
    for a, b in zip(torch.split(left, chunk), torch.split(right, chunk), strict=True):
        if basis is not None and not basis.truncated:
            z = (basis.U_out.mT @ a) @ (basis.U_in.mT @ b).mT
            found.append(0.5 * (constraint.stiffness * z.square()).sum((1, 2)))
        else:
            found += [0.5 * (x * constraint.apply(x)).sum()[None] for x in a @ b.mT]
    energies = torch.cat(found).to(moves.left)
    return energies.masked_fill(~moves.kept, torch.nan)
