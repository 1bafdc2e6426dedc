"""The whole measurement on one recorded window: the relation, and every control beside it.

Each part is a dict of tensors, made once and kept by its name: a caller may keep parts on disk and
go on after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flatcl.errors import DataError, OptionError, StateError
from flatcl.fluctuations.along import Part, along, displacements
from flatcl.fluctuations.bases import hessian_directions, random_directions
from flatcl.fluctuations.drift import alignment, linear_drift, without_drift
from flatcl.fluctuations.noise import Sampling, frozen_walk, gradient_noise, langevin
from flatcl.fluctuations.panel import Row, relation
from flatcl.fluctuations.pca import PrincipalDirections, principal_directions
from flatcl.fluctuations.spectrum import cosine_overlap
from flatcl.fluctuations.surface import LossSurface

Keep = Callable[[str, Callable[[], Part]], Part]
"""Returns the part of that name, made by the function if it has not been kept before."""

_MEMORY = 20.0  # a direction relaxes within the window if its τ is below T/20: bias ≤ 10 %
_LEADING = 50  # Hessian directions that are all looked at; the others by their spacing
_WANDER = 1e-5  # of |w|: how far the Langevin control walks in flat directions
_MOST_SEED = 10**15  # the controls' own seeds are a thousand times as large
_LANGEVIN_LR = 0.3  # times 1/h of its sharpest direction


def _anew(name: str, make: Callable[[], Part]) -> Part:
    return make()


@dataclass
class Study:
    """One window of SGD, and what is needed to judge it.

    Attributes:
        snapshots: [T, P], w, one a step at constant learning rate; may be mapped from a file.
        surface: loss over fixed data, the network at the window's mean weights ⟨w⟩.
        whole: loss over all training data there, for the noise; it may be the same surface.
        lr: η.
        batch_size: B.
        twin: snapshots of a window sampled with replacement, all else equal, and the loss around
            its own mean weights; None where there is none.
        directions: how many principal directions are measured.
        spacing: of their ranks; the first rank is left out.
        langevin_samples: data of the Langevin control, whose every step is a full gradient.
        sampling: of the window's minibatches, for the noise.
        seed: of the controls.
        keep: where parts are kept.
    """

    snapshots: Tensor
    surface: LossSurface
    whole: LossSurface
    lr: float
    batch_size: int
    twin: tuple[Tensor, LossSurface] | None = None
    directions: int = 100
    spacing: int = 10
    langevin_samples: int = 1000
    sampling: Sampling = "shuffle"
    seed: int = 0
    keep: Keep = field(default=_anew)

    def __post_init__(self) -> None:
        if self.snapshots.ndim != 2 or self.snapshots.shape[1] != self.surface.size:
            raise DataError(
                f"snapshots have shape {tuple(self.snapshots.shape)}; the surface's block has "
                f"{self.surface.size} weights"
            )
        if not self.lr > 0 or self.directions < 1 or self.spacing < 1:
            raise OptionError(
                f"lr {self.lr:g}, directions {self.directions}, spacing {self.spacing}: all must "
                "be above 0"
            )
        if not 0 <= self.seed <= _MOST_SEED:
            raise OptionError(f"seed is {self.seed}: give a whole number from 0 to {_MOST_SEED}")
        if not self.ranks:
            raise DataError(
                f"{len(self.snapshots)} snapshots of {self.surface.size} weights have no direction "
                f"of rank {self.spacing} beside the drift: record longer or lower spacing"
            )

    @property
    def ranks(self) -> list[int]:
        """Indices, from 0, of the principal directions measured."""
        most = min(len(self.snapshots) - 1, self.surface.size) - 1
        return [i * self.spacing for i in range(1, self.directions + 1) if i * self.spacing <= most]

    def principal(self) -> Part:
        """Return the window's principal directions, what is measured along them, the spectrum.

        Returns:
            Beside what every part has: ``spectrum`` [k] and ``total``, all variances; ``scores``
            [T, 6] of the first directions; ``cosine`` [20], their likeness to a random walk's;
            ``cos_mean`` and ``cos_drift`` [6], |cos| of the first directions with the mean weights
            and with the linear drift.
        """

        def make() -> Part:
            found = principal_directions(self.snapshots, self.ranks[-1] + 1)
            leading = found.directions[:20].double()
            scores = displacements(self.snapshots, leading)
            part = self._chosen(found, self.snapshots, self.surface)
            return part | {
                "spectrum": found.variances,
                "total": torch.tensor(found.total, dtype=torch.float64),
                "scores": scores[:, :6],
                "cosine": cosine_overlap(scores),
                "cos_mean": alignment(leading[:6], found.mean.double()),
                "cos_drift": alignment(leading[:6], linear_drift(self.snapshots)),
            }

        return self.keep("pca", make)

    def detrended(self) -> Part:
        """Return the same as ``principal`` of the window less its linear drift."""
        return self.keep(
            "detrended", lambda: self._principal(without_drift(self.snapshots), self.surface)
        )

    def split(self) -> Part:
        """Return directions of one half-window with their variances in the other.

        Sorting by a sample's variance favours its errors; another sample has others.
        """

        def make() -> Part:
            half = len(self.snapshots) // 2
            first, second = self.snapshots[:half], self.snapshots[half:]
            part = self._principal(first, self.surface)
            scores = displacements(second, part["directions"])
            return part | {"variances": scores.var(0, unbiased=False)}

        return self.keep("split", make)

    def hessian(self) -> Part:
        """Return all eigenvalues of the block's Hessian, and what is measured along some."""

        def make() -> Part:
            found = hessian_directions(self.surface)
            spaced = range(_LEADING, self.spacing * self.directions, self.spacing)
            chosen = [*range(min(_LEADING, self.surface.size)), *spaced]
            chosen = [i for i in chosen if i < self.surface.size]
            part = along(self.snapshots, found.vectors[chosen], self.surface)
            return part | {"eigenvalues": found.values, "noise": self._noise(part["directions"])}

        return self.keep("hessian", make)

    def noise(self) -> Tensor:
        """Return the minibatch gradient's variance along the principal directions, nats²/w²."""
        return self.keep("noise", lambda: {"c": self._noise(self.principal()["directions"])})["c"]

    def random_basis(self) -> Part:
        """Return what is measured along directions drawn at random."""

        def make() -> Part:
            k = min(self.directions, self.surface.size)
            rows = random_directions(self.surface.size, k, generator=self._generator(1))
            return along(self.snapshots, rows, self.surface)

        return self.keep("random_basis", make)

    def walk(self) -> Part:
        """Return the null: SGD's noise at frozen weights, its own principal directions."""

        def make() -> Part:
            path = frozen_walk(
                self.whole.to(torch.float32),
                lr=self.lr,
                batch_size=self.batch_size,
                steps=len(self.snapshots),
                generator=self._generator(2),
            )
            return self._principal(path, self.surface)

        return self.keep("walk", make)

    def langevin(self) -> tuple[Part, Part]:
        """Return the control in its Hessian's eigenvectors, and in its principal directions.

        Full gradients of a fixed subset with isotropic noise; Hessian and flatness are of the same
        subset. The rate is a share of 1/h of the sharpest direction, so that many directions relax
        within as many steps as the window has; the temperature is so low that the walk in flat
        directions crosses few kinks of the loss, each of which would push it on for good, and so
        asks for the surface's own arithmetic: in float32 rounding is as large.
        """
        samples = max(1, min(self.langevin_samples, len(self.surface) // 2))
        part = self.surface.subset(samples, self._generator(3))
        steps = len(self.snapshots)
        wander = _WANDER * float(part.reference.norm())

        def make() -> Part:
            found = hessian_directions(part)
            lr = _LANGEVIN_LR / float(found.values[0])
            snapshots = langevin(
                part,
                lr=lr,
                temperature=wander**2 / (2.0 * lr * 2 * steps * part.size),
                steps=steps,
                burn_in=steps,
                generator=self._generator(4),
            )
            fast = int((found.values > _MEMORY / (lr * steps)).sum())
            stride = max(1, fast // self.directions)
            eigen = along(snapshots, found.vectors[:fast:stride][: self.directions], part)
            principal = self._principal(snapshots, part)
            eigen["lr"] = torch.tensor(lr, dtype=torch.float64)
            return eigen | {f"pca_{name}": value for name, value in principal.items()}

        both = self.keep("langevin", make)
        eigen = {n: v for n, v in both.items() if not n.startswith("pca_")}
        return eigen, {n[4:]: v for n, v in both.items() if n.startswith("pca_")}

    def twin_principal(self) -> Part:
        """Return the twin's principal directions and what is measured along them."""
        snapshots, surface = self._twin()
        return self.keep("twin_principal", lambda: self._principal(snapshots, surface))

    def twin_hessian(self) -> Part:
        """Return what the twin gives along the Hessian's eigenvectors of ``hessian``."""
        snapshots, surface = self._twin()
        rows = self.hessian()["directions"]
        return self.keep("twin_hessian", lambda: along(snapshots, rows, surface))

    def rows(self, *, panel: bool = True) -> list[Row]:
        """Return the panel's rows, in the order of its table.

        Args:
            panel: with its controls; else the relation in principal directions alone.

        Returns:
            Rows; ``VarianceFlatness`` takes them by name.
        """
        pca = self.principal()
        rows = [self._row("pca", pca)]
        if not panel:
            return rows
        rows += [
            self._row("pca_predicted", pca, self._fast(pca)),
            self._row("pca_measured", pca, pca["tau"] < len(self.snapshots) / _MEMORY),
            self._row("pca_split", self.split()),
            self._row("pca_detrended", self.detrended()),
        ]
        hessian = self.hessian()
        rows.append(self._row("hessian", hessian))
        rows.append(self._row("hessian_predicted", hessian, self._fast(hessian)))
        if self.twin is not None:
            eigen = self.twin_hessian()
            rows += [
                self._row("replacement", self.twin_principal()),
                self._row("replacement_hessian", eigen),
                self._row("replacement_predicted", eigen, self._fast(eigen)),
            ]
        rows += [self._row("walk", self.walk()), self._row("random_basis", self.random_basis())]
        in_hessian, in_principal = self.langevin()
        rows += [self._row("langevin", in_hessian), self._row("langevin_pca", in_principal)]
        return rows

    def _twin(self) -> tuple[Tensor, LossSurface]:
        if self.twin is None:
            raise StateError("this study has no twin: give it a window sampled with replacement")
        return self.twin

    def _row(self, name: str, part: Part, keep: Tensor | None = None) -> Row:
        return relation(
            name, part["variances"], part["width"], part["curvature"], keep=keep, seed=self.seed
        )

    def _fast(self, part: Part) -> Tensor:
        # Their predicted time 1/(ηh) is below T/20.
        return part["curvature"] > _MEMORY / (self.lr * len(self.snapshots))

    def _principal(self, snapshots: Tensor, surface: LossSurface) -> Part:
        found = principal_directions(snapshots, self.ranks[-1] + 1)
        return self._chosen(found, snapshots, surface)

    def _chosen(self, found: PrincipalDirections, snapshots: Tensor, surface: LossSurface) -> Part:
        chosen = [i for i in self.ranks if i < len(found.variances)]
        if not chosen:
            raise DataError(
                f"the weights vary along {len(found.variances)} directions, none of rank "
                f"{self.spacing} beside the drift: lower spacing, or widen the layers"
            )
        part = along(snapshots, found.directions[chosen].double(), surface)
        return part | {"variances": found.variances[chosen]}

    def _noise(self, rows: Tensor) -> Tensor:
        return gradient_noise(self.whole, rows, batch_size=self.batch_size, sampling=self.sampling)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + number)
