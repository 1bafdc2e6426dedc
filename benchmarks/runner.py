"""The lab's runner: fills in what is missing, in parallel, each finished run kept at once."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from joblib import Parallel, delayed
from tqdm import tqdm

from benchmarks.cluster import Cluster
from benchmarks.lab import Job, Lab, methods_of
from benchmarks.lab_methods import lab_methods
from benchmarks.outcomes import Regime
from benchmarks.protocol_files import Protocol
from flatcl.cells import run_cell
from flatcl.errors import FlatclError
from flatcl.records import Record, save


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
    with _workers(where) as parallel:
        while True:
            found = (
                job
                for protocol in chosen
                for method in methods_of(protocol, methods)
                for job in lab.missing(protocol, method, regimes, seeds)
                if job not in failed
            )
            wanted = list(dict.fromkeys(found))  # methods may need the same search
            if not wanted or time.monotonic() > until:
                return failed
            failed += _round(wanted, parallel, until)


def make(jobs: Sequence[Job], where: Cluster) -> None:
    """Make runs once and keep them; what failed is told.

    Args:
        jobs: the runs.
        where: the processes.
    """
    with _workers(where) as parallel:
        _round(jobs, parallel, math.inf)


@contextmanager
def _workers(where: Cluster) -> Iterator[Parallel]:
    with where.used():
        yield Parallel(
            n_jobs=where.jobs,
            batch_size=1,
            pre_dispatch=where.jobs,
            return_as="generator_unordered",
        )


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
