"""Tables and figures of ``benchmarks.fluctuations``, from the results it keeps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from benchmarks.fluctuations_grid import INTRODUCTION, grid, grid_figure
from benchmarks.fluctuations_nulls import EXPLAINED, relation_of, sharpest
from benchmarks.fluctuations_runs import DOCS, column, load, load_points, save, spread
from flatcl.fluctuation_plots import (
    plot_annealing,
    plot_noise,
    plot_profiles,
    plot_relation,
    plot_spectrum,
    plot_times,
)
from flatcl.fluctuations import VarianceFlatness, power_fit
from flatcl.fluctuations.panel import SETTINGS
from flatcl.io import write_bytes
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
# Feng & Tu, PNAS 118 (2021): fact → what is published.
PUBLISHED = {
    "gamma": "2 to 3, ranks 20 and on",
    "variance_fraction_pc2_35": "about 0.9",
    "cos_p1_mean_weights": "well aligned, no figure",
    "psi": "about 4",
}
_NAMES = {
    "psi": "ψ in principal directions",
    "gamma": "γ, σ_i² ∝ i^−γ",
    "variance_fraction_pc2_35": "share of PCs 2–35 without PC 1",
    "variance_fraction_pc1": "share of PC 1",
    "cos_p1_mean_weights": "cos(p₁, mean weights)",
    "cos_p1_drift": "cos(p₁, linear drift)",
    "walk_like_of_20": "walk-like (overlap > 0.7) of the first 20",
    "noise_curvature_exponent": "g, C ∝ h^g, Hessian directions",
    "noise_curvature_exponent_pca": "g, principal directions",
    "hessian_top": "largest h, nats/w²",
    "h_crossover": "h_c = 3/(ηM)",
    "train_loss": "training loss, nats",
    "epochs": "epochs",
    "n_snapshots": "snapshots",
    "psi_last_rank": "last rank measured",
    "flatness_censored": "censored widths",
}
_INTRODUCTION = """# Fluctuations of SGD: published figures, ours, and the null controls

Made by `python -m benchmarks.fluctuations`; `--render` makes this page again from
`results/fluctuations`. {seeds} seeds of the set-up of Feng & Tu (PNAS 2021): MNIST, 784-50-50-10
without biases, B = 50, η = 0.1, trained to a loss below 5e-5, then ten epochs recorded step by
step in float64; the 50 × 50 weights between the hidden layers. Flatness and Hessian are taken over
10,000 images, always the same; noise over all. Of the principal directions every tenth rank from 11
on is measured, fixed beforehand. The null in principal directions draws its batches independently,
as the window with replacement does; the null in Hessian eigenvectors is in closed form, and ψ is
the same for either way of drawing. Means ± 95 % t-intervals over seeds.
"""
_ANNEALING = """## Through training

The leading 20 eigenvectors of the block's Hessian at falling losses of the training of seed 0, over
2000 images: medians of the effective temperature T = η C_ii / 2 at frozen weights, and of the
flatness F. F is a width in units of the loss at hand, F ∝ (L₀/h)^½ in a parabola: it changes with
L₀ as much as with the curvature, and is to be read beside the largest h.
"""


def panel(folders: Sequence[Path], relations: Sequence[VarianceFlatness]) -> str:
    """Both tables of the paper's set-up, and each seed's verdict."""
    runs = [load(folder) for folder in folders]
    rows = [
        [name, PUBLISHED.get(key, "–"), spread([run.get(key) for run in runs])]
        for key, name in _NAMES.items()
    ]
    parts = [markdown_table(["figure", "published", "ours"], rows)]
    parts += ["## In the sharpest directions\n", EXPLAINED, sharpest(folders)]
    parts.append("## The null panel\n")
    lines = []
    for key, name in SETTINGS.items():
        found = [r.rows[key] for r in relations if key in r.rows]
        fits = [(row.flatness, row.curvature) for row in found]
        lines.append([
            name,
            spread([row.psi for row in found]),
            spread([None if k is None else 2 * k.exponent for _, k in fits]),
            spread([None if f is None else f.spearman for f, _ in fits]),
            spread([None if f is None else float(f.n) for f, _ in fits], 0),
            spread([float(row.censored) for row in found], 0),
        ])  # fmt: skip
    header = ["setting", "ψ (σ² ∝ F^−ψ)", "2k (σ² ∝ h^k)", "rank corr. σ², F", "directions"]
    parts.append(markdown_table([*header, "censored"], lines))
    parts.append("![variance against flatness, with controls](../docs/fluctuations.png)")
    parts += [
        f"*Seed {run['config']['seed']}.* {relation.verdict()}"
        for run, relation in zip(runs, relations, strict=True)
    ]
    return "\n\n".join(parts)


def reading(folders: Sequence[Path], relations: Sequence[VarianceFlatness]) -> str:
    """What survives its null, from the numbers."""

    def psi(name: str) -> tuple[float, float, str]:
        values = [r.rows[name].psi for r in relations]
        known = [v for v in values if v is not None]
        if not known:
            return math.nan, math.nan, "too few directions"
        mean = sum(known) / len(known)
        error = stats.sem(known) * stats.t.ppf(0.975, len(known) - 1) if len(known) > 1 else 0.0
        return mean, error, spread(values)

    main, walk, other, twin = (psi(n) for n in ("pca", "walk", "pca_split", "replacement"))
    hessian, own, alone = (psi(n) for n in ("hessian", "replacement_hessian", "walk_hessian"))
    gammas = [_walk_gamma(folder) for folder in folders]
    ours = spread([load(folder)["gamma"] for folder in folders])
    relaxing = [r.rows["hessian_predicted"].directions for r in relations]
    beaten = walk[0] >= main[0] - main[1] - walk[1]
    lines = [
        f"ψ in principal directions is {main[2]} (published: about 4), with replacement {twin[2]}. "
        f"Noise at frozen weights, drawn with replacement, with no force at all, has {walk[2]}: "
        + (
            "**the relation does not survive its null**; it needs no landscape that holds weights."
            if beaten
            else "the relation is steeper than its null."
        ),
        f"γ is {ours} (published: 2 to 3); the same noise without a force has {spread(gammas)}. "
        "The spectrum tells how noise is shared among directions, not how they are held.",
        f"Directions that are chosen in one half of the window have, in the other, ψ = {other[2]}: "
        "sorting by a sample's variance makes part of the relation.",
        f"In eigenvectors of the Hessian ψ is {hessian[2]}, with replacement {own[2]}; noise "
        f"without a force has {alone[2]} there. "
        + (
            "Both windows have less: what the landscape does is to weaken the relation."
            if max(hessian[0] + hessian[1], own[0] + own[1]) < alone[0] - alone[1]
            else "It is not told apart from them."
        ),
        f"Of the Hessian directions measured {_count(relaxing)} within the window (1/(ηh) < T/20): "
        "at this loss the valley is too flat for ten epochs to test the stationary relation. "
        "Batches dealt anew undo each other within an epoch, whatever h is, so that the sharpest "
        "directions may be stationary all the same: the table below.",
    ]
    return "\n".join(textwrap.fill(f"- {line}", 98, subsequent_indent="  ") for line in lines)


def _count(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    if high == 0:
        return "not one relaxes"
    return f"{low} relax" if low == high else f"{low} to {high} a seed relax"


def _walk_gamma(folder: Path) -> float:
    """γ of the walk's own spectrum, over the ranks that were kept."""
    points = load_points(folder)
    spacing = load(folder)["config"]["spacing"]
    variances = torch.tensor(points["walk"]["variances"]).double()
    ranks = torch.arange(1, len(variances) + 1).double() * spacing + 1
    fit = power_fit(ranks[ranks >= 20], variances[ranks >= 20])
    return math.nan if fit is None else -fit.exponent


