"""One row of the panel: the relation between variance, flatness and curvature in one setting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.errors import OptionError
from flatcl.fluctuations.powerfit import PowerFit, power_fit

FLAT = 1e-9
"""Of the largest |h|: curvatures up to it are rounding, as those of a dead unit's weights are."""


def curved(curvatures: Tensor) -> Tensor:
    """Return where the curvature is more than rounding, of either sign.

    Args:
        curvatures: h [k], nats/w².

    Returns:
        [k] bool.
    """
    size = curvatures.abs().nan_to_num()
    return size > FLAT * size.max() if len(size) else size > 0


@dataclass(frozen=True)
class Row:
    """One setting of the panel.

    Attributes:
        name: of the setting, a key of ``SETTINGS``.
        flatness: fit of σ² against F; its exponent is −ψ.
        curvature: fit of σ² against h.
        censored: directions with a side where the loss did not reach its target.
        directions: looked at, before any was left out.
        flat: directions without a curvature beyond rounding, left out of the fit against h.
    """

    name: str
    flatness: PowerFit | None
    curvature: PowerFit | None
    censored: int
    directions: int
    flat: int = 0

    @property
    def psi(self) -> float | None:
        """ψ in σ² ∝ F^(−ψ), None where there were too few directions."""
        return None if self.flatness is None else -self.flatness.exponent

    @property
    def psi_ci95(self) -> tuple[float, float] | None:
        """Ends of the 95 % interval of ψ."""
        return None if self.flatness is None else (-self.flatness.high, -self.flatness.low)


SETTINGS = {
    "pca": "SGD, principal directions",
    "pca_predicted": "… with predicted τ < T/20",
    "pca_measured": "… with measured τ < T/20",
    "pca_split": "… variances from the other half-window",
    "pca_detrended": "… a linear drift removed",
    "hessian": "SGD, Hessian eigenvectors",
    "hessian_predicted": "… with predicted τ < T/20",
    "replacement": "SGD with replacement, principal directions",
    "replacement_hessian": "… Hessian eigenvectors",
    "replacement_predicted": "… … with predicted τ < T/20",
    "walk": "null: noise at frozen weights, no force",
    "walk_hessian": "… Hessian eigenvectors, closed form",
    "random_basis": "null: random directions",
    "langevin": "control: Langevin, Hessian eigenvectors, τ < T/20",
    "langevin_pca": "control: Langevin, principal directions",
}


def relation(
    name: str,
    variances: Tensor,
    widths: Tensor,
    curvatures: Tensor,
    *,
    keep: Tensor | None = None,
    seed: int = 0,
) -> Row:
    """Return one row of the panel.

    Args:
        name: a key of ``SETTINGS``.
        variances: σ² [k], w².
        widths: F [k], w, NaN where censored.
        curvatures: h [k], nats/w².
        keep: [k] bool, directions that may enter; all if None.
        seed: of the bootstrap.

    Returns:
        The row.

    Raises:
        OptionError: the name is unknown.
    """
    if name not in SETTINGS:
        raise OptionError(f"setting is {name!r}; there are {', '.join(SETTINGS)}")
    keep = torch.ones(len(variances), dtype=torch.bool) if keep is None else keep
    steep = keep & curved(curvatures)
    return Row(
        name,
        power_fit(widths[keep], variances[keep], seed=seed),
        power_fit(curvatures[steep], variances[steep], seed=seed),
        int(widths[keep].isnan().sum()),
        int(keep.sum()),
        int(keep.sum()) - int(steep.sum()),
    )
