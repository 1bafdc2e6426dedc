"""How LDC's defaults were chosen: validation accuracy of each candidate on every stream.

``python -m benchmarks.defaults`` makes the runs that are missing (one repeat, never reported, of
ten streams with SGD and with Adam, judged on validation images) under
``benchmarks/results/defaults``, and ``defaults-sharing-E`` for other exponents E by which tasks
share the strength, and renders ``benchmarks/DEFAULTS.md`` from them; ``--render`` only renders.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from joblib import Parallel, delayed

from benchmarks.kept import Runs, fill
from benchmarks.streams import SHORT, stream_options, stream_outputs
from flatcl.core.options import SHARING
from flatcl.io import write_bytes
from flatcl.protocol import CompareOptions
from flatcl.records import TUNING_SEED, Cell
from flatcl.scores import scores
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "defaults"
STREAMS = (*SHORT, "permuted-mnist-10")
CELL = Cell("ldc", None, TUNING_SEED, "val")

# By √5: the stiffness of a ten-output head and of a two-output one differ by 5^(2·unit) at a unit
# C^−unit, so that other units than ¾ can be read off the same runs, shifted by one strength.
STRENGTHS = (3.5, 1.565, 7.826)
# All of it is the constraint alone: the rehearsal beside it needed no choice (FRONT.md).
_BASE: dict[str, Any] = {
    "interval": 20, "damping": 0.6, "width": 1.0, "source": "probe", "pseudo_inputs": 0,
}  # fmt: skip
_CHANGES: tuple[dict[str, Any], ...] = (
    *({"strength": strength} for strength in STRENGTHS),
    {"strength": 3.5, "damping": 0.3},
    {"strength": 3.5, "damping": 1.0},
    {"strength": 3.5, "interval": 10},
    {"strength": 3.5, "width": 0.0},
    {"strength": 10.0, "source": "sgd", "damping": 0.0},
)
CANDIDATES = tuple({**_BASE, **change} for change in _CHANGES)
OFFSET = 1.0
OFFSETS = (0.0, 2.0, 3.0)
# Exponents of sharing, each at a strength that weighs the tasks of a short stream about alike.
SHARINGS = ((0.0, 2.25), (1.0, 5.0))
# Unit, and the places in STRENGTHS that it is at on ten-output and on two-output heads.
UNITS = ((1.0, 1, 0), (1.0, 0, 2), (0.5, 0, 1), (0.5, 2, 0))


class Run(NamedTuple):
    """One run of the grid: a stream, its options, and the exponent by which tasks share."""

    stream: str
    options: CompareOptions
    exponent: float


def grid() -> Iterator[Run]:
    """Yield every run, the likelier candidates first.

    Yields:
        One for each candidate, stream and optimiser; offsets on class-incremental streams only,
        since elsewhere no class is absent.
    """
    for offset in OFFSETS:
        for stream in ("split-mnist-class", "split-fashion-class"):
            for optimizer in ("sgd", "adam"):
                options = stream_options(stream, optimizer, offset=offset, **CANDIDATES[0])
                yield Run(stream, options, SHARING)
    shared = [({**_BASE, "strength": strength}, exponent) for exponent, strength in SHARINGS]
    for candidate, exponent in [*((c, SHARING) for c in CANDIDATES), *shared]:
        for stream in STREAMS:
            for optimizer in ("sgd", "adam"):
                options = stream_options(stream, optimizer, offset=OFFSET, **candidate)
                yield Run(stream, options, exponent)


def _folder(exponent: float) -> Path:
    return RESULTS if exponent == SHARING else RESULTS.with_name(f"defaults-sharing-{exponent:g}")


def _fill(run: Run) -> None:
    with patch("flatcl.core.options.SHARING", run.exponent):
        fill(_folder(run.exponent), run.options, CELL)


def render() -> str:
    """Return the table of all recorded runs, one row a candidate.

    Returns:
        Markdown; ACC in percent on validation images, SGD / Adam, then the mean over streams.
    """
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    made = {exponent: Runs(_folder(exponent)) for exponent in (SHARING, *dict(SHARINGS))}
    for stream, options, exponent in grid():
        record = made[exponent].get(options, CELL)
        if record is None:
            continue
        acc = 100 * scores(record["accuracy"]).acc if record["status"] == "done" else float("nan")
        found[_row(vars(options), exponent)][stream][options.optimizer] = acc
    for unit, ten, two in UNITS:
        sources = (found[_at(STRENGTHS[ten])], found[_at(STRENGTHS[two])])
        strength = STRENGTHS[ten] * 10 ** (2 * unit - 1.5)
        found[f"unit C^-{unit:g}, strength {strength:.3g}: read off"] = {
            s: sources[stream_outputs(s) == 2][s] for s in STREAMS
        }
    rows = []
    for row, cells in sorted(found.items()):
        shown = [
            " / ".join(f"{cells[s][o]:.1f}" if o in cells[s] else "–" for o in ("sgd", "adam"))
            for s in STREAMS
        ]
        both = [[cells[s][o] for s in STREAMS if o in cells[s]] for o in ("sgd", "adam")]
        whole = all(len(values) == len(STREAMS) for values in both)
        means = " / ".join(f"{sum(v) / len(v):.2f}" for v in both) if whole else "–"
        rows.append([row, *shown, means])
    return markdown_table(["candidate", *STREAMS, "mean"], rows)


def _at(strength: float) -> str:
    return _row({**_BASE, "strength": strength, "offset": OFFSET}, SHARING)


def _row(config: dict[str, Any], exponent: float) -> str:
    shown = ", ".join(
        f"{k} {config[k]:g}" if not isinstance(config[k], str) else config[k]
        for k in ("source", "strength", "interval", "damping", "width")
    )
    offset = f", offset {config['offset']:g}" if config["offset"] != OFFSET else ""
    return shown + offset + (f", sharing {exponent:g}" if exponent != SHARING else "")


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    chosen = parser.parse_args()
    if not chosen.render:
        Parallel(n_jobs=chosen.jobs, batch_size=1, verbose=5)(delayed(_fill)(run) for run in grid())
    text = (HERE / "DEFAULTS.head.md").read_text(encoding="utf-8") + "\n" + render() + "\n"
    write_bytes(HERE / "DEFAULTS.md", text.encode())


if __name__ == "__main__":
    main()
