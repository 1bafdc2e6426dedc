"""The lab: every method on every protocol, tuned alike.

``python -m benchmarks.run`` makes the runs that are missing under ``benchmarks/results/lab`` and
renders the report. It goes on where it stopped: every finished run is a file of its own, written at
once. ``--check`` makes one finished run of each protocol again and compares. After a change of
flatcl's code, ``--carry-over`` makes one run of each method and protocol again: where it comes out
the same bit for bit, the runs that the code before made count on; on another kind of machine than
made the records, ``--beside REVISION`` asks the earlier code in their place.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from benchmarks.about import ProtocolAbout
from benchmarks.again import carry_over, check
from benchmarks.beside import carry_beside
from benchmarks.cluster import BACKENDS, Cluster
from benchmarks.lab import RESULTS, Job, Lab, methods_of
from benchmarks.lab_methods import lab_methods
from benchmarks.outcomes import REGIMES
from benchmarks.protocol_files import Part, Protocol, protocols
from benchmarks.report import write_report
from benchmarks.runner import fill
from benchmarks.targets import load_targets
from flatcl.cli.main import in_one_line
from flatcl.options import names
from flatcl.versions import versions

# What each of these has use for, beside protocols and --part.
_HEEDED = {
    "list": {"methods", "regimes", "seeds"},
    "check": set(),
    "carry_over": {"methods", "jobs", "backend", "cluster", "beside"},
    "render": set(),
}


def _refuse_idle(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Refuse what was given beside an option that has no use for it.

    Args:
        parser: knows what is there if nothing is given.
        chosen: what was given.
    """
    asked = next((mode for mode in _HEEDED if getattr(chosen, mode)), None)
    if asked is None:
        return
    heeded = _HEEDED[asked] | set(_HEEDED)
    if asked != "render":  # which takes in all protocols
        heeded |= {"protocols", "part"}
    for name, value in vars(chosen).items():
        if name not in heeded and value != parser.get_default(name):
            label = "PROTOCOL" if name == "protocols" else f"--{name}"
            parser.error(f"--{asked.replace('_', '-')} has no use for {label}: leave it out")


def main() -> None:
    """Run what is missing, then render; or check."""
    code = in_one_line(_main)
    if code:
        sys.exit(code)


def _main() -> int:
    known = protocols()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "protocols", nargs="*", metavar="PROTOCOL", default=[], help=", ".join(known)
    )
    parser.add_argument(
        "--part",
        choices=get_args(Part),
        help="where no protocol is named: the short ones, ten seeds, or the long ones, core "
        "methods, five",
    )
    parser.add_argument(
        "--methods", type=names, default=(), help="comma-separated; all if left out"
    )
    parser.add_argument("--regimes", type=names, default=REGIMES, help="default, tuned, or both")
    parser.add_argument("--seeds", type=int, default=1000, help="repeats at most")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--backend", choices=BACKENDS, default="loky", help="of joblib")
    parser.add_argument("--cluster", help="address of a running one; its own is begun if left out")
    parser.add_argument("--hours", type=float, default=1000.0, help="begin no run after so long")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="say how many runs are missing")
    instead.add_argument("--check", action="store_true", help="make one run of each again")
    instead.add_argument(
        "--carry-over",
        action="store_true",
        help="count the runs of earlier code where one, made again, comes out the same",
    )
    instead.add_argument("--render", action="store_true", help="only render")
    parser.add_argument(
        "--beside",
        metavar="REVISION",
        help="with --carry-over: let that revision of the code and the present one both make the "
        "first tasks here, in place of asking records that another kind of machine made",
    )
    chosen = parser.parse_args()
    _refuse_idle(parser, chosen)
    if chosen.beside and not chosen.carry_over:
        parser.error("--beside goes with --carry-over")
    strange = [name for name in chosen.protocols if name not in known]
    strange += [name for name in chosen.methods if name not in lab_methods()]
    strange += [name for name in chosen.regimes if name not in REGIMES]
    if strange:
        parser.error(f"there is no {strange[0]!r}")
    picked = [known[name] for name in chosen.protocols] or [
        protocol for protocol in known.values() if chosen.part in (None, protocol.part)
    ]
    lab = Lab()
    if chosen.check:
        return 0 if check(lab, picked, random.randrange(2**32)) else 1
    if chosen.list:
        for protocol in picked:
            for method in methods_of(protocol, chosen.methods):
                missing = lab.missing(protocol, method, chosen.regimes, chosen.seeds)
                print(f"{protocol.name:28} {method.name:16} {len(missing):4}")
        return 0
    where = Cluster(chosen.backend, chosen.jobs, chosen.cluster)
    if chosen.carry_over:
        if chosen.beside:
            same, other = carry_beside(lab, picked, chosen.methods, chosen.beside)
        else:
            same, other = carry_over(lab, picked, chosen.methods, where)
        print(f"{same} methods of earlier code carried over, {other} to be run again")
        return 0
    failed: list[Job] = []
    if not chosen.render:
        print(f"{RESULTS}, {dict(versions())}", file=sys.stderr)
        failed = fill(
            lab,
            picked,
            chosen.methods,
            chosen.regimes,
            where=where,
            seeds=chosen.seeds,
            until=time.monotonic() + 3600 * chosen.hours,
        )
    render(lab, known, Path(__file__).parent)
    return 1 if failed else 0


def render(lab: Lab, known: Mapping[str, Protocol], folder: Path) -> None:
    """Write the report of all finished runs: README.md, REPORT.html and summary.json.

    Args:
        lab: of the finished runs.
        known: protocols by name, in the report's order.
        folder: where to.
    """
    targets = load_targets()
    about = {
        name: ProtocolAbout(
            p.title,
            replace(p.options, seeds=p.seeds).headline(),
            p.follows,
            p.departures,
            p.kind,
            targets.get(name, ()),
            [method.name for method in methods_of(p)],
            p.part,
            p.options.data,
            [method.name for method in methods_of(p) if method.guessed],
            p.settings_of,
        )
        for name, p in known.items()
    }
    outcomes = [one for p in known.values() for one in lab.outcomes(p)]
    searches = [one for p in known.values() for one in lab.searches(p)]
    if outcomes:
        write_report(outcomes, searches, about, folder=folder)


if __name__ == "__main__":
    main()
