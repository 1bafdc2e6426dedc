"""Runs made again: can a record be trusted, and has a change of code changed any number?"""

from __future__ import annotations

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
from benchmarks.tune import Setting, search
from flatcl.cells import run_cell
from flatcl.records import Record, load

_OUTCOME = ("status", "accuracy", "loss", "bytes_held")


def check(lab: Lab, chosen: Sequence[Protocol], seed: int) -> bool:
    """Make one finished run of each protocol again and say whether it comes out the same.

    Args:
        lab: of the finished runs.
        chosen: protocols.
        seed: of the choice.

    Returns:
        Whether there was a finished run and every one equals its record bit for bit.
    """
    pick, outcomes = random.Random(seed), []
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
        other = [name for name in _OUTCOME if getattr(before, name) != getattr(now, name)]
        outcomes.append(not other)
        said = f"another {', '.join(other)}" if other else "bit for bit"
        if "accuracy" in other and len(before.accuracy) == len(now.accuracy):
            said += f": accuracies {100 * _apart(before, now):.2f} points apart at most"
        print(f"{protocol.name}, {job.method}, seed {job.cell.seed}: {said}")
    return bool(outcomes) and all(outcomes)


def _apart(before: Record, now: Record) -> float:
    pairs = zip(before.accuracy, now.accuracy, strict=True)
    return max(abs(a - b) for old, new in pairs for a, b in zip(old or (), new or (), strict=True))


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
        for method in methods_of(protocol):
            if not methods or method.name in methods:
                pairs += _by_earlier_code(lab, protocol, method, runs)
    jobs = list(dict.fromkeys(job for job, _ in pairs))
    make([job for job in jobs if _now(job) is None], where)
    same, other = [], 0
    for job, before in pairs:
        now = _now(job)
        if now is not None and all(before[name] == getattr(now, name) for name in _OUTCOME):
            same.append(Repeat(job.protocol, job.method, job.cell.seed, before["code"], job.code))
        else:
            other += 1
            print(f"{job.protocol}, {job.method}: {before['code']} made other runs")
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
