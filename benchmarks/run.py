"""The lab: every method on every protocol, tuned alike.

``python -m benchmarks.run`` makes the runs that are missing under ``benchmarks/results/lab`` and
renders the report. It goes on where it stopped: every finished run is a file of its own, written at
once. ``--check`` makes one finished run of each protocol again and compares.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from benchmarks.about import ProtocolAbout
from benchmarks.cluster import BACKENDS, Cluster
from benchmarks.lab import RESULTS, Job, Lab, methods_of, report_jobs
from benchmarks.lab_methods import lab_methods
from benchmarks.outcomes import REGIMES, Regime
from benchmarks.protocol_files import Protocol, protocols
from benchmarks.report import write_report
from benchmarks.targets import load_targets
from flatcl.cells import run_cell
from flatcl.cli.main import in_one_line
from flatcl.errors import FlatclError
from flatcl.options import names
from flatcl.records import Record, save, versions


def fill(
    lab: Lab,
    chosen: Sequence[Protocol],
    methods: Sequence[str],
    regimes: Sequence[Regime],
    *,
    where: Cluster,
    seeds: int = 1000,
    until: float = math.inf,
) -> list[Job]:
    """Make what is missing, round by round: a search decides which runs come next.

    Args:
        lab: of the finished runs.
        chosen: protocols.
        methods: names; all if empty.
        regimes: of ``REGIMES``.
        where: the processes.
        seeds: repeats at most.
        until: by ``time.monotonic``; no run is begun after it.

    Returns:
        Runs that failed; they are tried once a call.
    """
    failed: list[Job] = []
    with where.used() as return_as:
        parallel = Parallel(
            n_jobs=where.jobs, batch_size=1, pre_dispatch=where.jobs, return_as=return_as
        )
        while True:
            wanted = [
                job
                for protocol in chosen
                for method in methods_of(protocol)
                if not methods or method.name in methods
                for job in lab.missing(protocol, method, regimes, seeds)
                if job not in failed
            ]
            if not wanted or time.monotonic() > until:
                return failed
            failed += _round(wanted, parallel, until)


def _round(wanted: Sequence[Job], parallel: Parallel, until: float) -> list[Job]:
    def begun() -> Iterable[object]:
        for job in wanted:
            if time.monotonic() <= until:
                yield delayed(_attempt)(job)

    failed = []
    for job, outcome in tqdm(parallel(begun()), total=len(wanted), unit="run", disable=None):
        if isinstance(outcome, FlatclError):
            status, text = "failed", str(outcome)
        else:  # written here: workers may be on other machines
            save(job.folder, job.options, outcome)
            status, text = outcome.status, str(outcome.error)
        if status == "failed":
            failed.append(job)
            tqdm.write(f"{job.protocol}, {job.method}: failed\n{text}", file=sys.stderr)
    return failed


def _attempt(job: Job) -> tuple[Job, Record | FlatclError]:
    lab_methods()  # a worker of its own knows the built-in methods only
    try:
        return job, run_cell(job.options, job.cell)
    except FlatclError as error:
        return job, error


def check(lab: Lab, chosen: Sequence[Protocol], seed: int) -> bool:
    """Make one finished run of each protocol again and say whether it comes out the same.

    Args:
        lab: of the finished runs.
        chosen: protocols.
        seed: of the choice.

    Returns:
        Whether every run equals its record bit for bit.
    """
    pick, same = random.Random(seed), True
    for protocol in chosen:
        done = [
            job
            for regime in REGIMES
            for method in methods_of(protocol)
            if (setting := lab.setting(protocol, method, regime)) is not None
            for job in report_jobs(protocol, method, setting, protocol.seeds)
            if lab.record(job) is not None
        ]
        if not done:
            print(f"{protocol.name}: no finished run")
            continue
        job = pick.choice(done)
        before, now = lab.record(job), run_cell(job.options, job.cell)
        assert before is not None
        apart = max(
            abs(a - b)
            for old, new in zip(before.accuracy, now.accuracy, strict=True)
            for a, b in zip(old or (), new or (), strict=True)
        )
        same &= apart == 0
        said = "bit for bit" if apart == 0 else f"{100 * apart:.2f} points apart at most"
        print(f"{protocol.name}, {job.method}, seed {job.cell.seed}: {said}")
    return same


def of_part(known: Iterable[Protocol], part: str | None) -> list[Protocol]:
    """Return the protocols of one of the lab's two parts.

    Args:
        known: all protocols.
        part: "short", with every method and ten seeds; "long", with the core methods and five; or
            None for all.

    Returns:
        In the order given.
    """
    return [p for p in known if part is None or (p.methods == "core") == (part == "long")]


def main() -> None:
    """Run what is missing, then render; or check."""
    code = in_one_line(_main)
    if code:
        sys.exit(code)


def _main() -> int:
    known = protocols()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("protocols", nargs="*", metavar="PROTOCOL", help=", ".join(known))
    parser.add_argument(
        "--part",
        choices=("short", "long"),
        help="where no protocol is named: those with every method and ten seeds, or the others",
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
    parser.add_argument("--keep", type=names, default=(), help="methods whose older runs count")
    parser.add_argument("--list", action="store_true", help="say how many runs are missing")
    parser.add_argument("--check", action="store_true", help="make one run of each again")
    parser.add_argument("--render", action="store_true", help="only render")
    chosen = parser.parse_args()
    strange = [name for name in chosen.protocols if name not in known]
    strange += [name for name in chosen.methods if name not in lab_methods()]
    strange += [name for name in chosen.regimes if name not in REGIMES]
    if strange:
        parser.error(f"there is no {strange[0]!r}")
    picked = [known[name] for name in chosen.protocols] or of_part(known.values(), chosen.part)
    lab = Lab(chosen.keep)
    if chosen.check:
        return 0 if check(lab, picked, random.randrange(2**32)) else 1
    if chosen.list:
        for protocol in picked:
            for method in methods_of(protocol):
                if chosen.methods and method.name not in chosen.methods:
                    continue
                missing = lab.missing(protocol, method, chosen.regimes, chosen.seeds)
                print(f"{protocol.name:28} {method.name:16} {len(missing):4}")
        return 0
    failed: list[Job] = []
    if not chosen.render:
        print(f"{RESULTS}, {dict(versions())}", file=sys.stderr)
        failed = fill(
            lab,
            picked,
            chosen.methods,
            chosen.regimes,
            where=Cluster(chosen.backend, chosen.jobs, chosen.cluster),
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
            p.departs,
            p.kind,
            targets.get(name, ()),
        )
        for name, p in known.items()
    }
    outcomes = [one for p in known.values() for one in lab.outcomes(p)]
    searches = [one for p in known.values() for one in lab.searches(p)]
    if outcomes:
        write_report(outcomes, searches, about, folder=folder)


if __name__ == "__main__":
    main()
