"""The comparisons whose figures are quoted, and the tables made of them.

``python -m benchmarks.comparisons`` makes the runs that are missing, comparison by comparison,
under ``benchmarks/results/NAME`` and renders ``benchmarks/RESULTS.md`` and the README's table from
the ``summary.json`` files there. ``python -m benchmarks.comparisons NAME ...`` makes only those
named, ``--render`` runs nothing. A run counts as made only by the very code that is installed;
``--keep naive,ewc,joint`` takes those methods' runs by earlier code too, for a change that cannot
have touched them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.markers import insert
from benchmarks.streams import SHORT, stream_options
from flatcl import CompareOptions, compare
from flatcl.io import write_bytes
from flatcl.options import names
from flatcl.protocol import METHODS
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"

_ALL = ("naive", "ewc", "ldc", "joint")
PERMUTED_5: dict[str, Any] = {
    "data": "mnist",
    "scenario": "permuted",
    "tasks": 5,
    "train_size": 12000,
    "epochs": 5,
    "batch_size": 32,
    "lr": 0.05,
}
_GPM: dict[str, Any] = {
    "data": "mnist",
    "scenario": "permuted",
    "tasks": 10,
    "train_size": 54000,
    "epochs": 5,
    "batch_size": 10,
    "lr": 0.01,
    "seeds": 1,
    "methods": ("naive", "ldc", "joint"),
}
_HSU: dict[str, Any] = {
    "data": "mnist",
    "pad": 2,
    "hidden": (400, 400),
    "optimizer": "adam",
    "lr": 1e-3,
    "batch_size": 128,
    "epochs": 4,
    "methods": _ALL,
}
# Hsu et al.'s protocol has Adam; SGD's rate is the better of 0.02 and 0.05 on validation images.
# PyTorch's own initial weights where none are named.
_OF_TEN: dict[str, dict[str, Any]] = {
    "": {},
    "-he": {"init": "he"},
    "-sgd": {"optimizer": "sgd", "lr": 0.05},
    "-sgd-he": {"optimizer": "sgd", "lr": 0.05, "init": "he"},
}


def comparisons() -> dict[str, CompareOptions]:
    """Return every comparison that is quoted somewhere, by name.

    Returns:
        Options by the name of the folder that holds the results.
    """
    found = {"digits": CompareOptions()}
    for optimizer in ("sgd", "adam"):
        for stream in SHORT:
            found[f"{stream}-{optimizer}"] = stream_options(stream, optimizer, methods=_ALL)
    found["hsu-mnist-domain"] = CompareOptions(scenario="split-domain", **_HSU)
    found["hsu-mnist-class"] = CompareOptions(scenario="split-class", **_HSU)
    for data in ("mnist", "fashion"):
        for kind in ("domain", "class"):
            ten: dict[str, Any] = {**_HSU, "data": data, "methods": ("ldc",), "seeds": 10}
            for name, change in _OF_TEN.items():
                found[f"hsu-{data}-{kind}-ten-seeds{name}"] = CompareOptions(
                    **{**ten, "scenario": f"split-{kind}", **change}
                )
    found["permuted-mnist-5"] = CompareOptions(methods=_ALL, **PERMUTED_5)
    for name, change in sensitivity().items():
        found[name] = CompareOptions(methods=("ldc",), **{**PERMUTED_5, **change})
    found["permuted-mnist-10-gpm"] = CompareOptions(**_GPM)
    return found


def sensitivity() -> dict[str, dict[str, Any]]:
    """Return the changes to ``permuted-mnist-5`` that show how little the choice matters.

    Returns:
        Options that differ, by the comparison's name.
    """
    from flatcl import LDCOptions

    default = LDCOptions().strength
    adam = {"optimizer": "adam", "lr": 1e-3}
    return {
        "permuted-mnist-5-strength-third": {"strength": round(default / 3, 4)},
        "permuted-mnist-5-strength-triple": {"strength": 3 * default},
        "permuted-mnist-5-interval-5": {"interval": 5},
        "permuted-mnist-5-sgd-source": {"source": "sgd"},
        "permuted-mnist-5-no-centre": {"centre": False},
        "permuted-mnist-5-strength-1e6": {"strength": 1e6, "seeds": 1},
        "permuted-mnist-5-strength-1e6-adam": {"strength": 1e6, "seeds": 1, **adam},
    }


def summaries() -> dict[str, dict[str, Any]]:
    """Return the summaries that are on the disk, by comparison.

    Returns:
        Content of ``summary.json`` by name, in the order of ``comparisons``.
    """
    paths = {name: RESULTS / name / "summary.json" for name in comparisons()}
    return {n: json.loads(p.read_text(encoding="utf-8")) for n, p in paths.items() if p.exists()}


def _number(entry: dict[str, Any] | None, kind: str, digits: int = 1) -> str:
    if entry is None or entry[f"{kind}_mean"] is None:
        return "–"
    half = entry.get(f"{kind}_ci95")
    return f"{entry[f'{kind}_mean']:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def _row(name: str, summary: dict[str, Any]) -> list[str]:
    methods = summary["methods"]
    ewc, ldc = methods.get("ewc"), methods.get("ldc")
    best = "–"
    if ewc is not None:
        best = f"{_number(ewc, 'acc')} (λ {ewc['value']:g})"
        if ewc["n_diverged"]:
            best += f", {ewc['n_diverged']} of {ewc['n_seeds'] + ewc['n_diverged']} diverged"
    return [
        name,
        _number(methods.get("naive"), "acc"),
        best,
        f"**{_number(ldc, 'acc')}**",
        _number(ldc, "learning"),
        _number(ldc, "bwt"),
        _number(methods.get("joint"), "acc"),
        str(summary["config"]["seeds"]),
    ]


_HEADER = [
    "comparison", "Naive", "EWC, best λ", "LDC, default", "LDC learning", "LDC BWT", "Joint",
    "seeds",
]  # fmt: skip


def render() -> None:
    """Write ``RESULTS.md`` and the README's table from the summaries on the disk."""
    found = summaries()
    text = (HERE / "RESULTS.head.md").read_text(encoding="utf-8")
    rows = [_row(name, summary) for name, summary in found.items()]
    write_bytes(HERE / "RESULTS.md", f"{text}\n{markdown_table(_HEADER, rows)}\n".encode())
    if "digits" in found:
        insert(README, "digits", _digits(found["digits"]))
    shown = [n for n in found if n.startswith(("split-", "rotated", "permuted-mnist-sgd"))]
    if shown:
        rows = [_row(name, found[name]) for name in shown]
        insert(README, "streams", markdown_table(_HEADER, rows))
    ten = {name: summary for name, summary in found.items() if "ten-seeds" in name}
    if ten:
        insert(README, "front", _front(ten))


