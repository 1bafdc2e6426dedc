"""What each part of LDC is worth: its variants, one change at a time, on three streams.

``python -m benchmarks.ablation`` makes the runs that are missing under
``benchmarks/results/ablation`` and renders ``benchmarks/ABLATION.md`` from them; ``--variants`` and
``--streams`` make only those named, ``--seeds`` only so many, ``--render`` none. A run counts as
made only by the very code that is installed; the page takes runs by any code, that one's first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from joblib import Parallel, delayed

from benchmarks.comparisons import PERMUTED_5
from benchmarks.kept import Runs, fill
from benchmarks.streams import stream_options
from flatcl.io import write_bytes
from flatcl.options import names
from flatcl.protocol import CompareOptions
from flatcl.records import Cell
from flatcl.scores import mean_ci95, scores
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ablation"
SEEDS = 5
DEFAULT = "constraint alone"
NAIVE = "naive"
REHEARSAL = "rehearsal alone"
SHORT = ("rotated-mnist", "split-fashion-domain")
STREAMS = ("permuted-mnist-5", *SHORT)

VARIANTS: dict[str, dict[str, Any]] = {
    NAIVE: {},
    REHEARSAL: {"rehearsal": True},
    "constraint and rehearsal": {"pseudo_inputs": None},
    DEFAULT: {},
    "stiffness equal": {"stiffness": "equal"},
    "stiffness isotropic": {"stiffness": "isotropic"},
    "stiffness shuffled": {"stiffness": "shuffled"},
    "stiffness flipped": {"stiffness": "flipped"},
    "stiffness power:0.5": {"stiffness": "power:0.5"},
    "stiffness power:0.75": {"stiffness": "power:0.75"},
    "stiffness power:1.5": {"stiffness": "power:1.5"},
    "directions random": {"directions": "random"},
    "directions fisher": {"directions": "fisher"},
    "source fisher": {"source": "fisher"},
    "source sgd": {"source": "sgd"},
    "source published": {"source": "published"},
    "width 0": {"width": 0.0},
    "damping 0": {"damping": 0.0},
    "no centre": {"centre": False},
}
_ELSEWHERE = ("equal", "isotropic", "shuffled", "flipped")
# Where K holds the wrong directions, another strength might suit better: shown, not selected.
RETUNED: dict[str, dict[str, Any]] = {
    f"{kind} {value} at strength {strength:g}": {kind: value, "strength": strength}
    for kind, value in [*(("stiffness", v) for v in _ELSEWHERE), ("directions", "random")]
    for strength in (0.35, 35.0)
}
# What theory says of a variant's ACC beside the default's.
EXPECTED = {
    NAIVE: "worse",
    "stiffness isotropic": "worse",
    "stiffness shuffled": "worse",
    "stiffness flipped": "worse",
    "directions random": "worse",
    "stiffness equal": "worse",
    "source published": "worse",
}


class Row(NamedTuple):
    """The recorded runs of one variant on one stream, by repeat."""

    acc: dict[int, float]
    learning: list[float]
    seconds: list[float]
    held: list[int]
    broken: int


def options_of(stream: str, variant: str) -> CompareOptions:
    """Return the options of one variant on one stream.

    Args:
        stream: of ``STREAMS``.
        variant: of ``VARIANTS`` or ``RETUNED``.

    Returns:
        Options with the method and five repeats.
    """
    change = {**VARIANTS, **RETUNED}[variant]
    alone = {} if change.get("source") == "published" else {"pseudo_inputs": 0}
    further = {"methods": (_method(variant),), "seeds": SEEDS, **alone, **change}
    if stream == "permuted-mnist-5":
        return CompareOptions(**PERMUTED_5, **further)
    return stream_options(stream, "sgd", **further)


def grid(streams: tuple[str, ...] = STREAMS) -> Iterator[tuple[str, str]]:
    """Yield every stream and variant; other strengths on short streams only.

    Args:
        streams: of ``STREAMS``.

    Yields:
        Stream and variant, the short streams first.
    """
    for stream in sorted(streams, key=lambda name: name not in SHORT):
        for variant in (*VARIANTS, *(RETUNED if stream in SHORT else ())):
            yield stream, variant


def _method(variant: str) -> str:
    return NAIVE if variant in {NAIVE, REHEARSAL} else "ldc"


def _cell(variant: str, seed: int) -> Cell:
    return Cell(_method(variant), None, seed, "test")


def _row(found: Runs, stream: str, variant: str) -> Row | None:
    options = options_of(stream, variant)
    row, broken = Row({}, [], [], [], 0), 0
    for seed in range(SEEDS):
        content = found.get(options, _cell(variant, seed))
        if content is None:
            continue
        if content["status"] != "done":
            broken += 1
            continue
        score = scores(content["accuracy"])
        row.acc[seed] = 100 * score.acc
        row.learning.append(100 * (score.learning or 0.0))
        row.seconds.append(sum(content["seconds"]))
        row.held.append(content["bytes_held"])
    return row._replace(broken=broken) if row.acc or broken else None


def _shown(values: list[float]) -> str:
    if not values:
        return "–"
    mean, half = mean_ci95(values)
    return f"{mean:.2f}" + ("" if half is None else f" ± {half:.2f}")


def _gaps(row: Row, default: Row | None) -> list[float]:
    shared = sorted(set(row.acc) & set(default.acc if default else ()))
    return [row.acc[seed] - default.acc[seed] for seed in shared] if default else []


def _verdict(variant: str, gaps: list[float]) -> str:
    if len(gaps) < 2:
        return "too few repeats"
    mean, half = mean_ci95(gaps)
    assert half is not None
    seen = "worse" if mean + half < 0 else "better" if mean - half > 0 else "level"
    expected = EXPECTED.get(variant)
    if expected is None:
        return seen
    return f"{seen}, as expected" if seen == expected else f"{seen}, **not {expected}**"


def render() -> str:
    """Return a table a stream, and one of verdicts, from the records on the disk.

    Returns:
        Markdown.
    """
    found = Runs(RESULTS)
    tables = []
    verdicts: dict[str, dict[str, str]] = {}
    for stream in STREAMS:
        rows = {v: _row(found, stream, v) for s, v in grid() if s == stream}
        default, lines = rows[DEFAULT], []
        for variant, row in rows.items():
            if row is None:
                continue
            gaps = _gaps(row, default)
            label = variant + (f" [{row.broken} broken]" if row.broken else "")
            lines.append(
                [
                    label,
                    _shown(list(row.acc.values())),
                    "–" if variant == DEFAULT else _shown(gaps),
                    _shown(row.learning),
                    f"{max(row.held):,}" if row.held else "–",
                    f"{fmean(row.seconds):.1f}" if row.seconds else "–",
                    str(len(row.acc)),
                ]
            )
            if variant != DEFAULT:
                verdicts.setdefault(variant, {})[stream] = _verdict(variant, gaps)
        if not lines:
            continue
        header = [
            "variant",
            "ACC",
            "less constraint alone",
            "learning",
            "bytes",
            "seconds",
            "repeats",
        ]
        tables.append(f"## {stream}\n\n{markdown_table(header, lines)}\n")
    shown = [[v, *(by.get(s, "–") for s in STREAMS)] for v, by in verdicts.items()]
    table = markdown_table(["variant", *STREAMS], shown)
    tables.append(
        "## Verdicts\n\nBeside the constraint alone: worse or better where the 95 % interval of "
        f"the paired difference leaves out 0, else level.\n\n{table}\n"
    )
    return "\n".join(tables)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--variants", type=names, help="comma-separated; all if not given")
    parser.add_argument("--streams", type=names, default=STREAMS, help="comma-separated")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="repeats, from 0")
    chosen = parser.parse_args()
    known = (*VARIANTS, *RETUNED)
    for given, among in ((chosen.variants or (), known), (chosen.streams, STREAMS)):
        strange = [name for name in given if name not in among]
        if strange:
            parser.error(f"there is no {strange[0]!r}; choose from {', '.join(among)}")
    if not 1 <= chosen.seeds <= SEEDS:
        parser.error(f"seeds is {chosen.seeds}; choose 1 to {SEEDS}")
    wanted = [
        (stream, variant, seed)
        for stream, variant in grid(chosen.streams)
        if chosen.variants is None or variant in chosen.variants
        for seed in range(chosen.seeds)
    ]
    if not chosen.render:
        Parallel(n_jobs=chosen.jobs, batch_size=1, verbose=5)(
            delayed(fill)(RESULTS, options_of(stream, variant), _cell(variant, seed))
            for stream, variant, seed in wanted
        )
    text = (HERE / "ABLATION.head.md").read_text(encoding="utf-8") + "\n" + render()
    write_bytes(HERE / "ABLATION.md", text.encode())


if __name__ == "__main__":
    main()
