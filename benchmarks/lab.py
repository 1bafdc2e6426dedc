"""The lab's runs: which there are, which are missing, and what the finished ones say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from benchmarks.carried import Carried, Repeat
from benchmarks.lab_methods import (
    CORE,
    ESTIMATORS,
    FENG_TU,
    PLAIN,
    SELDOM,
    STOCK,
    Method,
    lab_methods,
)
from benchmarks.outcomes import REGIMES, Outcome, Regime, Search, Tried
from benchmarks.protocol_files import Protocol, protocols
from benchmarks.tune import (
    Found,
    Reached,
    Setting,
    Trial,
    lasting,
    mean_acc,
    search,
    seed_of,
)
from flatcl.protocol import CompareOptions
from flatcl.records import Cell, Record, identity, load

RESULTS = Path(__file__).parent / "results" / "lab"


@dataclass(frozen=True)
class Job:
    """One run of the lab.

    Attributes:
        protocol: its name, and that of the folder.
        method: its name.
        options: of the run.
        cell: of the run.
    """

    protocol: str
    method: str
    options: CompareOptions
    cell: Cell

    @property
    def folder(self) -> Path:
        """Where its record is kept."""
        return folder_of(self.protocol)

    @property
    def code(self) -> str:
        """Hash of the present code that makes it."""
        return str(identity(self.options, self.cell)["code"])


def folder_of(protocol: str) -> Path:
    """Return where a protocol's records are kept.

    Args:
        protocol: its name.

    Returns:
        A folder of ``RESULTS``.
    """
    return RESULTS / protocol


def methods_of(protocol: Protocol, names: Sequence[str] = ()) -> list[Method]:
    """Return the methods that a protocol compares.

    Args:
        protocol: of the lab.
        names: of those that are wanted; all if empty.

    Returns:
        In the order of the tables.
    """
    chosen = {"core": CORE, "feng-tu": FENG_TU}.get(protocol.methods)
    found = [m for m in lab_methods().values() if protocol.kind in m.kinds]
    found = [m for m in found if not names or m.name in names]
    if chosen is not None:
        return [m for m in found if m.name in chosen]
    left_out = {
        "variants": (),
        "estimators": STOCK,
        "full": STOCK + ESTIMATORS,
        "main": STOCK + ESTIMATORS + SELDOM,
    }[protocol.methods]
    return [m for m in found if m.name not in left_out]


class Lab:
    """The finished runs, read once; those of the present code count, and of code as good as it."""

    def __init__(self) -> None:
        self._carried = Carried.read(RESULTS)
        self._read: dict[Job, Record] = {}
        self._ended: dict[tuple[Protocol, Method], Found] = {}  # searches; Naive's serves all

    def record(self, job: Job) -> Record | None:
        """Return the record of a run.

        Args:
            job: the run.

        Returns:
            The record, None if it is missing.
        """
        if job not in self._read:
            codes = [None, *self.codes(job)]
            found = (load(job.folder, job.options, job.cell, code=code) for code in codes)
            record = next((one for one in found if one is not None), None)
            if record is None:
                return None
            self._read[job] = record
        return self._read[job]

    def codes(self, job: Job) -> list[str]:
        """Return the earlier code whose run counts as well as one by the present code.

        Args:
            job: the run.

        Returns:
            Hashes, the latest first.
        """
        return self._carried.codes(job.protocol, job.method, job.code)

    def carry(self, repeats: Sequence[Repeat]) -> None:
        """Let runs by earlier code count from now on.

        Args:
            repeats: runs that the present code made the same.
        """
        self._carried = Carried([*self._carried.repeats, *repeats])
        self._carried.write(RESULTS)

    def search(self, protocol: Protocol, method: Method) -> Found:
        """Return how far the tuning of a method is.

        Args:
            protocol: of the lab.
            method: of the protocol.

        Returns:
            The search, maybe another protocol's; with nothing missing and nothing chosen while
            Naive's goes on.
        """
        protocol = _searched(protocol)
        if (protocol, method) in self._ended:
            return self._ended[protocol, method]
        plain = _plain(protocol, method)
        of_plain = self.search(protocol, plain).chosen if plain else None
        if plain and of_plain is None:
            return Found([], None, {})

        def known(trial: Trial) -> Reached | None:
            record = self.record(tuning_job(protocol, method, trial))
            if record is None:
                return None
            return Reached.of(record.status, record.accuracy, record.seconds)

        found = search(
            protocol.options.lr,
            method.grid,
            known,
            most=method.most,
            beside=of_plain.lr if of_plain else None,
        )
        if found.chosen is not None:
            self._ended[protocol, method] = found
        return found

    def missing(
        self, protocol: Protocol, method: Method, regimes: Sequence[Regime], seeds: int
    ) -> list[Job]:
        """Return the runs of a method that can be made now.

        Args:
            protocol: of the lab.
            method: of the protocol.
            regimes: whose.
            seeds: repeats at most.

        Returns:
            Those of the search, or first of Naive's, while it goes on; then whether what it found
            lasts on a long stream; then those that are reported.
        """
        jobs: list[Job] = []
        for regime in regimes:
            found = self._found(protocol, method, regime)
            if found.chosen is None:
                whole = [tuning_job(protocol, method, one) for one in found.missing if one.whole]
                jobs += whole or self._search_jobs(protocol, method)
            else:
                jobs += report_jobs(protocol, method, found.chosen, seeds)
        return [job for job in dict.fromkeys(jobs) if self.record(job) is None]

    def _search_jobs(self, protocol: Protocol, method: Method) -> list[Job]:
        protocol = _searched(protocol)
        jobs = [tuning_job(protocol, method, one) for one in self.search(protocol, method).missing]
        plain = _plain(protocol, method)
        return jobs or (self._search_jobs(protocol, plain) if plain else [])

    def setting(self, protocol: Protocol, method: Method, regime: Regime) -> Setting | None:
        """Return a method's settings in a regime.

        Args:
            protocol: of the lab.
            method: of the protocol.
            regime: "default" or "tuned".

        Returns:
            The settings; None while they have still to be found.
        """
        return self._found(protocol, method, regime).chosen

    def _found(self, protocol: Protocol, method: Method, regime: Regime) -> Found:
        if regime == "default":
            return Found([], Setting(protocol.options.lr, method.default), {})
        found = self.search(protocol, method)
        if found.chosen is None or not protocol.tuned_elsewhere:
            return found

        def finished(trial: Trial) -> bool | None:
            record = self.record(tuning_job(protocol, method, trial))
            return None if record is None else record.status == "done"

        return lasting(found, finished)

    def outcomes(self, protocol: Protocol) -> Iterator[Outcome]:
        """Yield the finished runs that are reported of a protocol.

        Args:
            protocol: of the lab.

        Yields:
            By regime, method and repeat.
        """
        for regime in REGIMES:
            for method in methods_of(protocol):
                setting = self.setting(protocol, method, regime)
                if setting is None:
                    continue
                for job in report_jobs(protocol, method, setting, protocol.seeds):
                    record = self.record(job)
                    if record is not None:
                        yield _outcome(protocol, regime, method, setting, record)

    def searches(self, protocol: Protocol) -> Iterator[Search]:
        """Yield the finished searches of a protocol.

        Args:
            protocol: of the lab.

        Yields:
            One a method; none if it takes another protocol's.
        """
        if protocol.settings_of is not None:
            return
        for method in methods_of(protocol):
            found = self._found(protocol, method, "tuned")
            if found.chosen is not None:
                yield Search(
                    protocol.name,
                    method.name,
                    [_tried(method, setting, runs) for setting, runs in found.tried.items()],
                    _settings(method, found.chosen),
                    found.on_edge,
                )


def _searched(protocol: Protocol) -> Protocol:
    """Return the protocol whose searches choose a protocol's settings."""
    return protocol if protocol.settings_of is None else protocols()[protocol.settings_of]