def _front(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    names_of_data = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}
    for summary in found.values():
        config, ldc = summary["config"], summary["methods"]["ldc"]
        kind = config["scenario"].removeprefix("split-")
        stream = f"split {names_of_data[config['data']]}, {kind}"
        optimizer = f"{config['optimizer']}, lr {config['lr']:g}"
        numbers = [_number(ldc, kind) for kind in ("acc", "learning", "bwt")]
        seeds = f"{ldc['n_seeds']}"
        if ldc["n_diverged"]:
            seeds += f", {ldc['n_diverged']} more diverged"
        rows.append([stream, optimizer, config["init"], *numbers, seeds])
    header = ["stream", "optimiser", "initial weights", "LDC, ACC %", "learning %", "BWT", "seeds"]
    return markdown_table(header, rows)


def _digits(summary: dict[str, Any]) -> str:
    rows = []
    for name, entry in summary["methods"].items():
        value = f" (λ {entry['value']:g})" if entry["value"] is not None else ""
        numbers = [_number(entry, kind) for kind in ("acc", "bwt", "learning", "seconds")]
        rows.append([name + value, *numbers, f"{entry['bytes_held']:,}"])
    header = ["method", "ACC %", "BWT", "learning %", "seconds", "bytes held"]
    return markdown_table(header, rows)


def main() -> None:
    """Run what is missing, then render."""
    known = comparisons()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    parser.add_argument(
        "--keep", default="", metavar="METHODS", help="take runs of these that earlier code made"
    )
    chosen = parser.parse_args()
    keep = names(chosen.keep)
    strange = [method for method in keep if method not in METHODS]
    if strange:
        parser.error(f"there is no method {strange[0]!r} to keep; choose from {', '.join(METHODS)}")
    unknown = [name for name in chosen.names if name not in known]
    if unknown:
        parser.error(f"there is no comparison {unknown[0]!r}; choose from {', '.join(known)}")
    for name in [] if chosen.render else chosen.names or known:
        print(f"{name}: {known[name].headline()}", file=sys.stderr, flush=True)
        outcome = compare(known[name], out=RESULTS / name, keep=keep)
        print(outcome.table(), file=sys.stderr, flush=True)
    render()


if __name__ == "__main__":
    main()
