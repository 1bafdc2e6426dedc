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
from flatcl.fluctuations import parts
from flatcl.fluctuations.along import Part, along, displacements
from flatcl.fluctuations.bases import hessian_directions, random_directions
from flatcl.fluctuations.drift import without_drift
from flatcl.fluctuations.noise import Sampling, gradient_noise, noise_alone
from flatcl.fluctuations.panel import Row, relation
from flatcl.fluctuations.surface import LossSurface

Keep = Callable[[str, Callable[[], Part]], Part]
"""Returns the part of that name, made by the function if it has not been kept before."""

_LEADING = 50  # Hessian directions that are all looked at; the others by their spacing
_MOST_SEED = 10**15  # the controls' own seeds are a thousand times as large


def _anew(name: str, make: Callable[[], Part]) -> Part:
    return make()


@dataclass
class Study:
    """One window of SGD, and what is needed to judge it.

    Attributes:
        snapshots: [T, P], w, at constant learning rate; may be mapped from a file.
        surface: loss over fixed data, the network at the window's mean weights ⟨w⟩.
        whole: loss over all training data there, for the noise; it may be the same surface.
        lr: η.
        batch_size: B.
        twin: snapshots of a window sampled with replacement, all else equal, and the loss around
            its own mean weights; None where there is none.
        every: steps from one snapshot to the next, the recorder's stride.
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
    every: int = 1
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
        if not self.lr > 0 or min(self.directions, self.spacing, self.every) < 1:
            raise OptionError(
                f"lr {self.lr:g}, directions {self.directions}, spacing {self.spacing}, every "
                f"{self.every}: all must be above 0"
            )
        if not 0 <= self.seed <= _MOST_SEED:
            raise OptionError(f"seed is {self.seed}: give a whole number from 0 to {_MOST_SEED}")
        if not self.ranks:
            raise DataError(
                f"{len(self.snapshots)} snapshots of {self.surface.size} weights have no direction "
                f"of rank {self.spacing} beside the drift: record longer or lower spacing"
            )

    @property
    def steps(self) -> int:
        """Steps of SGD that the window lasts."""
        return len(self.snapshots) * self.every

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
            and with the linear drift. A surface that is not at the window's mean is a DataError.
        """
        return self.keep("pca", lambda: parts.described(self.snapshots, self.surface, self.ranks))

    def detrended(self) -> Part:
        """Return the same as ``principal`` of the window less its linear drift."""
        return self.keep("detrended", lambda: self._principal(without_drift(self.snapshots)))

    def split(self) -> Part:
        """Return directions of one half-window with their variances in the other.

        Sorting by a sample's variance favours its errors; another sample has others.
        """

        def make() -> Part:
            half = len(self.snapshots) // 2
            first, second = self.snapshots[:half], self.snapshots[half:]
            part = self._principal(first)
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

    def noise_alone(self, *, sampling: Sampling | None = None) -> Tensor:
        """Return what noise without a force would give along the directions of ``hessian``.

        Args:
            sampling: of the minibatches; the window's if None.

        Returns:
            σ² [k], w², in closed form.
        """
        dealt = (sampling or self.sampling) == "shuffle"
        batches = len(self.whole) // self.batch_size
        return noise_alone(
            self.hessian()["noise"],
            lr=self.lr,
            steps=self.steps,
            batches=batches if dealt and batches > 1 else None,
        )

    def random_basis(self) -> Part:
        """Return what is measured along directions drawn at random."""

        def make() -> Part:
            k = min(self.directions, self.surface.size)
            rows = random_directions(self.surface.size, k, generator=self._generator(1))
            return along(self.snapshots, rows, self.surface)

        return self.keep("random_basis", make)

    def walk(self) -> Part:
        """Return the null: SGD's noise at frozen weights, its own principal directions.

        Returns:
            Beside what every part has ``cosine`` [20], as ``principal``: noise alone, unless it is
            the same in all directions, is like a walk's in few of them.
        """
        return self.keep(
            "walk",
            lambda: parts.walk(
                self.whole,
                self.surface,
                self.ranks,
                lr=self.lr,
                batch_size=self.batch_size,
                steps=self.steps,
                every=self.every,
                sampling=self.sampling,
                generator=self._generator(2),
            ),
        )

    def langevin(self) -> tuple[Part, Part]:
        """Return the control in its Hessian's eigenvectors, and in its principal directions.

        Full gradients of a fixed subset with isotropic noise; Hessian and flatness are of the same
        subset. A loss that curves upwards nowhere is a DataError.
        """

        def make() -> Part:
            samples = max(1, min(self.langevin_samples, len(self.surface) // 2))
            return parts.langevin_control(
                self.surface.subset(samples, self._generator(3)),
                self.ranks,
                steps=len(self.snapshots),
                directions=self.directions,
                generator=self._generator(4),
            )

        both = self.keep("langevin", make)
        eigen = {n: v for n, v in both.items() if not n.startswith("pca_")}
        return eigen, {n[4:]: v for n, v in both.items() if n.startswith("pca_")}

    def twin_principal(self) -> Part:
        """Return the twin's principal directions and what is measured along them."""
        snapshots, surface = self._twin()
        return self.keep("twin_principal", lambda: parts.principal(snapshots, surface, self.ranks))

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
            self._row("pca_measured", pca, pca["tau"] < len(self.snapshots) / parts.MEMORY),
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
        rows += [
            self._row("walk", self.walk()),
            self._row("walk_hessian", hessian | {"variances": self.noise_alone()}),
            self._row("random_basis", self.random_basis()),
        ]
        if float(hessian["eigenvalues"][0]) > 0:
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
        return part["curvature"] > parts.MEMORY / (self.lr * self.steps)

    def _principal(self, snapshots: Tensor) -> Part:
        return parts.principal(snapshots, self.surface, self.ranks)

    def _noise(self, rows: Tensor) -> Tensor:
        return gradient_noise(self.whole, rows, batch_size=self.batch_size, sampling=self.sampling)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + number)
