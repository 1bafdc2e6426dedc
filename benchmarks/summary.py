"""``summary.json``: the lab's means for those who want numbers rather than a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.collected import Collected
from benchmarks.outcomes import Outcome, Search
from benchmarks.statistics import Estimate, Line, table
from flatcl.io import write_json

KINDS = ("acc", "bwt", "forgetting", "learning", "intransigence", "seconds")
Entry = dict[str, object]
Summary = dict[str, dict[str, dict[str, Entry]]]


def summarize(outcomes: Sequence[Outcome], searches: Sequence[Search] = ()) -> Summary:
    """Return the means of every method: protocol → regime → method → numbers.

    Accuracies and their differences are in percent, ``seconds`` a run, ``bytes_held`` after the
    last task. Every mean ``x_mean`` has its half-width of the 95 % t-interval ``x_ci95``, null for
    a single run; both are null where no run defines it. ``less_ldc`` is the paired comparison.
    ``chosen`` are the settings that the runs had, ``on_edge`` the axes on whose edge they lie.

    Args:
        outcomes: all runs.
        searches: the tuning.

    Returns:
        What ``summary.json`` holds.
    """
    collected = Collected(outcomes)
    edges = {(s.protocol, s.method): list(s.on_edge) for s in searches}
    summary: Summary = {}
    for protocol in collected.protocols:
        summary[protocol] = {}
        for regime in collected.regimes(protocol):
            found = summary[protocol][regime] = {}
            for line in table(collected, protocol, regime):
                edge = edges.get((protocol, line.method), []) if regime == "tuned" else []
                found[line.method] = {**_numbers(line), "on_edge": edge}
    return summary


def write_summary(path: Path, outcomes: Sequence[Outcome], searches: Sequence[Search]) -> Path:
    """Return the path after writing the means there.

    Args:
        path: of the JSON file.
        outcomes: all runs.
        searches: the tuning.

    Returns:
        The path.
    """
    return write_json(path, summarize(outcomes, searches))


def _numbers(line: Line) -> Entry:
    entry: Entry = {}
    for kind in KINDS:
        value: Estimate | None = getattr(line, kind)
        entry[f"{kind}_mean"] = None if value is None else round(value.mean, 4)
        entry[f"{kind}_ci95"] = None if value is None else _rounded(value.half)
    first, last = line.bytes_held or (None, None)
    entry |= {"bytes_held": last, "bytes_held_first": first}
    entry |= {"n_seeds": line.n_seeds, "n_diverged": line.n_diverged}
    versus = line.versus
    if versus is not None:
        entry["less_ldc"] = {
            "regime": line.reference,
            "mean": round(versus.difference.mean, 4),
            "ci95": _rounded(versus.difference.half),
            "n_pairs": versus.difference.n,
            "p": versus.p,
            "p_holm": versus.p_holm,
            "p_wilcoxon": versus.p_wilcoxon,
            "verdict": versus.verdict,
        }
    entry["chosen"] = dict(line.settings)
    return entry


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
