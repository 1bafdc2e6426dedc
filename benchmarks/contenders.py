"""Methods beside LDC as it comes: each rival of the regime it did better in, and who is best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from benchmarks.collected import Collected
from benchmarks.families import Family, family, in_order
from benchmarks.outcomes import Regime
from benchmarks.statistics import REFERENCE, Estimate, Paired, corrected, estimate, paired

EWC: tuple[Family, ...] = ("ewc",)
CONTROL: tuple[Family, ...] = ("control",)


@dataclass(frozen=True)
class Entry:
    """One method on one protocol.

    Attributes:
        protocol: its name.
        method: its name.
        regime: whose runs.
        acc: percent.
        diverged: runs that are not in it.
        versus: less LDC at its defaults; None until it is compared, and without a common run.
    """

    protocol: str
    method: str
    regime: Regime
    acc: Estimate
    diverged: int = 0
    versus: Paired | None = None


def named(collected: Collected, protocol: str, method: str, regime: Regime) -> Entry | None:
    """Return a method as an entry.

    Args:
        collected: all runs.
        protocol: its name.
        method: its name.
        regime: whose runs.

    Returns:
        None if no run came to its end.
    """
    acc = estimate(list(collected.acc(protocol, regime, method).values()))
    if acc is None:
        return None
    lost = len(collected.runs(protocol, regime, method)) - acc.n
    return Entry(protocol, method, regime, acc, lost)


def better(collected: Collected, protocol: str, method: str) -> Entry | None:
    """Return a method as an entry, of the regime in which it did better.

    Args:
        collected: all runs.
        protocol: its name.
        method: its name.

    Returns:
        None if it is none of ``Collected.higher``.
    """
    regime = collected.higher(protocol, method)
    return named(collected, protocol, method, regime) if regime else None


def contenders(collected: Collected, protocol: str, families: Collection[Family]) -> list[Entry]:
    """Return the methods of some families, each of the regime in which it did better.

    What was tuned on a stream's first tasks may be worse on the whole than what nobody tuned.

    Args:
        collected: all runs.
        protocol: its name.
        families: to choose from.

    Returns:
        In the order of the tables; those of ``Collected.higher``.
    """
    methods = [m for m in in_order(collected.methods(protocol)) if family(m) in families]
    found = (better(collected, protocol, method) for method in methods)
    return [entry for entry in found if entry is not None]


def best(collected: Collected, protocol: str, families: Collection[Family]) -> Entry | None:
    """Return the method of some families that has the highest mean ACC, tuned or at its defaults.

    It is chosen on the very test images that it is shown on, so chance favours it.

    Args:
        collected: all runs.
        protocol: its name.
        families: to choose from.

    Returns:
        The method; None if there is none.
    """
    found = contenders(collected, protocol, families)
    return max(found, key=lambda entry: entry.acc.mean, default=None)


def compared(collected: Collected, entries: Sequence[Entry]) -> list[Entry]:
    """Return entries, each with its test against LDC at its defaults.

    Args:
        collected: all runs.
        entries: of a table; LDC's own is not tested.

    Returns:
        In the order given; p Holm-corrected over these.
    """
    tests = [
        None
        if entry.method == REFERENCE
        else paired(
            collected.acc(entry.protocol, entry.regime, entry.method),
            collected.acc(entry.protocol, "default", REFERENCE),
        )
        for entry in entries
    ]
    return [
        replace(entry, versus=versus)
        for entry, versus in zip(entries, corrected(tests), strict=True)
    ]
