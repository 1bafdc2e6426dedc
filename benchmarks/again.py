"""Runs made again: can a record be trusted, and has a change of code changed any number?"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from benchmarks.carried import Repeat
from benchmarks.cluster import Cluster
from benchmarks.kept import Runs
from benchmarks.lab import Job, Lab, folder_of, methods_of, report_jobs, tuning_job
from benchmarks.lab_methods import Method
from benchmarks.outcomes import REGIMES
from benchmarks.protocol_files import Protocol
from benchmarks.runner import make
from benchmarks.statistics import estimate
from benchmarks.tune import Setting, search
from flatcl.cells import run_cell
from flatcl.records import Record, load
from flatcl.scores import scores

OUTCOME = ("status", "accuracy", "loss", "bytes_held")
"""What two runs have to agree in, bit for bit, to be the same."""


def check(lab: Lab, chosen: Sequence[Protocol], seed: int) -> bool:
    """Make one finished run of each protocol again and say whether it comes out the same.

    Args:
        lab: of the finished runs.
        chosen: protocols.
        seed: of the choice.

    Returns:
        Whether there was a finished run and every one equals its record: bit for bit, or, where
        that is of another kind of machine or of one that it does not name, as nearly as the row's
        runs equal each other.
    """
    pick, outcomes = random.Random(seed), []
    for protocol in chosen:
        rows = [
            [
                (job, record)
                for job in report_jobs(protocol, method, setting, protocol.seeds)
                if (record := lab.record(job)) is not None
            ]
            for regime in REGIMES
            for method in methods_of(protocol)
            if (setting := lab.setting(protocol, method, regime)) is not None
        ]
        done = [(run, row) for row in rows for run in row]
        if not done:
            print(f"{protocol.name}: no finished run")
            continue
        (job, before), row = pick.choice(done)
        now = run_cell(job.options, job.cell)
        good, said = compared(before, now, [record for _, record in row])
        outcomes.append(good)
        print(f"{protocol.name}, {job.method}, seed {job.cell.seed}: {said}")
    return bool(outcomes) and all(outcomes)


def compared(before: Record, now: Record, row: Sequence[Record]) -> tuple[bool, str]:
    """Tell whether a run made again is as good as its record.

    Two runs of a row, independent and normal with standard deviation s, differ by less than
    t s √2 in 95 of 100 cases, t of n - 1 degrees of freedom. A run of the same seed has no reason
    to differ by more than that on another machine, whose kernels round otherwise.

    Args:
        before: its record.
        now: the run made again.
        row: the records of all its repeats.

    Returns:
        Whether it is, and that in words.
    """
    other = [name for name in OUTCOME if getattr(before, name) != getattr(now, name)]
    if not other:
        return True, "bit for bit"
    said = f"another {', '.join(other)}"
    if (before.status, now.status) == ("done", "done"):
        apart = abs(scores(now.accuracy).acc - scores(before.accuracy).acc)
        said += f", ACC {100 * apart:.2f} points apart"
    if before.machine == now.machine:
        return False, f"{said}, on the same kind of machine"
    said += f", on another kind of machine ({before.machine or 'the record names none'})"
    if {"status", "bytes_held"} & {*other}:
        return False, said
    if now.status != "done":
        return True, f"{said}: neither came to its end"
    spread = estimate([scores(one.accuracy).acc for one in row if one.status == "done"])
    if spread is None or spread.half is None:
        return False, f"{said}: there is no other repeat to compare that with"
    most = spread.half * math.sqrt(2 * spread.n)
    return apart <= most, f"{said}: two repeats are within {100 * most:.2f} (95 %)"


def carry_over(
    lab: Lab, chosen: Sequence[Protocol], methods: Sequence[str], where: Cluster
) -> tuple[int, int]:
    """Find out whose runs by earlier code the present code would make the same, and keep that.

    Args:
        lab: of the finished runs.
        chosen: protocols.
        methods: names; all if empty.
        where: the processes.

    Returns:
        How many pairs of a method and its earlier code came out the same, and how many did not.
    """
    pairs: list[tuple[Job, dict[str, Any]]] = []
    for protocol in chosen:
        runs = Runs(folder_of(protocol.name))
        for method in methods_of(protocol, methods):
            pairs += _by_earlier_code(lab, protocol, method, runs)
    jobs = list(dict.fromkeys(job for job, _ in pairs))
    make([job for job in jobs if _now(job) is None], where)
    same, other = [], 0
    for job, before in pairs:
        now = _now(job)
        if now is not None and all(before[name] == getattr(now, name) for name in OUTCOME):
            same.append(Repeat(job.protocol, job.method, job.cell.seed, before["code"], job.code))
        else:
            other += 1
            print(f"{job.protocol}, {job.method}: {before['code']} made other runs")
            if now is not None and before.get("machine") != now.machine:
                print("  on another kind of machine: --beside REVISION asks both codes here")
    lab.carry(same)
    return len(same), other


def _now(job: Job) -> Record | None:
    return load(job.folder, job.options, job.cell)


def _by_earlier_code(
    lab: Lab, protocol: Protocol, method: Method, runs: Runs
) -> list[tuple[Job, dict[str, Any]]]:
    """Return a run made by each earlier code that is not known to be as good as the present."""
    found: dict[str, tuple[Job, dict[str, Any]]] = {}
    lr = protocol.options.lr
    untuned = report_jobs(protocol, method, Setting(lr, method.default), protocol.seeds)
    # Those of a search as well: a default may have changed since.
    begun = search(lr, method.grid, lambda _: None).missing
    for job in [*untuned, *(tuning_job(protocol, method, setting) for setting in begun)]:
        for content in runs.every(job.options, job.cell):
            if content["code"] not in (job.code, *lab.codes(job)):
                found.setdefault(content["code"], (job, content))
    return list(found.values())