def _plain(protocol: Protocol, method: Method) -> Method | None:
    """Return Naive's row whose rate a method's search tries too."""
    rows = {one.name: one for one in methods_of(protocol)}
    before = takewhile(lambda name: name != method.name, PLAIN)
    return next((rows[name] for name in reversed([*before]) if name in rows), None)


def tuning_job(protocol: Protocol, method: Method, trial: Trial) -> Job:
    """Return a run of a search, judged on validation images of a repeat that is never reported.

    Args:
        protocol: of the lab.
        method: of the protocol.
        trial: its settings and which repeat.

    Returns:
        The run.
    """
    options = protocol.tuning_options(whole=trial.whole)
    return _job(protocol, method, options, trial.setting, seed_of(trial), "val")


def report_jobs(protocol: Protocol, method: Method, setting: Setting, seeds: int) -> list[Job]:
    """Return the reported runs of a method, judged on test images.

    Args:
        protocol: of the lab.
        method: of the protocol.
        setting: its settings.
        seeds: repeats at most.

    Returns:
        One a repeat.
    """
    return [
        _job(protocol, method, protocol.options, setting, seed, "test")
        for seed in range(min(seeds, protocol.seeds))
    ]


def _job(
    protocol: Protocol,
    method: Method,
    options: CompareOptions,
    setting: Setting,
    seed: int,
    split: str,
) -> Job:
    options, value = method.run(replace(options, lr=setting.lr), setting.value)
    return Job(protocol.name, method.name, options, method.cell(value, seed, split))


def _settings(method: Method, setting: Setting) -> dict[str, float]:
    own = {} if method.number is None or setting.value is None else {method.number: setting.value}
    return {"lr": setting.lr, **own}


def _tried(method: Method, setting: Setting, runs: Sequence[Reached]) -> Tried:
    return Tried(
        _settings(method, setting),
        mean_acc(runs),
        sum(run.seconds for run in runs),
        len(runs),
    )


def _outcome(
    protocol: Protocol, regime: Regime, method: Method, setting: Setting, record: Record
) -> Outcome:
    ends = sum(record.task_end or [])
    held = None
    if record.bytes_held is not None:
        first = record.bytes_first if record.bytes_first is not None else record.bytes_held
        held = (first, record.bytes_held)
    return Outcome(
        protocol.name,
        regime,
        method.name,
        _settings(method, setting),
        record.cell.seed,
        "done" if record.status == "done" else "diverged",
        record.accuracy,
        {"training": sum(record.seconds) - ends, "task_end": ends},
        held,
        record.machine,
    )
