"""The page and the figure of the measurements of scale."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from flatcl.io import write_bytes
from flatcl.plots import png
from flatcl.tables import markdown_table

Rows = Sequence[Mapping[str, float]]
_COLOURS = {"naive": "#8a8a8a", "ldc": "#0072B2"}
_BLOCK = 100
FIRST, LAST = slice(0, 200), slice(-200, None)
"""The experiences whose times are held against each other."""
_HEAD = """# Scale

`python -m benchmarks.scale stream large soak` measures, `--render` makes this page from
`benchmarks/results/scale`. Seconds are of a machine that did other work beside, so that they tell
how a column goes on, and no more.
"""
_STREAM = """## A thousand experiences

Avalanche, 64 digits an experience (fifty permutations, each visited twenty times), 64-64-10, two
epochs, batches of 16. Medians of a hundred experiences each; memory after the last of them. *Held*
is what LDC keeps between tasks, *saved* the file of its whole state, with a history of three
numbers an experience.
"""
_LARGE = """## A hundred million weights

A perceptron 3072-8192-8192-1000, SGD with momentum, batches of 32, two tasks of 40 steps, two
threads. Sides above 2048 are held by 256 leading directions. *Held*: constraint, anchor and
Gaussians; *at most*: the process's peak of resident memory, weights, gradients and momentum
included.
"""
_SOAK = """## An hour of training

Task after task of 80 steps with Adam, each with an evaluation and a forecast in mid-task, its end,
and its whole state saved, read back and taken up by a new object. Growth is the slope of resident
memory over the time after the first five minutes, fitted by least squares.
"""


def slope(rows: Rows, first: float) -> float:
    """Return the growth of resident memory.

    Args:
        rows: of the soak.
        first: minutes left out.

    Returns:
        MB an hour.
    """
    kept = [row for row in rows if row["minutes"] >= first]
    fit = statistics.linear_regression(
        [row["minutes"] / 60 for row in kept], [row["resident"] for row in kept]
    )
    return fit.slope


def time_ratio(ldc: Rows, naive: Rows, part: slice) -> float:
    """Return how many times Naive's time LDC takes.

    Args:
        ldc: of the stream.
        naive: of the same stream.
        part: experiences.

    Returns:
        Ratio of the medians.
    """
    own, plain = (statistics.median(row["seconds"] for row in one[part]) for one in (ldc, naive))
    return own / plain


def render(found: Mapping[str, Rows], folder: Path) -> None:
    """Write ``SCALE.md`` and, with a stream and a soak, ``docs/scale.png``.

    Args:
        found: what was measured, by the file's name.
        folder: of the page.
    """
    parts = [_HEAD]
    methods = ("naive", "ldc")
    if all(f"stream-{name}" in found for name in methods):
        parts += [_STREAM, _stream({name: found[f"stream-{name}"] for name in methods})]
    if all(f"large-{name}" in found for name in methods):
        parts += [_LARGE, _large({name: found[f"large-{name}"] for name in methods})]
    if "soak" in found:
        parts += [_SOAK, _soak(found["soak"])]
    if {"stream-naive", "stream-ldc", "soak"} <= found.keys():
        write_bytes(folder.parent / "docs" / "scale.png", png(_figure(found)))
        parts.append(
            "![time and memory over a thousand experiences and an hour](../docs/scale.png)"
        )
    write_bytes(folder / "SCALE.md", ("\n\n".join(p.strip() for p in parts) + "\n").encode())


def _stream(found: Mapping[str, Rows]) -> str:
    blocks = range(0, len(found["ldc"]), _BLOCK)
    rows = []
    for start in blocks:
        cut = {name: one[start : start + _BLOCK] for name, one in found.items()}
        seconds = {n: statistics.median(r["seconds"] for r in rows) for n, rows in cut.items()}
        last = {name: one[-1] for name, one in cut.items()}
        rows.append(
            [f"{start + 1}–{start + _BLOCK}"]
            + [f"{1000 * seconds[name]:.0f}" for name in found]
            + [f"{seconds['ldc'] / seconds['naive']:.2f}"]
            + [f"{last[name]['resident']:.0f}" for name in found]
            + [f"{last['ldc']['held']:,}", f"{last['ldc']['saved']:,}"]
        )
    header = ["experiences", "Naive, ms each", "LDC, ms each", "ratio", "Naive, MB", "LDC, MB",
              "held, bytes", "saved, bytes"]  # fmt: skip
    return markdown_table(header, rows)


def _large(found: Mapping[str, Rows]) -> str:
    rows = [
        [name, str(number), f"{row['weights']:,}", f"{row['step']:.2f}", f"{row['end']:.0f}",
         f"{row['held']:,.0f}", f"{row['peak']:,.0f}"]
        for name, one in found.items()
        for number, row in enumerate(one, 1)
    ]  # fmt: skip
    header = ["method", "task", "weights", "s a step", "s at the task's end", "held, MB",
              "at most, MB"]  # fmt: skip
    return markdown_table(header, rows)


def _soak(rows: Rows) -> str:
    last = rows[-1]
    header = ["minutes", "tasks", "MB at 5 minutes", "MB at the end", "growth, MB an hour"]
    at_five = next(row for row in rows if row["minutes"] >= min(5.0, last["minutes"]))
    growth = slope(rows, min(5.0, last["minutes"] / 2))
    return markdown_table(
        header,
        [[f"{last['minutes']:.0f}", f"{last['tasks']:,}", f"{at_five['resident']:.0f}",
          f"{last['resident']:.0f}", f"{growth:+.1f}"]],
    )  # fmt: skip


def _figure(found: Mapping[str, Rows]) -> Figure:
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        time, memory, soak = figure.subplots(1, 3)
        for name, label in (("naive", "Naive"), ("ldc", "LDC")):
            rows = found[f"stream-{name}"]
            starts = range(0, len(rows), 20)
            middles = [statistics.median(r["seconds"] for r in rows[s : s + 20]) for s in starts]
            colour = _COLOURS[name]
            time.plot([s + 10 for s in starts], [1000 * m for m in middles], c=colour, label=label)
            memory.plot([row["resident"] for row in rows], color=colour, label=label)
        time.set(xlabel="experience", ylabel="ms an experience (median of 20)", ylim=(0, None))
        memory.set(xlabel="experience", ylabel="resident memory (MB)", ylim=(0, None))
        rows = found["soak"]
        soak.plot([r["minutes"] for r in rows], [r["resident"] for r in rows], c=_COLOURS["ldc"])
        soak.set(xlabel="minutes", ylabel="resident memory (MB)", ylim=(0, None))
        time.set_title("1000 experiences: time")
        memory.set_title("1000 experiences: memory")
        soak.set_title("an hour of LDC: memory")
        time.legend(frameon=False)
        for axes in (time, memory, soak):
            axes.spines[["top", "right"]].set_visible(False)
    return figure
