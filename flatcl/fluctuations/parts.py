"""How the parts of a study are made: a window's principal directions, and its controls."""

from __future__ import annotations

import torch
from torch import Tensor

from flatcl.errors import DataError
from flatcl.fluctuations.along import Part, along, displacements
from flatcl.fluctuations.bases import hessian_directions
from flatcl.fluctuations.drift import alignment, linear_drift
from flatcl.fluctuations.noise import Sampling, frozen_walk, langevin
from flatcl.fluctuations.pca import PrincipalDirections, principal_directions
from flatcl.fluctuations.spectrum import cosine_overlap
from flatcl.fluctuations.surface import LossSurface

MEMORY = 20.0
"""A direction relaxes within the window if its τ is below T/20: its variance is then ≤ 10 % off."""

_SCORES = 20  # leading directions whose scores are compared with a walk's
_SHOWN = 6
_WANDER = 1e-5  # of |w|: how far the Langevin control walks in flat directions
_LANGEVIN_LR = 0.3  # times 1/h of its sharpest direction
_OFF = 0.5  # of the window's spread: how far from its mean the loss may be looked at


def principal(snapshots: Tensor, surface: LossSurface, ranks: list[int]) -> Part:
    """Return what is measured along a window's principal directions.

    A window that varies along no direction of these ranks is a DataError.

    Args:
        snapshots: [T, P], w.
        surface: the loss around the window's mean.
        ranks: of the directions, from 0.

    Returns:
        As ``along``, with PCA's variances.
    """
    return _along(principal_directions(snapshots, ranks[-1] + 1), snapshots, surface, ranks)


def described(snapshots: Tensor, surface: LossSurface, ranks: list[int]) -> Part:
    """Return the same with the spectrum and what the leading scores look like.

    Args:
        snapshots: [T, P], w.
        surface: the loss around the window's mean.
        ranks: of the directions, from 0.

    Returns:
        As ``Study.principal``.

    Raises:
        DataError: the surface is not at the window's mean.
    """
    found = principal_directions(snapshots, ranks[-1] + 1)
    spread = found.total**0.5
    off = float((surface.reference.double() - found.mean.double()).norm())
    if off > _OFF * spread:
        raise DataError(
            f"the surface's weights are {off:.3g} from the window's mean, {off / spread:.2g} times "
            "its spread: give LossSurface(...).around(snapshots), or load the mean beforehand"
        )
    leading = found.directions[:_SCORES].double()
    scores = displacements(snapshots, leading)
    return _along(found, snapshots, surface, ranks) | {
        "spectrum": found.variances,
        "total": torch.tensor(found.total, dtype=torch.float64),
        "scores": scores[:, :_SHOWN],
        "cosine": cosine_overlap(scores),
        "cos_mean": alignment(leading[:_SHOWN], found.mean.double()),
        "cos_drift": alignment(leading[:_SHOWN], linear_drift(snapshots)),
    }


def walk(
    whole: LossSurface,
    surface: LossSurface,
    ranks: list[int],
    *,
    lr: float,
    batch_size: int,
    steps: int,
    every: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Part:
    """Return the null without a force in its own principal directions; see ``noise.frozen_walk``.

    Args:
        whole: loss over all N training data, for the noise.
        surface: the loss that widths and curvatures are of.
        ranks: of the directions, from 0.
        lr: η.
        batch_size: B.
        steps: T · every.
        every: steps between snapshots.
        sampling: of the batches.
        generator: of the batches.

    Returns:
        As ``along``, with PCA's variances and ``cosine`` [20].
    """
    path = frozen_walk(
        whole.to(torch.float32),
        lr=lr,
        batch_size=batch_size,
        steps=steps,
        generator=generator,
        sampling=sampling,
        every=every,
    )
    found = principal_directions(path, ranks[-1] + 1)
    scores = displacements(path, found.directions[:_SCORES].double())
    return _along(found, path, surface, ranks) | {"cosine": cosine_overlap(scores)}


def langevin_control(
    surface: LossSurface,
    ranks: list[int],
    *,
    steps: int,
    directions: int,
    generator: torch.Generator,
) -> Part:
    """Return Langevin dynamics along its Hessian's eigenvectors, and as ``pca_…`` its own.

    The rate is a share of 1/h of the sharpest direction, so that many directions relax within as
    many steps as the window has; the temperature is so low that the walk in flat directions crosses
    few kinks of the loss, each of which would push it on for good, and so asks for the surface's
    own arithmetic: in float32 rounding is as large.

    Args:
        surface: the loss over a fixed subset of the data.
        ranks: of the principal directions, from 0.
        steps: T.
        directions: how many eigenvectors are looked at, at most.
        generator: of the kicks.

    Returns:
        As ``along``, with ``lr``.

    Raises:
        DataError: the loss curves upwards nowhere.
    """
    wander = _WANDER * float(surface.reference.norm())
    found = hessian_directions(surface)
    sharpest = float(found.values[0])
    if not sharpest > 0:
        raise DataError(
            f"the Hessian's largest eigenvalue is {sharpest:g}: Langevin dynamics has no "
            "stationary state to compare with"
        )
    lr = _LANGEVIN_LR / sharpest
    snapshots = langevin(
        surface,
        lr=lr,
        temperature=wander**2 / (2.0 * lr * 2 * steps * surface.size),
        steps=steps,
        burn_in=steps,
        generator=generator,
    )
    fast = int((found.values > MEMORY / (lr * steps)).sum())
    stride = max(1, fast // directions)
    eigen = along(snapshots, found.vectors[:fast:stride][:directions], surface)
    eigen["lr"] = torch.tensor(lr, dtype=torch.float64)
    own = principal(snapshots, surface, ranks)
    return eigen | {f"pca_{name}": value for name, value in own.items()}


def _along(
    found: PrincipalDirections, snapshots: Tensor, surface: LossSurface, ranks: list[int]
) -> Part:
    chosen = [i for i in ranks if i < len(found.variances)]
    if not chosen:
        raise DataError(
            f"the weights vary along {len(found.variances)} directions, none of rank {ranks[0]} "
            "beside the drift: lower spacing, or widen the layers"
        )
    part = along(snapshots, found.directions[chosen].double(), surface)
    return part | {"variances": found.variances[chosen]}
