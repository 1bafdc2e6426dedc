"""How long the lab's runs take: by their own clocks, and as if nothing had run beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from benchmarks.outcomes import Outcome, Search
from benchmarks.protocol_files import Part


@dataclass(frozen=True)
class Hours:
    """What some runs take, in hours of one core.

    Attributes:
        recorded: the sum of their clocks, which measure wall time on whatever machine and beside
            whatever load a run met.
        unhindered: the same if each run that ended well had taken as long as the fastest of its
            method, protocol and purpose (a search may see fewer tasks): they differ in settings
            alone. Too low where these change what a step costs.
    """

    recorded: float
    unhindered: float


def hours(outcomes: Sequence[Outcome], searches: Sequence[Search]) -> Hours:
    """Return what reported runs and searches take.

    Args:
        outcomes: reported runs; one that two regimes share counts once.
        searches: the tuning.

    Returns:
        The hours.
    """
    # By protocol, method and purpose: seconds, number of runs, whether they ended well.
    groups: defaultdict[tuple[str, str, str], list[tuple[float, int, bool]]] = defaultdict(list)
    once = {(o.protocol, o.method, o.seed, *sorted(o.settings.items())): o for o in outcomes}
    for run in once.values():
        entry = (run.taken, 1, run.status == "done")
        groups[run.protocol, run.method, "report"].append(entry)
    for search in searches:
        groups[search.protocol, search.method, "search"] += [
            (cell.seconds, cell.repeats, cell.acc_val > 0) for cell in search.tried
        ]
    recorded = unhindered = 0.0
    for group in groups.values():
        fastest = min((seconds / number for seconds, number, well in group if well), default=0.0)
        recorded += sum(seconds for seconds, _, _ in group)
        unhindered += sum(number * fastest if well else seconds for seconds, number, well in group)
    return Hours(recorded / 3600, unhindered / 3600)


def hours_text(
    outcomes: Sequence[Outcome], searches: Sequence[Search], parts: Mapping[str, Part]
) -> str:
    """Return in words what each part of the lab takes.

    Args:
        outcomes: reported runs.
        searches: the tuning.
        parts: of the lab, by protocol.

    Returns:
        Two sentences.
    """
    found = {
        part: hours(
            [run for run in outcomes if parts[run.protocol] == part],
            [search for search in searches if parts[search.protocol] == part],
        )
        for part in get_args(Part)
        if part in parts.values()
    }
    each = [f"{one.recorded:.1f} hours for the {part} ones" for part, one in found.items()]
    quiet = [f"{one.unhindered:.1f}" for one in found.values()]
    return (
        f"One core took {' and '.join(each)}, searches included, by the runs' own clocks; "
        f"{' and '.join(quiet)} if each had taken as long as the fastest of its method and "
        "protocol, for many ran beside other work."
    )
