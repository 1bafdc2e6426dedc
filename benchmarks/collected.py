"""Finished runs, found by protocol, regime, method and seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.outcomes import REGIMES, Outcome, Regime
from flatcl.errors import DataError
from flatcl.scores import scores


class Collected:
    """The lab's runs with their index.

    Args:
        outcomes: the runs, in any order.

    Raises:
        DataError: two runs have the same place, or the runs of a place differ in settings, so
            that their mean would be nobody's.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._runs: dict[tuple[str, Regime, str], dict[int, Outcome]] = {}
        for run in outcomes:
            place = (run.protocol, run.regime, run.method)
            seeds = self._runs.setdefault(place, {})
            if run.seed in seeds:
                raise DataError(f"{' / '.join(place)}: two runs of seed {run.seed}; give one")
            if seeds and run.settings != next(iter(seeds.values())).settings:
                raise DataError(f"{' / '.join(place)}: runs of unlike settings; give those of one")
            seeds[run.seed] = run

    @property
    def protocols(self) -> list[str]:
        """Names, in the order in which they first appear."""
        return list(dict.fromkeys(protocol for protocol, _, _ in self._runs))

    def regimes(self, protocol: str) -> list[Regime]:
        """Return the regimes that a protocol has runs of.

        Args:
            protocol: its name.

        Returns:
            "default" before "tuned".
        """
        return [regime for regime in REGIMES if self.methods(protocol, regime)]

    def methods(self, protocol: str, regime: Regime | None = None) -> list[str]:
        """Return the methods that have runs, diverged ones too.

        Args:
            protocol: its name.
            regime: whose; None for those of either.

        Returns:
            Names, in the order in which they first appear.
        """
        found = (m for p, r, m in self._runs if p == protocol and regime in (r, None))
        return list(dict.fromkeys(found))

    def runs(self, protocol: str, regime: Regime, method: str) -> list[Outcome]:
        """Return a method's runs, diverged ones too.

        Args:
            protocol: its name.
            regime: whose.
            method: its name.

        Returns:
            By ascending seed; none if there are none.
        """
        found = self._runs.get((protocol, regime, method), {})
        return [found[seed] for seed in sorted(found)]

    def done(self, protocol: str, regime: Regime, method: str) -> dict[int, Outcome]:
        """Return the runs that came to their end.

        Args:
            protocol: its name.
            regime: whose.
            method: its name.

        Returns:
            By ascending seed.
        """
        return {r.seed: r for r in self.runs(protocol, regime, method) if r.status == "done"}

    def cost(self, protocol: str, method: str, base: str) -> float | None:
        """Return what a method costs relative to another: the fastest run over the fastest.

        Runs of either regime count, as other load on a machine only slows, and only those on one
        kind of machine, as one kind may be several times as fast as another: the kind, of those
        that both ran on, on which ``base`` was fastest.

        Args:
            protocol: its name.
            method: its name.
            base: the other's.

        Returns:
            The ratio; None where no run of both came to its end on the same kind.
        """
        mine, theirs = self._fastest(protocol, method), self._fastest(protocol, base)
        if not (shared := mine.keys() & theirs):
            return None
        kind = min(shared, key=lambda kind: theirs[kind])
        return mine[kind] / theirs[kind]

    def _fastest(self, protocol: str, method: str) -> dict[str | None, float]:
        found: dict[str | None, float] = {}
        for regime in REGIMES:
            for run in self.done(protocol, regime, method).values():
                found[run.machine] = min(run.taken, found.get(run.machine, run.taken))
        return found

    def acc(self, protocol: str, regime: Regime, method: str) -> dict[int, float]:
        """Return the ACC of every run that came to its end.

        Args:
            protocol: its name.
            regime: whose.
            method: its name.

        Returns:
            Percent, by ascending seed.
        """
        done = self.done(protocol, regime, method)
        return {seed: 100 * scores(run.accuracy).acc for seed, run in done.items()}

    def higher(self, protocol: str, method: str) -> Regime | None:
        """Return the regime in which a rival did better: tuning may have misled it.

        A regime in which more than half of the runs diverged is left out: what is left of it is a
        selection.

        Args:
            protocol: its name.
            method: the rival.

        Returns:
            That of the higher mean ACC, tuned if they are equal; None if it has none.
        """
        means = {}
        for regime in reversed(REGIMES):
            acc = list(self.acc(protocol, regime, method).values())
            if acc and 2 * len(acc) >= len(self.runs(protocol, regime, method)):
                means[regime] = fmean(acc)
        return max(means, key=means.__getitem__, default=None)

    def nearest(self, protocol: str, regime: Regime, method: str) -> Regime | None:
        """Return the regime to take a reference method of.

        Args:
            protocol: its name.
            regime: the one that is wanted.
            method: the reference.

        Returns:
            The one wanted if the method has a finished run there, else the other if it has one
            there; None if in neither.
        """
        order = [regime, *(other for other in REGIMES if other != regime)]
        return next((r for r in order if self.done(protocol, r, method)), None)
