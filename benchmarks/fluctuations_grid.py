"""ψ and g over batch sizes and rates: the table and the figure of the grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from benchmarks.fluctuations_runs import DOCS, load, save, spread
from flatcl.tables import markdown_table

INTRODUCTION = """## ψ and g over batch sizes and rates

One seed each; training stopped at the paper's rule or after {epochs} epochs; ten epochs recorded
(4000 steps or more); intervals are of the bootstrap over directions; T is the median effective
temperature η C_ii / 2 over the principal directions. No null panel here: what these
ψ prove, the panel above says.

![ψ and g over batch sizes and rates](../docs/fluctuations-grid.png)
"""


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
    published = left.axhline(4.0, color="0.5", ls=":", lw=1, label="published, B = 50, η = 0.1")
    left.legend(handles=[published], frameon=False, fontsize=8)
    left.set(ylabel="ψ, bars: 95 % over directions")
    right.set(ylabel="g, noise ∝ curvature$^g$ (principal directions)")
    for axes in (left, right):
        axes.set(xlabel="batch size B (images)", xscale="log")
        axes.set_xticks([25, 50, 100, 200], labels=["25", "50", "100", "200"])
        axes.minorticks_off()
    right.legend(frameon=False, fontsize=8)
    save(figure, DOCS / "fluctuations-grid.png")
