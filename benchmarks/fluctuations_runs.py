"""Reading one run of ``benchmarks.fluctuations``, and writing what is made of several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from flatcl.io import write_bytes
from flatcl.plots import png

DOCS = Path(__file__).parent.parent / "docs"


def load(folder: Path) -> dict[str, Any]:
    """The summary of one run."""
    content: dict[str, Any] = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    return content


def load_points(folder: Path) -> dict[str, Any]:
    """What one run measured direction by direction."""
    content: dict[str, Any] = json.loads((folder / "points.json").read_text(encoding="utf-8"))
    return content


def column(values: list[Any]) -> Tensor:
    """A list of numbers or of lists of them, NaN for None."""
    nan = float("nan")
    if values and isinstance(values[0], list):
        return torch.tensor([[nan if v is None else v for v in row] for row in values]).double()
    return torch.tensor([nan if v is None else v for v in values]).double()


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean and half-width of the 95 % t-interval, and of how many."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = sum(known) / len(known)
    form = f"{{:.{digits}f}}" if 0.1 <= abs(mean) < 1e5 or mean == 0 else "{:.2g}"
    if len(known) < 2:
        return form.format(mean) + f" ({len(known)} of {len(values)})"
    error = stats.sem(known) * stats.t.ppf(0.975, len(known) - 1)
    few = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    return f"{form.format(mean)} ± {form.format(error)}{few}"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    write_bytes(path, png(figure, dpi=110))
