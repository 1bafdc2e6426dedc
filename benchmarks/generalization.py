"""Which knob of training acts through sharpness, which through size: MNIST, ten repeats.

``python -m benchmarks.generalization`` trains and measures the networks that are missing under
``benchmarks/results/generalization`` and renders ``benchmarks/GENERALIZATION.md`` and its figures;
``--render`` only renders. Killed, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from flatcl.duality_plots import plot_study
from flatcl.generalize import Study, generalize, missing
from flatcl.generalize_effects import Effect, left_out, levels
from flatcl.generalize_options import GeneralizeOptions
from flatcl.generalize_summary import correlations_table, effects_table, facts_of, levels_table
from flatcl.io import write_bytes
from flatcl.plots import png
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "generalization"
OPTIONS = GeneralizeOptions(
    data="mnist",
    seeds=10,
    train_size=4000,
    batch_sizes=(25, 50, 100, 200),
    lrs=(0.02, 0.05, 0.1),
    decays=(0, 1e-3, 3e-3, 1e-2),
    dropouts=(0, 0.1, 0.2, 0.3),
    scales=(1, 2, 4),
    train_sizes=(2000, 4000, 8000, 16000),
    noises=(0, 0.1, 0.2),
)
# What Feng, Zhang and Tu (2023) say of each knob, +1 up, −1 down, None nothing: as recalled from
# the paper, not read again, so a disagreement is with the recollection.
CLAIMS: dict[str, dict[str, int | None]] = {
    "batch size": {"gap": 1, "sharpness": 1, "size": -1},
    "learning rate": {"gap": -1, "sharpness": -1, "size": 1},
    "weight decay": {"gap": -1, "sharpness": 1, "size": -1},
    "dropout": {"gap": -1, "sharpness": None, "size": None},
    "initial scale": {"gap": 1, "sharpness": None, "size": 1},
    "training images": {"gap": -1, "sharpness": -1, "size": -1},
    "label noise": {"gap": 1, "sharpness": 1, "size": 1},
}
_WAY = {1: "up", -1: "down", 0: "neither", None: "–"}
_HEAD = """# What decides generalisation, direction by direction

Made by `python -m benchmarks.generalization`: {headline}.
Set-up of Feng, Zhang and Tu (Nature Machine Intelligence 5, 908, 2023): 784-30-30-10 without
biases, pixels 0 to 1, plain SGD, each network trained until the mean loss over what it is trained
on is below {loss:g}; the {weights} weights between the hidden layers are looked at, with the first
{tests} test images. {networks} networks, {minutes:.0f} minutes on one core; the measurement takes
{measure:.1f} s a network (the slowest {slowest:.1f} s). Raw figures: `results/generalization/`.

Each row compares a knob's last value with its first, paired by seed: the ratio with its 95 %
t-interval. *Sharpness* is (Σσ_g²)^½, *size* (Σσ_w²)^½ over all directions, *c* the mean correlation
weighted with σ_gσ_w. The gap moves *through* a factor that changes the gap's way, outside its
interval. It is not *monotone* where one step from value to value raises it and another lowers it,
both outside their intervals.
"""
_LEFT_OUT = """{sentences}
With either, the first {epochs} epochs are regularised and the loss counts only after them: 0 is
another schedule of training, not the smallest of the values.
"""
_LEVELS = """## Every value

Means over repeats, and the gap's ratio to that at the value before, paired by seed. The networks
in which nothing is turned are the same for every knob.
"""
_CLAIMED = """## Beside the paper's claims

As recalled from the paper, not read again; "–" where nothing was recalled. Weight decay (β|w|²/2)
and dropout act during the first {epochs} epochs and then end, for under them the loss is hardly
reached; how the paper ends them is not known. For these two "up" is from the first value above 0
to the last.
"""
_EXPLAINS = """## What goes with the gap

Over all networks of the sweep that reached the loss and whose measure is known: c is not where
nothing moves along some direction. Σ sharpness × size is near the gap by construction (the gap is
Σ c σ_g σ_w), and c itself goes with the gap.
"""
_BUILT_IN = """## What is found and what is built in
"""
_FIGURE = """![Sharpness and size along the directions, for every knob](../docs/generalization.png)
"""


def main() -> None:
    """Make what is missing, then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--render", action="store_true", help="only render; all must be there")
    parser.add_argument("--jobs", type=int, default=2, help="networks at the same time [2]")
    chosen = parser.parse_args()
    options = replace(OPTIONS, jobs=chosen.jobs)
    absent = len(missing(options, RESULTS))
    if chosen.render and absent:
        parser.error(f"{absent} networks are missing: run without --render")
    study = generalize(options, RESULTS, lambda line: print(line, file=sys.stderr, flush=True))
    write_bytes(HERE / "GENERALIZATION.md", text(study).encode())
    figure = plot_study(study.rows, study.records)
    write_bytes(HERE.parent / "docs" / "generalization.png", png(figure, dpi=100))


def text(study: Study) -> str:
    """Return the page.

    Args:
        study: of all networks.

    Returns:
        Markdown.
    """
    seconds = list(_seconds(study.records).values())
    measure = [one["measure"] for one in seconds]
    first, last = OPTIONS.hidden[-2:]
    head = _HEAD.format(
        headline=OPTIONS.headline(),
        loss=OPTIONS.loss,
        weights=first * last,
        tests=OPTIONS.test_size,
        networks=len(seconds),
        minutes=sum(sum(one.values()) for one in seconds) / 60,
        measure=fmean(measure),
        slowest=max(measure),
    )
    parts = [
        head,
        effects_table(study.effects),
        _LEFT_OUT.format(
            sentences="\n".join(left_out(study.rows)), epochs=OPTIONS.regularised_epochs
        ),
        _FIGURE,
        _LEVELS,
        levels_table(levels(study.rows)),
        _CLAIMED.format(epochs=OPTIONS.regularised_epochs),
        claims_table(study.effects),
        _EXPLAINS,
        correlations_table(study.rows),
        _BUILT_IN,
        "\n".join(f"- {fact}" for fact in facts_of(study.rows)),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def claims_table(effects: Sequence[Effect]) -> str:
    """Return what was claimed beside what came out.

    Args:
        effects: of the knobs.

    Returns:
        Lines without a newline at the end.
    """
    lines = []
    for effect in effects:
        cells = [f"{effect.knob} up"]
        for name, claimed in CLAIMS[effect.knob].items():
            found = effect.changes[name].sign
            said = "" if claimed is None else " ✓" if found == claimed else " ✗"
            bent = ", not monotone" if name == "gap" and not effect.monotone else ""
            cells += [_WAY[claimed], _WAY[found] + said + bent]
        lines.append(cells)
    header = ["knob"]
    for name in ("gap", "sharpness", "size"):
        header += [f"{name}, claimed", "found"]
    return markdown_table(header, lines)


def _seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the seconds of each network once, though it may be a row of several knobs."""
    return {str(one["setting"]): one["seconds"] for one in records if one["status"] == "done"}


if __name__ == "__main__":
    main()
