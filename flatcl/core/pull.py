"""The pull: an exact proximal step on the constraint's energy, in the optimiser's metric.

Every s steps x = W − W* becomes the minimiser of ½ (x' − x)ᵀ (sD)⁻¹ (x' − x) + γ ½ x'ᵀ K x', that
is x' = (I + γ sD K)⁻¹ x. Alternated with steps x ← x − D g, its fixed point obeys γ K x = −g
whatever D is. Implicit, hence stable for any γ; written as a correction y = x − x', so that K = 0
changes no bit.

- D a number: x' has coordinates z / (1 + r) in the eigenbasis, r = γ sD k: closed form.
- D diagonal in the weights: with B = U_out (R^½ ∘ ·) U_inᵀ, R = γ k, and M = Bᵀ (sD) B,
  y = (sD) B u where (I + M) u = Bᵀ x. Solved by conjugate gradients in eigen-coordinates,
  preconditioned by the diagonal of I + M and started from the last pull's u. At the end y is
  scaled by the exact line search on the proximal objective, so that neither the objective nor the
  energy can rise however few iterations were made.

A truncated basis changes nothing in this: ``project`` and ``unproject`` are then the products with
a Parseval frame and its adjoint, R repeats its pooled number over the remainder, and B Bᵀ = γ K.

Many rates: an input direction (column) whose largest r is small relaxes slowly and need not be
visited at every pull. Columns are stored by falling stiffness; tier j, those of 2^−j-times the
quickest relaxation, is visited at every 2^j-th pull with the steps that have gathered since, so
that no visit is coarser than the quick columns' own. Each pull then works on a slice.

How far apart pulls may be: between two of them the steps run towards the new task's own minimum;
where they reach it, its gradient is gone, and a pull with r > 1 takes back most of what the fixed
point would have kept. In few directions that is a margin, in many the new task is not learned. What
counts is the share of directions that one pull takes back, ⟨r / (1 + r)⟩ (``taken_back``), which
grows with the learning rate. As an effective number of parameters, Σ r / (1 + r): MacKay, Neural
Computation 4 (1992) 415–447.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.metric import Metric
from flatcl.core.saved import State, entry, tensor_like

TIERS = 5
_QUICK = 0.5  # relaxation r per pull above which a column is visited at every pull
_TOLERANCE = 0.1  # of the solve's preconditioned residual, relative to its right-hand side
_ITERATIONS = 20


def by_falling_stiffness(constraint: Constraint) -> Constraint:
    """Return the same constraint with its input directions by falling largest stiffness.

    Args:
        constraint: any.

    Returns:
        An equal operator, a pooled direction last; unchanged if held entry by entry.
    """
    if constraint.basis is None:
        return constraint
    basis, k = constraint.basis, constraint.stiffness
    kept = basis.U_in.shape[1]
    order = k[:, :kept].amax(0).argsort(descending=True, stable=True)
    sorted_basis = replace(
        basis, U_out=basis.U_out.contiguous(), U_in=basis.U_in[:, order].contiguous()
    )
    k = torch.cat([k[:, order], k[:, kept:]], dim=1)
    return Constraint(sorted_basis, k.contiguous(), constraint.anchor)


@dataclass
class PullState:
    """What one unit's pull remembers between pulls of a task.

    Attributes:
        ends: for each tier, the number of leading columns in it and the tiers before; set when
            all tiers are visited.
        u: last solution of the solve in a diagonal metric, [out, in] or in the shape of a truncated
            basis's ``project``, or None.
        diagonal: diagonal of Bᵀ D B / R at the last full pull, likewise, or None.
        left: what rounding to narrow weights has left to be added, in the unit's view, or None.
    """

    ends: list[int] = field(default_factory=list)
    u: Tensor | None = None
    diagonal: Tensor | None = field(default=None, repr=False)
    left: Tensor | None = field(default=None, repr=False)

    def state_dict(self) -> State:
        """Return it as plain state.

        Returns:
            ``{"ends"}``, and each tensor that it has, copied.
        """
        tensors = {"u": self.u, "diagonal": self.diagonal, "left": self.left}
        return {
            "ends": [int(end) for end in self.ends],
            **{key: t.clone() for key, t in tensors.items() if t is not None},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], constraint: Constraint, name: str) -> PullState:
        """Return what ``state_dict`` encoded.

        Args:
            state: its result.
            constraint: of the unit.
            name: of the unit, for the message.

        Returns:
            The state.
        """
        z = constraint.coordinates(constraint.anchor)
        likes = {"u": z, "diagonal": z, "left": constraint.anchor}
        tensors = {
            key: tensor_like(state, key, like, f"task's pull of {name}")
            for key, like in likes.items()
            if key in state
        }
        return cls([int(end) for end in entry(state, "ends", f"task's pull of {name}")], **tensors)


def pull_reference(
    constraint: Constraint, weight: Tensor, metric: Metric, *, strength: float
) -> Tensor:
    """Return the correction y of one full pull, by a dense solve: the oracle of ``correction``.

    Args:
        constraint: K and W* of the unit.
        weight: W, in the anchor's shape.
        metric: sD, a positive number or tensor in the anchor's shape.
        strength: γ ≥ 0.

    Returns:
        y = x − (I + γ sD K)⁻¹ x, to be subtracted from the weight.
    """
    x = (weight - constraint.anchor).reshape(-1)
    D = torch.as_tensor(metric, dtype=x.dtype).expand(constraint.anchor.shape).reshape(-1)
    K = constraint.to_dense().to(x.dtype)
    A = torch.eye(len(x), dtype=x.dtype) + strength * D[:, None] * K
    y: Tensor = x - torch.linalg.solve(A, x)
    return y.reshape(weight.shape)


@torch.no_grad()
def correction(
    constraint: Constraint,
    weight: Tensor,
    metric: Metric,
    *,
    strength: float,
    state: PullState,
    shares: Sequence[float],
) -> Tensor:
    """Return the correction y of one pull, to be subtracted from the weight.

    Args:
        constraint: K and W*, its columns by falling stiffness.
        weight: W, in the anchor's shape.
        metric: sD over the steps since the last pull, a positive number or tensor.
        strength: γ > 0.
        state: of this unit; updated.
        shares: for each tier visited, from the quickest, the steps that it has to make up for, as
            a multiple of those in ``metric``.

    Returns:
        y, in the anchor's shape, w.
    """
    x = weight.to(constraint.anchor.dtype) - constraint.anchor
    if constraint.basis is None:
        # Not in tiers: it is visited with the quickest, and owes no more than that one.
        r = strength * metric * constraint.stiffness
        if shares[0] != 1.0:
            r = shares[0] * r
        return x * (r / (1.0 + r))
    new = not state.ends  # as where a head is first used in mid-task
    if new or len(shares) == TIERS:
        _prepare(state, constraint, metric, strength, rechoose=new or shares[0] > 0)
    width = state.ends[len(shares) - 1]
    if width == 0:
        return torch.zeros_like(x)
    basis, R = constraint.basis.leading(width), strength * constraint.stiffness[:, :width]
    for share, start, end in zip(shares, [0, *state.ends], state.ends, strict=False):
        if share != 1.0:
            R[:, start:end] *= share
    z = basis.project(x)
    if isinstance(metric, Tensor):
        return _solve(basis, basis.expand(R), z, metric, state)
    r = R.mul_(metric)
    return basis.unproject(z.mul_(basis.expand(r / (1.0 + r))))


def _prepare(
    state: PullState, constraint: Constraint, metric: Metric, strength: float, *, rechoose: bool
) -> None:
    """Take the preconditioner and the tiers of columns from the present metric."""
    basis = constraint.basis
    assert basis is not None
    if isinstance(metric, Tensor):
        state.diagonal = basis.weighed(metric)
    if rechoose:
        r = _relaxation(state, constraint, metric, strength)
        steps = _QUICK * 0.5 ** torch.arange(TIERS - 1, device=r.device, dtype=r.dtype)
        quickest = r.amax(0)
        if basis.pooled_in:  # it may be stiffer than some that stand before it
            quickest = quickest.flip(0).cummax(0).values.flip(0)
        counts = (quickest[:, None] > steps).sum(0).tolist()
        state.ends = [*counts, r.shape[1]]


def taken_back(
    constraint: Constraint,
    metric: Metric,
    strength: float,
    state: PullState,
    factors: Sequence[float],
) -> tuple[Tensor, int]:
    """Return how many directions a pull takes back, Σ r / (1 + r).

    Args:
        constraint: K and W*.
        metric: sD, as in the latest ``correction`` with all ``TIERS``.
        strength: γ > 0.
        state: of this unit.
        factors: multiples of s.

    Returns:
        [len(factors)] one number for each, and the number of all directions.
    """
    r = _relaxation(state, constraint, metric, strength)
    found = []
    for factor in factors:
        each = factor * r
        each = each.div_(1.0 + each)
        if constraint.basis is not None and constraint.basis.truncated:
            out, width = constraint.basis.directions()
            each = out[:, None] * each * width
        found.append(each.sum())
    return torch.stack(found), constraint.anchor.numel()


def _relaxation(
    state: PullState, constraint: Constraint, metric: Metric, strength: float
) -> Tensor:
    # r = γ sD k of each coordinate; a diagonal metric counts by its diagonal there.
    basis = constraint.basis
    if isinstance(metric, Tensor) and basis is not None:
        assert state.diagonal is not None
        metric = basis.per_direction(basis.gathered(state.diagonal))
    return (strength * constraint.stiffness).mul_(metric)


def _solve(basis: KroneckerBasis, R: Tensor, z: Tensor, D: Tensor, state: PullState) -> Tensor:
    """Return y = D B u for (I + Bᵀ D B) u = Bᵀ x, given z = Uᵀ x V and D = sD."""
    assert state.diagonal is not None
    n = z.shape[1]
    root = R.sqrt()
    # Between full pulls the diagonal of the last one serves: a preconditioner need not be exact.
    precondition = 1.0 / (1.0 + R * state.diagonal[:, :n])

    def forth(u: Tensor) -> Tensor:
        return D * basis.unproject(root * u)

    def back(y: Tensor) -> Tensor:
        return root * basis.project(y)

    b = root * z
    limit = _TOLERANCE**2 * float((b * b * precondition).sum())
    if state.u is None:
        u, y, Mu = torch.zeros_like(b), torch.zeros_like(D), torch.zeros_like(b)
    else:
        u = state.u[:, :n].clone()
        y = forth(u)
        Mu = back(y)
    residual = b - u - Mu
    s = precondition * residual
    rho = float((residual * s).sum())
    direction = s
    for _ in range(_ITERATIONS):
        if rho <= limit:
            break
        step = forth(direction)
        M_direction = back(step)
        alpha = rho / float((direction * (direction + M_direction)).sum())
        u.add_(direction, alpha=alpha)
        y.add_(step, alpha=alpha)
        Mu.add_(M_direction, alpha=alpha)
        residual.sub_(direction + M_direction, alpha=alpha)
        s = precondition * residual
        previous, rho = rho, float((residual * s).sum())
        direction = s + (rho / previous) * direction
    if state.u is None:
        state.u = torch.zeros_like(state.diagonal)
    state.u[:, :n] = u
    # φ(a y) = ½ a² (yᵀD⁻¹y + yᵀRy) − a xᵀRy; yᵀD⁻¹y = u·Mu, yᵀRy = |Mu|², xᵀRy = b·Mu.
    slope, curvature = float((b * Mu).sum()), float((u * Mu).sum() + Mu.square().sum())
    return y * max(0.0, slope / curvature) if curvature > 0 else y.zero_()
