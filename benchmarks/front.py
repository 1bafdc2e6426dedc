"""What was tried on class-incremental streams, and what it costs elsewhere: validation accuracy.

``python -m benchmarks.front`` makes the runs that are missing (two repeats, never reported, of five
streams with SGD, judged on validation images) under ``benchmarks/results/front`` and renders
``benchmarks/FRONT.md`` from them; ``--render`` only renders. A run counts as made only by the very
code that is installed, with ``--keep`` by earlier code too; the page takes runs by any code.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from joblib import Parallel, delayed

from benchmarks.kept import Runs, fill
from benchmarks.streams import stream_options
from flatcl.io import write_bytes
from flatcl.protocol import CompareOptions
from flatcl.records import Cell
from flatcl.scores import scores
from flatcl.seeds import derive_seed
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "front"
SEEDS = tuple(derive_seed("front", repeat) for repeat in range(2))
STREAMS = (
    "split-mnist-class", "split-fashion-class", "split-mnist-domain", "rotated-mnist",
    "permuted-mnist",
)  # fmt: skip
_ALONE = {"pseudo_inputs": 0, "offset": 1.0}
_OTHERS = (("ewc", (10.0, 100.0)), ("mas", (0.1, 1.0)), ("si", (100.0, 1000.0)), ("lwf", (1.0,)))


class Candidate(NamedTuple):
    """A method and what is changed of the options."""

    change: dict[str, Any]
    method: str = "ldc"
    value: float | None = None


# Damping is given at the default's strength, and at the strength that leaves the trace (1 + δ) γ
# as it is.
CANDIDATES: dict[str, Candidate] = {
    "LDC": Candidate({}),
    "constraint alone": Candidate({"pseudo_inputs": 0}),
    "rehearsal alone": Candidate({"rehearsal": True}, "naive"),
    "Naive": Candidate({}, "naive"),
    **{
        f"{method} {value:g}{with_it}": Candidate({"rehearsal": bool(with_it)}, method, value)
        for method, values in _OTHERS
        for value in values
        for with_it in ("", " and rehearsal")
    },
    "LDC, offset 1": Candidate({"offset": 1.0}),
    "LDC, strength 1": Candidate({"strength": 1.0}),
    "LDC, strength 10": Candidate({"strength": 10.0}),
    "LDC, 16 pseudo-inputs": Candidate({"pseudo_inputs": 16}),
    "LDC, 32 pseudo-inputs": Candidate({"pseudo_inputs": 32}),
    "LDC, width 0": Candidate({"width": 0.0}),
    "LDC, damping 1": Candidate({"damping": 1.0}),
    "LDC, He's initial weights": Candidate({"init": "he"}),
    **{
        f"constraint alone, offset {change.get('offset', 1.0):g}{name}": Candidate(
            {**_ALONE, **change}
        )
        for name, change in (
            ("", {}),
            (", strength 1", {"strength": 1.0}),
            (", strength 10", {"strength": 10.0}),
            (", strength 35", {"strength": 35.0}),
            (", damping 2, strength 1.87", {"damping": 2.0, "strength": 1.87}),
            (", damping 2", {"damping": 2.0}),
            (", damping 5, strength 0.93", {"damping": 5.0, "strength": 0.93}),
            (", width 3", {"width": 3.0}),
            (", stiffness k^0.8", {"stiffness": "power:0.8"}),
            (", source fisher", {"source": "fisher"}),
            ("", {"offset": 2.0}),
            ("", {"offset": 3.0}),
            (", He's initial weights", {"init": "he"}),
            (", He's, strength 1", {"init": "he", "strength": 1.0}),
        )
    },
}


def _streams(candidate: Candidate) -> tuple[str, ...]:
    """Return the streams of a candidate: offsets and other methods on class-incremental ones."""
    everywhere = candidate.method in {"ldc", "naive"} and (
        candidate.change.get("offset", 0.0) in {0.0, _ALONE["offset"]}
    )
    return STREAMS if everywhere else tuple(s for s in STREAMS if s.endswith("-class"))


def _runs(candidate: Candidate, stream: str) -> list[tuple[CompareOptions, Cell]]:
    options = stream_options(stream, "sgd", **candidate.change)
    return [(options, Cell(candidate.method, candidate.value, seed, "val")) for seed in SEEDS]


def grid() -> Iterator[tuple[CompareOptions, Cell]]:
    """Yield the options and the cell of every run.

    Yields:
        Candidate by candidate.
    """
    for candidate in CANDIDATES.values():
        for stream in _streams(candidate):
            yield from _runs(candidate, stream)


def render() -> str:
    """Return the table of the runs that are there, by candidate and stream.

    Returns:
        Markdown; ACC / learning accuracy in percent, means over the repeats.
    """
    rows, made = [], Runs(RESULTS)  # by whichever code and versions
    for name, candidate in CANDIDATES.items():
        row, streams = [name], _streams(candidate)
        for stream in STREAMS:
            if stream not in streams:
                row.append("")
                continue
            found = [made.get(options, cell) for options, cell in _runs(candidate, stream)]
            done = [scores(r["accuracy"]) for r in found if r and r["status"] == "done"]
            if len(done) < len(SEEDS):
                broken = any(r and r["status"] != "done" for r in found)
                row.append("diverged" if broken else "–")
                continue
            learning = [s.learning for s in done if s.learning is not None]
            row.append(f"{_percent([s.acc for s in done])} / {_percent(learning)}")
        rows.append(row)
    return markdown_table(["candidate", *STREAMS], rows)


def _percent(values: Sequence[float]) -> str:
    # The mean of two is often a tie between tenths, which the last bit must not decide.
    return f"{round(100 * fmean(values), 9):.1f}"


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time [2]")
    parser.add_argument("--keep", action="store_true", help="take runs that earlier code made")
    chosen = parser.parse_args()
    if not chosen.render:
        work = Parallel(n_jobs=chosen.jobs, batch_size=1, verbose=5)
        work(
            delayed(fill)(RESULTS, options, cell, any_code=chosen.keep) for options, cell in grid()
        )
    text = (HERE / "FRONT.head.md").read_text(encoding="utf-8") + "\n" + render() + "\n"
    write_bytes(HERE / "FRONT.md", text.encode())


if __name__ == "__main__":
    main()
