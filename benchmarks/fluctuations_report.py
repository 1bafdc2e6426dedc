"""Tables and figures of ``benchmarks.fluctuations``, from the results it keeps."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from flatcl.fluctuation_plots import (
    plot_annealing,
    plot_noise,
    plot_profiles,
    plot_relation,
    plot_spectrum,
    plot_times,
)
from flatcl.fluctuations import VarianceFlatness
from flatcl.fluctuations.panel import SETTINGS
from flatcl.io import write_bytes
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
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
    "stationarity": "σ²(T)/σ²(T/2), median PC",
    "fluctuation_dissipation": "fluctuation–dissipation ratio",
    "hessian_top": "largest h, nats/w²",
    "h_crossover": "h_c = 3/(ηM)",
    "train_loss": "training loss, nats",
    "epochs": "epochs",
    "n_snapshots": "snapshots",
    "psi_last_rank": "last rank with a variance above rounding",
    "flatness_censored": "censored widths",
}
_INTRODUCTION = """# Fluctuations of SGD: published figures, ours, and the null controls

Made by `python -m benchmarks.fluctuations`; `--render` makes this page again from
`results/fluctuations`. {seeds} seeds of the set-up of Feng & Tu (PNAS 2021): MNIST, 784-50-50-10
without biases, B = 50, η = 0.1, trained to a loss below 5e-5, then ten epochs recorded step by
step in float64; the 50 × 50 weights between the hidden layers. Flatness and Hessian are taken over
10,000 images, always the same; noise over all. Of the principal directions every tenth rank from 11
on is measured, fixed beforehand. Means ± 95 % t-intervals over seeds.
"""
_ANNEALING = """## Through training

The leading 20 eigenvectors of the block's Hessian at falling losses of the training of seed 0, over
2000 images: medians of the effective temperature T = η C_ii / 2 at frozen weights, and of the
flatness F. F is a width in units of the loss at hand, F ∝ (L₀/h)^½ in a parabola: it changes with
L₀ as much as with the curvature, and is to be read beside the largest h.
"""
_GRID = """## ψ and g over batch sizes and rates

One seed each; training stopped at the paper's rule or after {epochs} epochs; ten epochs recorded
(4000 steps or more); intervals are of the bootstrap over directions; T is the median effective
temperature η C_ii / 2 over the principal directions. No null panel here: what these
ψ prove, the panel above says.

