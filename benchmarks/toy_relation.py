"""What a finite window and principal directions do to ψ, where theory knows its value.

``python -m benchmarks.toy_relation`` follows SGD on a quadratic whose curvature and noise are
given, fits ψ in σ² ∝ F^(−ψ) in the Hessian's and in principal directions, with and without a cut on
the correlation time τ, and adds what is missing to ``benchmarks/results/toy-relation.json``, one
entry a seed, noise and sampling. It renders ``benchmarks/TOY_RELATION.md`` from that; ``--render``
only renders.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.kept import entries
from flatcl import exact
from flatcl.fluctuations import efold_time, principal_directions
from flatcl.fluctuations.powerfit import power_fit
from flatcl.io import write_bytes, write_json
from flatcl.scores import mean_ci95
from flatcl.seeds import derive_seed
from flatcl.tables import markdown_table
from flatcl.versions import versions

Array = NDArray[np.float64]

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "toy-relation.json"
SAMPLINGS = ("replacement", "reshuffled")
# g in C ∝ h^g, and the sampling; constant noise stands for Langevin's, which knows no epochs.
CASES = (*((g, sampling) for g in (1.0, 1.4, 2.0) for sampling in SAMPLINGS), (0.0, "replacement"))
SETTINGS = {
    "hessian": "Hessian basis, all",
    "hessian_predicted": "Hessian, predicted τ < T/20",
    "hessian_measured": "Hessian, measured τ < T/20",
    "pca": "PCA basis, all",
    "pca_measured": "PCA, measured τ < T/20",
}
TEXT = """# ψ in a finite window: a toy whose answer is known

Made by `python -m benchmarks.toy_relation` (raw figures: `results/toy-relation.json`). SGD on a
diagonal quadratic: {directions} directions, h log-spaced from {h_low:g} to {h_high:g}, η = {lr:g},
M = {batches} batches an epoch, a window of T = {window:,} steps after {burn_in} epochs of burn-in.
The noise is Gaussian with C ∝ h^g, and either fresh at every step (*replacement*) or M fixed
vectors that sum to zero, dealt in a new order each epoch (*reshuffled*). ψ in σ² ∝ F^(−ψ) is fitted
by least squares of the logarithms, with F = h^(−1/2) in the Hessian basis and (pᵀHp)^(−1/2) along a
principal direction p.

- **A finite window and principal directions make a relation where there is none.** With C ∝ h the
  true ψ is 0; principal directions give {pca} with fresh noise, {pca_reshuffled} with reshuffled.
  Directions slower than the window wander through it like random walks, with a variance ∝ C, and
  principal directions blend their curvatures with those of sharper ones.
- **A cut on the measured correlation time hardly helps**, since the window shortens the measured τ
  too. In principal directions {pca_kept} of {directions} pass, and ψ is {pca_measured}. In the
  Hessian basis {measured_kept} pass where {predicted_kept} should, and ψ is {hessian_measured};
  with reshuffled noise, whose memory ends with the epoch, {reshuffled_kept} pass, and ψ is
  {reshuffled_measured}.
- **A cut on the predicted τ = 1/(ηh) in the Hessian basis does**: ψ is {hessian_predicted} with
  fresh noise. With reshuffled noise {reshuffled_predicted} remains, as it should: that noise still
  quenches directions near h_c.
- **A Langevin control in principal directions does not warn of this**: it gives {langevin} where
  theory has −2.

Each cell: ψ, mean over {seeds} seeds ± half the width of its 95 % t-interval, and in brackets how
many of the {directions} directions are kept, on average. *Theory* is 2(g − 1), for stationary SGD
where h ≫ h_c = 3/(ηM) = {h_c:g}. All g share the noise of a seed, so that in the Hessian basis the
lines of one sampling differ in ψ by exactly twice the difference in g.

{table}

## Against the closed forms

ψ fitted to the expected variances in the Hessian basis, by `flatcl.exact`: with fresh noise
`windowed_variance` of `stationary_variance`; with reshuffled noise `reshuffled_variance`, without
the few percent that the window takes. Over all directions the measured ψ lies a little higher: in
the flattest a window holds few independent values, and the mean logarithm of so noisy a variance
is below the logarithm of its mean.

