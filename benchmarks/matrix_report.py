"""The page of what works with what: when a cell passes, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

from benchmarks import matrix_rates, matrix_statistics
from benchmarks.matrix_cells import CELLS, OPTIMIZERS, SCENARIOS, TRAININGS, Cell, Training
from benchmarks.matrix_networks import NETWORKS
from flatcl.core.options import LDCOptions
from flatcl.tables import markdown_table

LEARNED = 80.0  # percent that LDC must reach on task 2
FEWER = 0.75  # of Naive's rise of loss, that LDC's must stay below

TEXT = """# What works with what

Made by `python -m benchmarks.matrix` ({seconds:.0f} s of one core for all cells; one seed, raw
figures in `results/matrix*.json`). Two tasks, the digits 0–4 and then 5–9 (600 training images
each, 8×8 pixels); LDC at its defaults in a plain loop, and Naive, the same without it.

- *single head*: the same five outputs for both tasks; *multi-head*: a head added for the second
  task, which is told; *growing head*: five outputs added to the old ones, one softmax over all
  ten, no stored data, no mask and no offset.
- SGD with momentum 0.9 (rates: {rates});
  Adam and AdamW at {adam:g}, AdamW with weight decay 0.1.
- A cell reads: accuracy lost on held-out images of task 1, Naive → LDC, in points; its rise of loss
  in nats; then what LDC reaches on task 2 (Naive in brackets), percent; ✓ if training that was
  saved in the middle of task 2 and taken up in fresh objects ended with the same weights, buffers,
  optimiser and constraints, bit for bit. Negative losses are gains.
- A cell *passes* if Naive's loss rises by 0.05 nats or more and LDC's by less than {fewer:.0%} of
  that, its accuracy falls no further than Naive's, it reaches {learned:.0f} percent on task 2, and
  it is restored. {passed} of {cells} pass; any other says why. Each method's losses count from its
  own accuracy before task 2, so that who was better then can lose more. Passing is less than
  working well:
- † LDC keeps less than half of the accuracy that Naive loses ({weak} cells).

{table}

## Where it is weak

*Growing head.* A softmax over all ten outputs that sees new classes only pushes them up on old
inputs too; at the pseudo-inputs the rehearsal holds them down. Accuracy on task 1, Naive → LDC,
where only its own five outputs may answer: what is missing of it above is outvoted, not lost.

{growing}

## Learning rates

Accuracy on task 1 and on task 2 after task 2, percent, {seeds} seeds, single head: Naive; LDC with
pulls 20 steps apart whatever the rate; LDC, which pulls more often where one pull would take back
too much of the network (docs/how-ldc-works.md); LDC with a pull at every step (`interval=1`).

{by_rate}

## BatchNorm

From the second task on BatchNorm normalises by statistics of a mixture of the first task's inputs,
in share {share:g} (`hold_statistics`), with the present batch's. Mean accuracy of both tasks after
the second, percent, {seeds} seeds, Adam: Naive with such a mixture; LDC with statistics that follow
the second task (share 0); LDC; LDC with held ones (share 1). In the columns after the first the
second task's images are changed as a whole: *inverted* 1 − x, *brighter* 3x + 2, *permuted* the
pixels; plain pixels go from −0.75 to 1.75.

{statistics}
"""


def rise(row: dict[str, Any], method: str) -> tuple[float, float]:
    """Return what a method forgets of task 1: accuracy lost (points) and loss gained (nats)."""
    before, after = row[method]["first"], row[method]["both"][0]
    return before["accuracy"] - after["accuracy"], after["loss"] - before["loss"]


def failures(row: dict[str, Any]) -> list[str]:
    """Return in what a cell falls short; nothing if it passes.

    Args:
        row: from ``measure``, or with an ``error`` in place of its figures.

    Returns:
        Reasons.
    """
    if "error" in row:
        return [row["error"]]
    points, nats = rise(row, "naive")
    kept_points, kept_nats = rise(row, "ldc")
    found = []
    if nats < 0.05:
        found.append("Naive does not forget")
    if kept_nats > FEWER * nats or kept_points > points:
        found.append("forgets as much")
    if row["ldc"]["both"][1]["accuracy"] < LEARNED:
        found.append("learns too little")
    if not row["restored"]:
        found.append("not restored")
    return found


def _shown(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"**fails**: {row['error'].splitlines()[0]}"
    (points, nats), (kept_points, kept_nats) = rise(row, "naive"), rise(row, "ldc")
    learned = [row[method]["both"][1]["accuracy"] for method in ("ldc", "naive")]
    reasons = failures(row)
    return (
        f"{points:.1f} → {kept_points:.1f}{'†' if _weak(row) else ''}; "
        f"{nats:.2f} → {kept_nats:.2f}; {learned[0]:.1f} ({learned[1]:.1f}) "
        f"{'✓' if row['restored'] else '✗'}" + (f" **{', '.join(reasons)}**" if reasons else "")
    ).replace("-", "−")


def _weak(row: dict[str, Any]) -> bool:
    return "error" not in row and rise(row, "ldc")[0] > 0.5 * max(0.0, rise(row, "naive")[0])


def render(
    rows: Iterable[dict[str, Any]],
    rates: Iterable[dict[str, Any]],
    statistics: Iterable[dict[str, Any]],
) -> str:
    """Return the table with what it says.

    Args:
        rows: the cells.
        rates: the runs at other learning rates.
        statistics: the runs with and without held running statistics.
    """
    found = {Cell(row["network"], row["scenario"], row["optimizer"]): row for row in rows}
    lines = []
    for network, scenario in product(NETWORKS, SCENARIOS):
        cells = [found.get(Cell(network, scenario, optimizer)) for optimizer in OPTIMIZERS]
        held = [cell["bytes"] for cell in cells if cell is not None and "bytes" in cell]
        shown = [_shown(cell) if cell is not None else "not run" for cell in cells]
        lines.append([f"{network}, {scenario}", *shown, f"{max(held):,}" if held else "–"])
    return TEXT.format(
        table=markdown_table(["network, scenario", *OPTIMIZERS, "bytes held"], lines),
        rates=", ".join(f"{network} {t.lr}" for network, t in TRAININGS.items()),
        seconds=sum(row.get("seconds", 0.0) for row in found.values()),
        passed=sum(not failures(row) for row in found.values()),
        cells=len(CELLS),
        weak=sum(map(_weak, found.values())),
        learned=LEARNED,
        fewer=FEWER,
        growing=_table(found, product(NETWORKS, ["growing head"]), _among),
        adam=Training().adam_lr,
        by_rate=matrix_rates.table(list(rates)),
        share=LDCOptions().hold_statistics,
        seeds=matrix_statistics.SEEDS,
        statistics=matrix_statistics.table(list(statistics)),
    )


def _table(
    found: Mapping[Cell, dict[str, Any]],
    lines: Iterable[tuple[str, str]],
    shown: Callable[[dict[str, Any]], str],
) -> str:
    """Return a table of one figure, a line for each network and scenario."""

    def cell(network: str, scenario: str, optimizer: str) -> str:
        row = found.get(Cell(network, scenario, optimizer), {"error": "not run"})
        return "–" if "error" in row else shown(row)

    rows = [[f"{n}, {s}", *(cell(n, s, optimizer) for optimizer in OPTIMIZERS)] for n, s in lines]
    return markdown_table(["network, scenario", *OPTIMIZERS], rows)


def _among(row: dict[str, Any]) -> str:
    naive, ldc = (row[method]["both"][0]["among"] for method in ("naive", "ldc"))
    return f"{naive:.1f} → {ldc:.1f}"