def annealing_table(folder: Path) -> str:
    """Temperature and flatness as the training loss falls."""
    points = load_points(folder)
    stages = {name: column(values) for name, values in points["stages"].items()}
    lines = []
    for i, loss in enumerate(stages["loss"].tolist()):
        h, T, F = (stages[name][i] for name in ("curvature", "temperature", "width"))
        T_F = (f"{float(T.median()):.1e}", f"{float(F.nanmedian()):.2f}")
        lines.append([f"{loss:.1e}", f"{float(h[0]):.2g}", *T_F])
    return markdown_table(["loss, nats", "largest h, nats/w²", "T, nats", "F, w"], lines)


def panel_figure(folder: Path) -> None:
    """Four panels of one seed: spectrum, relation, noise, memory."""
    content = load_points(folder)
    run = load(folder)

    def numbers(part: str, name: str) -> Tensor:
        return column(content[part][name])

    def pairs(x: str, y: str, names: dict[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
        return {label: (numbers(part, x), numbers(part, y)) for part, label in names.items()}

    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = list(figure.subplots(2, 3).flat)
    plot_spectrum(numbers("pca", "spectrum"), axes[0])
    settings = {
        "pca": "SGD, principal directions",
        "hessian": "SGD, Hessian eigenvectors",
        "walk": "null: noise without a force",
        "langevin": "control: Langevin",
        "random_basis": "null: random directions",
    }
    plot_relation(pairs("width", "variances", settings), axes[1])
    plot_noise(pairs("curvature", "noise", {"hessian": "Hessian eigenvectors"}), axes[2])
    both = {"hessian": "Hessian eigenvectors", "pca": "principal directions"}
    times = pairs("curvature", "tau", both)
    plot_times(times, axes[3], lr=run["config"]["lr"], window=run["n_snapshots"])
    shown = content["profiles"]
    offsets, losses = (torch.tensor(shown[name]).double() for name in ("offsets", "losses"))
    labels = [f"eigenvector {i + 1}" for i in shown["chosen"]]
    plot_profiles(offsets, losses, axes[4], loss=shown["centre"][0], labels=labels)
    stages = {name: column(values) for name, values in content["stages"].items()}
    plot_annealing(stages["loss"], stages["temperature"], stages["width"], axes[5])
    save(figure, DOCS / "fluctuations.png")


def render(seeds: Sequence[Path], cells: Sequence[Path], epochs: int) -> None:
    """Write ``FLUCTUATIONS.md`` and its figures from what is there."""
    seeds, cells = ([f for f in fs if (f / "analysis.json").exists()] for fs in (seeds, cells))
    parts = []
    if seeds:
        relations = [relation_of(folder) for folder in seeds]
        parts += [_INTRODUCTION.format(seeds=len(seeds))]
        parts += [reading(seeds, relations), panel(seeds, relations)]
        parts += [_ANNEALING, annealing_table(seeds[0])]
        panel_figure(seeds[0])
    if cells:
        parts += [INTRODUCTION.format(epochs=epochs), grid(cells)]
        grid_figure(cells)
    write_bytes(HERE / "FLUCTUATIONS.md", ("\n\n".join(parts) + "\n").encode())