![ψ and g over batch sizes and rates](../docs/fluctuations-grid.png)
"""


def load(folder: Path) -> dict[str, Any]:
    """The summary of one run."""
    content: dict[str, Any] = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    return content


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean and half-width of the 95 % t-interval, and of how many."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = sum(known) / len(known)
    form = f"{{:.{digits}f}}" if 0.01 <= abs(mean) < 1e4 or mean == 0 else "{:.2g}"
    if len(known) < 2:
        return form.format(mean) + f" ({len(known)} of {len(values)})"
    error = stats.sem(known) * stats.t.ppf(0.975, len(known) - 1)
    few = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    return f"{form.format(mean)} ± {form.format(error)}{few}"


def panel(folders: Sequence[Path]) -> str:
    """Both tables of the paper's set-up, and each seed's verdict."""
    runs = [load(folder) for folder in folders]
    relations = [VarianceFlatness.from_dict(run["relation"]) for run in runs]
    rows = [
        [name, PUBLISHED.get(key, "–"), spread([run.get(key) for run in runs])]
        for key, name in _NAMES.items()
    ]
    parts = [markdown_table(["figure", "published", "ours"], rows), "## The null panel\n"]
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


def annealing_table(folder: Path) -> str:
    """Temperature and flatness as the training loss falls."""
    points = json.loads((folder / "points.json").read_text(encoding="utf-8"))
    stages = {name: _rows(values) for name, values in points["stages"].items()}
    lines = []
    for i, loss in enumerate(stages["loss"].tolist()):
        h, T, F = (stages[name][i] for name in ("curvature", "temperature", "width"))
        T_F = (f"{float(T.median()):.1e}", f"{float(F.nanmedian()):.2f}")
        lines.append([f"{loss:.1e}", f"{float(h[0]):.2g}", *T_F])
    return markdown_table(["loss, nats", "largest h, nats/w²", "T, nats", "F, w"], lines)


def _rows(values: list[Any]) -> Tensor:
    nan = float("nan")
    if values and isinstance(values[0], list):
        return torch.tensor([[nan if v is None else v for v in row] for row in values]).double()
    return torch.tensor([nan if v is None else v for v in values]).double()


def grid(folders: Sequence[Path]) -> str:
    """The table over batch sizes and rates."""
    rows = []
    for folder in folders:
        run = load(folder)
        config, low_high = run["config"], run["psi_ci95"]
        interval = "" if low_high is None else f" [{low_high[0]:.2f}, {low_high[1]:.2f}]"
        psi = "–" if run["psi"] is None else f"{run['psi']:.2f}{interval}"
        points = json.loads((folder / "points.json").read_text(encoding="utf-8"))
        temperature = 0.5 * config["lr"] * median(points["noise"]["c"])
        rows.append([
            config["data"],
            str(config["batch_size"]),
            f"{config['lr']:g}",
            psi,
            spread([run["noise_curvature_exponent_pca"]]).split(" ")[0],
            f"{temperature:.1e}",
            f"{run['gamma']:.2f}",
            f"{run['psi_first_rank']}–{run['psi_last_rank']}",
            f"{run['train_loss']:.1e}",
            f"{run['epochs']}" + ("" if run["stop_rule_met"] else " (not met)"),
        ])  # fmt: skip
    header = ["data", "B", "η", "ψ [95 %]", "g", "T, nats", "γ", "ranks", "loss", "epochs"]
    return markdown_table(header, rows)


def panel_figure(folder: Path) -> None:
    """Four panels of one seed: spectrum, relation, noise, memory."""
    content = json.loads((folder / "points.json").read_text(encoding="utf-8"))
    run = load(folder)

    def numbers(part: str, name: str) -> Tensor:
        return _rows(content[part][name])

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
    stages = {name: _rows(values) for name, values in content["stages"].items()}
    plot_annealing(stages["loss"], stages["temperature"], stages["width"], axes[5])
    _save(figure, DOCS / "fluctuations.png")


def grid_figure(folders: Sequence[Path]) -> None:
    """ψ and g against batch size, one line a rate and data set."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    inks = {0.05: "#56B4E9", 0.1: "#0072B2", 0.2: "#000000"}
    styles = {"mnist": ("-", "o"), "fashion": ("--", "s")}
    lines: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for folder in folders:
        run = load(folder)
        lines.setdefault((run["config"]["data"], run["config"]["lr"]), []).append(run)
    for (data, lr), runs in lines.items():
        style, mark = styles[data]
        label = f"{data}, η = {lr:g}"
        known = [run for run in runs if run["psi"] is not None]
        B = [run["config"]["batch_size"] for run in known]
        psi = [run["psi"] for run in known]
        low = [run["psi"] - run["psi_ci95"][0] for run in known]
        high = [run["psi_ci95"][1] - run["psi"] for run in known]
        left.errorbar(
            B, psi, yerr=[low, high], color=inks[lr], ls=style, marker=mark, capsize=2, label=label
        )
        g = [run["noise_curvature_exponent_pca"] for run in known]
        right.plot(B, g, color=inks[lr], ls=style, marker=mark, label=label)
    left.axhline(4.0, color="0.5", ls=":", lw=1)
    left.annotate("published", (0.99, 4.0), xycoords=("axes fraction", "data"), ha="right")
    left.set(ylabel="ψ, bars: 95 % over directions")
    right.set(ylabel="g, noise ∝ curvature$^g$ (principal directions)")
    for axes in (left, right):
        axes.set(xlabel="batch size B (images)", xscale="log")
        axes.set_xticks([25, 50, 100, 200], labels=["25", "50", "100", "200"])
        axes.minorticks_off()
    right.legend(frameon=False, fontsize=8)
    _save(figure, DOCS / "fluctuations-grid.png")


def render(seeds: Sequence[Path], cells: Sequence[Path], epochs: int) -> None:
    """Write ``FLUCTUATIONS.md`` and its figures from what is there."""
    seeds, cells = ([f for f in fs if (f / "analysis.json").exists()] for fs in (seeds, cells))
    parts = []
    if seeds:
        parts += [_INTRODUCTION.format(seeds=len(seeds)), panel(seeds)]
        parts += [_ANNEALING, annealing_table(seeds[0])]
        panel_figure(seeds[0])
    if cells:
        parts += [_GRID.format(epochs=epochs), grid(cells)]
        grid_figure(cells)
    write_bytes(HERE / "FLUCTUATIONS.md", ("\n\n".join(parts) + "\n").encode())


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
