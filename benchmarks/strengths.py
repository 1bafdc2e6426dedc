"""One default on twelve streams: LDC's accuracy at nine strengths over six decades.

``python -m benchmarks.strengths`` makes the runs that are missing under
``benchmarks/results/strengths`` and renders ``benchmarks/STRENGTHS.md`` and ``docs/strengths.png``
from those that are there; ``--streams`` makes only those named, ``--render`` none. A run counts as
made only by the very code that is installed, with ``--keep`` by earlier code too.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from joblib import Parallel, delayed

from benchmarks.kept import Runs, fill
from benchmarks.streams import LONG, SHORT, stream_options
from benchmarks.strengths_report import Curve, plot_curves, text_of
from flatcl.core.options import LDCOptions
from flatcl.io import write_bytes
from flatcl.options import names
from flatcl.plots import png
from flatcl.protocol import CompareOptions
from flatcl.records import Cell
from flatcl.scores import scores

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "strengths"
STREAMS = (*SHORT, *LONG)
DEFAULT = LDCOptions().strength
STRENGTHS = (3.5e-3, 3.5e-2, 0.35, 1.1, DEFAULT, 11.0, 35.0, 350.0, 3500.0)
# Of long streams only these are run, the default on every seed and the others on the first.
LONG_STRENGTHS = (0.35, 1.1, DEFAULT, 11.0, 35.0)
SEEDS = 3


class Run(NamedTuple):
    """One run of the grid."""

    stream: str
    strength: float
    seed: int


def grid(streams: tuple[str, ...] = STREAMS) -> Iterator[Run]:
    """Yield every run, in an order in which a grid cut short still tells most.

    Args:
        streams: of ``STREAMS``.

    Yields:
        The first seed of every stream, then the other seeds near the default, then far from it.
    """
    runs = [
        Run(stream, strength, seed)
        for stream in streams
        for strength in (LONG_STRENGTHS if stream in LONG else STRENGTHS)
        for seed in range(SEEDS if stream in SHORT or strength == DEFAULT else 1)
    ]
    yield from sorted(runs, key=_rank)


def _rank(run: Run) -> tuple[float, ...]:
    far = run.seed > 0 and run.strength not in LONG_STRENGTHS
    distance = abs(math.log(run.strength / DEFAULT))
    return far, run.seed, run.stream in LONG, distance, STREAMS.index(run.stream)


def options_of(run: Run, *, alone: bool = False) -> CompareOptions:
    """Return the options of one run; at the default no strength is given.

    Args:
        run: of ``grid``.
        alone: without the rehearsal, and with an offset, which the constraint alone has use for.

    Returns:
        Plain SGD on the named stream.
    """
    change: dict[str, Any] = {"pseudo_inputs": 0, "offset": 1.0} if alone else {}
    if run.strength != DEFAULT:
        change["strength"] = run.strength
    return stream_options(run.stream, "sgd", methods=("ldc",), seeds=SEEDS, **change)


def _cell(run: Run) -> Cell:
    return Cell("ldc", None, run.seed, "test")


def curves(*, alone: bool = False) -> list[Curve]:
    """Return what the records on the disk say of every stream.

    Args:
        alone: of the constraint without the rehearsal.

    Returns:
        One curve a stream, in the order of ``STREAMS``; runs that are not recorded are left out.
    """
    recorded = Runs(RESULTS)
    found = {
        name: Curve(name, LONG_STRENGTHS if name in LONG else STRENGTHS, DEFAULT)
        for name in STREAMS
    }
    for run in grid():
        content = recorded.get(options_of(run, alone=alone), _cell(run))
        curve = found[run.stream]
        curve.planned += 1
        if content is None:
            continue
        done = content["status"] == "done"
        acc = 100 * scores(content["accuracy"]).acc if done else None
        curve.acc.setdefault(run.strength, {})[run.seed] = acc
        curve.seconds += sum(content["seconds"])
    return list(found.values())


def main() -> None:
    """Run what is missing, then write the tables and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--streams", type=names, default=STREAMS, help="comma-separated")
    parser.add_argument("--keep", action="store_true", help="take runs that earlier code made")
    chosen = parser.parse_args()
    strange = [name for name in chosen.streams if name not in STREAMS]
    if strange:
        parser.error(f"there is no stream {strange[0]!r}; choose from {', '.join(STREAMS)}")
    if not chosen.render:
        Parallel(n_jobs=chosen.jobs, batch_size=1, verbose=5)(
            delayed(fill)(RESULTS, options_of(run), _cell(run), any_code=chosen.keep)
            for run in grid(tuple(chosen.streams))
        )
    found = curves()
    write_bytes(HERE / "STRENGTHS.md", text_of(found, curves(alone=True)).encode())
    write_bytes(HERE.parent / "docs" / "strengths.png", png(plot_curves(found)))


if __name__ == "__main__":
    main()
