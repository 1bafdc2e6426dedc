"""A quadratic constraint on a few directions of all parameters together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.core.metric import Metric
from flatcl.errors import OptionError, StateError

_DENSE_LIMIT = 4096
_SLICE = 1 << 16  # weights whose products are summed in float64 at a time


@dataclass(frozen=True)
class LowRankConstraint:
    """Energy ½ Σ_i κ_i (q_i · (w − w*))², in nats, w all P parameters as one vector.

    Attributes:
        directions: q_i [k, P], orthonormal rows.
        stiffness: κ_i > 0 [k], nats/w².
        anchor: w* [P], w.
    """

    directions: Tensor
    stiffness: Tensor
    anchor: Tensor

    def energy(self, weights: Tensor) -> Tensor:
        """Return the energy.

        Args:
            weights: w [P].

        Returns:
            A scalar, nats.
        """
        theta = self.directions @ (weights.to(self.anchor.dtype) - self.anchor)
        return 0.5 * (self.stiffness * theta.square()).sum()

    @torch.no_grad()
    def correction(self, weights: Tensor, metric: Metric, *, strength: float) -> Tensor:
        """Return y = x − (I + γ sD K)⁻¹ x, x = w − w*, to be subtracted from the weights.

        By Woodbury's identity y = sD Qᵀ R^½ (I + R^½ Q sD Qᵀ R^½)⁻¹ R^½ Q x with R = γ κ: exact in
        every metric. A scalar one leaves the directions apart, θ ← θ / (1 + r).

        Args:
            weights: w [P].
            metric: sD over the steps since the last pull, a number or [P]; 0 where a parameter
                was not stepped and must stay.
            strength: γ ≥ 0.

        Returns:
            y [P], w.
        """
        Q, R = self.directions, strength * self.stiffness
        theta = Q @ (weights.to(self.anchor.dtype) - self.anchor)
        if not isinstance(metric, Tensor):
            r = metric * R
            return (theta * (r / (1.0 + r))) @ Q
        D, root = metric.to(Q.dtype), R.sqrt()
        M = (Q * D) @ Q.T * root[:, None] * root
        eye = torch.eye(len(R), dtype=Q.dtype, device=Q.device)
        factor = torch.linalg.cholesky(eye + M)
        u = torch.cholesky_solve((root * theta)[:, None], factor)[:, 0]
        return D * ((root * u) @ Q)

    def grown_to(
        self, old: Mapping[str, torch.Size], parameters: Mapping[str, Tensor]
    ) -> LowRankConstraint:
        """Return the constraint for parameters that were added or have grown, free where new.

        Args:
            old: shapes of the parameters that the vectors are made of, by name, in their order.
            parameters: as they are now, by name.

        Returns:
            The same constraint on the old entries; elsewhere nothing is held.

        Raises:
            StateError: a parameter was removed or has shrunk.
        """
        wrong = [n for n, shape in old.items() if not _fits(shape, parameters.get(n))]
        if wrong:
            raise StateError(
                f"parameters {wrong} were removed or have shrunk: begin anew with a fresh landscape"
            )
        sizes = [shape.numel() for shape in old.values()]
        rows = dict(zip(old, torch.split(self.directions, sizes, 1), strict=True))
        anchors = dict(zip(old, torch.split(self.anchor, sizes), strict=True))
        Q, anchor = [], []
        for name, p in parameters.items():
            wide = self.directions.new_zeros(len(self.stiffness), *p.shape)
            whole = p.detach().to(self.anchor.dtype, copy=True)
            if name in old:
                corner = tuple(slice(n) for n in old[name])
                wide[(slice(None), *corner)] = rows[name].reshape(-1, *old[name])
                whole[corner] = anchors[name].reshape(old[name])
            Q.append(wide.reshape(len(wide), -1))
            anchor.append(whole.reshape(-1))
        return LowRankConstraint(torch.cat(Q, 1), self.stiffness, torch.cat(anchor))

    def to_dense(self) -> Tensor:
        """Return K as a dense matrix, for tests and small models.

        Returns:
            [P, P], nats/w².

        Raises:
            OptionError: there are more than 4096 weights.
        """
        P = len(self.anchor)
        if P > _DENSE_LIMIT:
            raise OptionError(f"{P} weights make a dense matrix of {P}²; the limit is 4096")
        return (self.directions.T * self.stiffness) @ self.directions


def _fits(old: torch.Size, now: Tensor | None) -> bool:
    if now is None or now.ndim != len(old):
        return False
    return all(a <= b for a, b in zip(old, now.shape, strict=True))


@torch.no_grad()
def merge_low_rank(
    old: LowRankConstraint, new: LowRankConstraint, *, cap: int
) -> tuple[LowRankConstraint, float]:
    """Return one constraint for the sum of two, each about its own anchor.

    The sum of two quadratics is, up to a constant, the quadratic K = K₁ + K₂ about any minimiser
    of it; here the one nearest to the newer anchor. The rows of both are decomposed together and
    the stiffest ``cap`` directions kept: exact as long as the cap is not reached.

    Args:
        old: of earlier tasks.
        new: of a later one, over the same parameters.
        cap: rows of the result, at most.

    Returns:
        The sum, and the share of its trace that the cap cut off.

    Raises:
        OptionError: the numbers of parameters differ, or cap is below 1.
    """
    if old.anchor.shape != new.anchor.shape or cap < 1:
        raise OptionError(
            f"{len(old.anchor)} and {len(new.anchor)} parameters, cap {cap}: the former must "
            "agree and cap be 1 or more"
        )
    rows = torch.cat([c.directions * c.stiffness.sqrt()[:, None] for c in (old, new)])
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, _SLICE, dim=1):
        gram.addmm_(part.double(), part.double().T)
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    # Beyond rounding of the rows' products; what two tasks share has no second direction.
    floor = len(rows) * torch.finfo(rows.dtype).eps * float(values[0])
    kept = min(cap, int((values > floor).sum()))
    lost = float(values[kept:].sum() / values.sum())
    values, vectors = values[:kept], vectors[:, :kept]
    Q = (vectors / values.sqrt()).T.to(rows) @ rows
    kappa = values.to(rows)
    pull = old.stiffness * (old.directions @ (old.anchor - new.anchor))
    shift = (Q @ (pull @ old.directions)) / kappa
    return LowRankConstraint(Q, kappa, new.anchor + shift @ Q), lost