{check}
"""


@dataclass(frozen=True)
class Toy:
    """A diagonal quadratic, the SGD on it, and the window it is watched in.

    Attributes:
        directions: of the quadratic.
        h_low: smallest curvature, nats/w².
        h_high: largest curvature.
        lr: η.
        batches: M, an epoch's.
        window: T, steps.
        burn_in: epochs before the window.
    """

    directions: int = 100
    h_low: float = 1e-4
    h_high: float = 5.0
    lr: float = 0.1
    batches: int = 1200
    window: int = 12_000
    burn_in: int = 15

    @cached_property
    def h(self) -> Tensor:
        """Curvatures [directions], nats/w²."""
        return torch.from_numpy(np.geomspace(self.h_low, self.h_high, self.directions))

    @property
    def longest(self) -> float:
        """The largest τ that a window of T steps can be trusted with, T/20."""
        return self.window / 20

    @property
    def predicted(self) -> Tensor:
        """Whether τ = 1/(ηh) of a direction is below that, [directions] bool."""
        return 1.0 / (self.lr * self.h) < self.longest

    def trajectory(self, seed: int, sampling: str) -> Array:
        """Return the weights in the window under noise of unit variance in each direction.

        Noise of variance c only multiplies a direction by √c: the quadratic is diagonal.

        Args:
            seed: number of the repeat.
            sampling: one of ``SAMPLINGS``.

        Returns:
            [window, directions], w.
        """
        rng = np.random.default_rng(derive_seed("toy relation", seed, sampling))
        x = np.zeros(self.directions)
        decay = 1.0 - self.lr * self.h.numpy()
        skipped = self.burn_in * self.batches
        found = np.empty((self.window, self.directions))
        noise = self._noise(rng, sampling)
        for t in range(skipped + self.window):
            x = decay * x - self.lr * next(noise)
            if t >= skipped:
                found[t - skipped] = x
        return found

    def _noise(self, rng: np.random.Generator, sampling: str) -> Iterator[Array]:
        shape = self.batches, self.directions
        fixed = rng.standard_normal(shape)
        fixed -= fixed.mean(0)
        while True:
            if sampling == "reshuffled":
                yield from rng.permutation(fixed)
            else:
                yield from rng.standard_normal(shape)


def measure(toy: Toy, weights: Array, g: float) -> dict[str, dict[str, Any]]:
    """Return ψ in each setting, and how many directions it rests on.

    Args:
        toy: the set-up.
        weights: its trajectory under unit noise.
        g: of C ∝ h^g.

    Returns:
        ``psi`` (None where directions are too few) and ``kept``, by a key of ``SETTINGS``.
    """
    x = torch.from_numpy(weights) * toy.h ** (g / 2)
    variances, measured = x.var(0, correction=0), efold_time(x) < toy.longest
    found = principal_directions(x, toy.directions)
    curvatures = found.directions.square() @ toy.h  # pᵀHp
    rows = {
        "hessian": (toy.h, variances, torch.ones_like(measured)),
        "hessian_predicted": (toy.h, variances, toy.predicted),
        "hessian_measured": (toy.h, variances, measured),
        "pca": (curvatures, found.variances, torch.ones_like(curvatures, dtype=torch.bool)),
        "pca_measured": (
            curvatures, found.variances, efold_time(found.scores(x)) < toy.longest
        ),
    }  # fmt: skip
    return {
        "psi": {name: psi(h[keep], s[keep]) for name, (h, s, keep) in rows.items()},
        "kept": {name: int(keep.sum()) for name, (_, _, keep) in rows.items()},
    }


def psi(curvatures: Tensor, variances: Tensor) -> float | None:
    """Return ψ in σ² ∝ F^(−ψ) with F = h^(−1/2).

    Args:
        curvatures: h [k], nats/w².
        variances: σ² [k], w².

    Returns:
        ψ; None where there are too few directions for a fit.
    """
    fit = power_fit(curvatures.rsqrt(), variances, draws=1)  # its error comes from the seeds
    return None if fit is None else -fit.exponent


def expected(toy: Toy, g: float, sampling: str) -> Tensor:
    """Return the closed form of the variance that a window sees in each Hessian direction.

    Args:
        toy: the set-up.
        g: of C ∝ h^g.
        sampling: one of ``SAMPLINGS``; for ``reshuffled`` that of an endless window.

    Returns:
        σ² [directions], w².
    """
    if sampling == "reshuffled":
        unit = [
            exact.reshuffled_variance(h, 1.0, lr=toy.lr, batches=toy.batches)
            for h in toy.h.tolist()
        ]
    else:
        unit = [
            exact.windowed_variance(
                exact.stationary_variance(h, 1.0, lr=toy.lr), 1.0 - toy.lr * h, toy.window
            )
            for h in toy.h.tolist()
        ]
    return toy.h**g * torch.tensor(unit, dtype=torch.float64)


def fill(toy: Toy, seeds: int) -> None:
    """Make the entries that are missing, and write them seed by seed.

    Args:
        toy: the set-up.
        seeds: number of repeats.
    """
    runs = entries(RESULTS, asdict(toy), "runs")
    there = {(run["seed"], run["g"], run["sampling"]) for run in runs}
    for seed in range(seeds):
        for sampling in SAMPLINGS:
            missing = [g for g, s in CASES if s == sampling and (seed, g, s) not in there]
            weights = toy.trajectory(seed, sampling) if missing else np.empty(0)
            for g in missing:
                case = {"seed": seed, "g": g, "sampling": sampling}
                runs.append(case | measure(toy, weights, g) | {"versions": dict(versions())})
            if missing:
                write_json(RESULTS, {"setup": asdict(toy), "runs": runs})
                print(f"seed {seed}, {sampling}: done", flush=True)


def render(toy: Toy) -> str:
    """Return the page made from the recorded entries.

    Args:
        toy: the set-up.

    Returns:
        Markdown.
    """
    runs = entries(RESULTS, asdict(toy), "runs")

    def values(kind: str, g: float, sampling: str, setting: str) -> list[float]:
        chosen = [run for run in runs if (run["g"], run["sampling"]) == (g, sampling)]
        return [run[kind][setting] for run in chosen if run["psi"][setting] is not None]

    def mean(setting: str, g: float = 1.0, sampling: str = "replacement") -> str:
        return _signed(mean_ci95(values("psi", g, sampling, setting))[0])

    def kept(setting: str, sampling: str = "replacement") -> str:
        return f"{mean_ci95(values('kept', 1.0, sampling, setting))[0]:.0f}"

    def cell(g: float, sampling: str, setting: str) -> str:
        number = mean_ci95(values("kept", g, sampling, setting))[0]
        return f"{_interval(values('psi', g, sampling, setting))} ({number:.0f})"

    table, check = [], []
    for g, sampling in CASES:
        noise = "C ∝ h" + (f"^{g:g}" if g != 1 else "") if g else "constant (Langevin)"
        name = [noise, sampling if g else "–"]
        theory = _signed(-exact.null_exponent(g))
        table.append([*name, theory, *(cell(g, sampling, setting) for setting in SETTINGS)])
        line, form = [], expected(toy, g, sampling)
        for setting, keep in (
            ("hessian", torch.ones_like(toy.predicted)),
            ("hessian_predicted", toy.predicted),
        ):
            known = psi(toy.h[keep], form[keep])
            line += ["–" if known is None else _signed(known)]
            line += [_interval(values("psi", g, sampling, setting))]
        check.append([*name, *line])
    header = ["noise", "sampling", "theory", *SETTINGS.values()]
    against = ["noise", "sampling", "all: closed form", "measured"]
    against += ["predicted τ < T/20: closed form", "measured"]
    return TEXT.format(
        **asdict(toy),
        seeds=len({run["seed"] for run in runs}),
        h_c=3 / (toy.lr * toy.batches),
        pca=mean("pca"),
        pca_reshuffled=mean("pca", sampling="reshuffled"),
        pca_measured=mean("pca_measured"),
        pca_kept=kept("pca_measured"),
        measured_kept=kept("hessian_measured"),
        predicted_kept=kept("hessian_predicted"),
        reshuffled_kept=kept("hessian_measured", "reshuffled"),
        hessian_measured=mean("hessian_measured"),
        hessian_predicted=mean("hessian_predicted"),
        reshuffled_measured=mean("hessian_measured", sampling="reshuffled"),
        reshuffled_predicted=mean("hessian_predicted", sampling="reshuffled"),
        langevin=mean("pca", 0.0),
        table=markdown_table(header, table),
        check=markdown_table(against, check),
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _interval(values: list[float]) -> str:
    mean, half = mean_ci95(values)
    return _signed(mean) + ("" if half is None else f" ± {half:.2f}")


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="repeats [5]")
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    toy = Toy()
    if not chosen.render:
        fill(toy, chosen.seeds)
    write_bytes(HERE / "TOY_RELATION.md", render(toy).encode())


if __name__ == "__main__":
    main()
