"""LDC as it comes against every method without data, and where it is not above: why."""

from __future__ import annotations

from benchmarks.collected import Collected
from benchmarks.families import WITHOUT_DATA, Family, family, in_order
from benchmarks.gap import CONTROL, EWC
from benchmarks.statistics import REFERENCE, Estimate, Paired, corrected, estimate, paired
from benchmarks.views import p_text
from flatcl.scores import scores

_RIVALS: tuple[Family, ...] = (*CONTROL, *EWC, *WITHOUT_DATA)


def against_rivals(collected: Collected, protocol: str) -> dict[str, Paired]:
    """Return every method that keeps no data less LDC at its defaults.

    Each is taken of the regime in which it did better: what was tuned on a stream's first tasks
    may be worse on the whole than what nobody tuned.

    Args:
        collected: all runs.
        protocol: its name.

    Returns:
        By method, the nearest to LDC or above it first; p Holm-corrected over these.
    """
    own = collected.acc(protocol, "default", REFERENCE)
    regimes = {
        method: regime
        for method in in_order(collected.methods(protocol))
        if family(method) in _RIVALS and (regime := collected.higher(protocol, method))
    }
    tests = [paired(collected.acc(protocol, r, method), own) for method, r in regimes.items()]
    found = {
        method: test
        for method, test in zip(regimes, corrected(tests), strict=True)
        if test is not None
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1].difference.mean))


def verdict(collected: Collected, protocol: str) -> list[str]:
    """Return what the comparison comes to, in words.

    ACC = learning + (T − 1)/T · BWT, so that a difference of ACC is one of what was learned and
    one of what was kept.

    Args:
        collected: all runs.
        protocol: its name.

    Returns:
        Sentences; none where no rival was run yet, or LDC was not.
    """
    found = against_rivals(collected, protocol)
    if not found:
        return []
    by_verdict: dict[str, list[str]] = {}
    for method, test in found.items():
        by_verdict.setdefault(test.verdict, []).append(method)
    below = by_verdict.get("below", [])
    said = []
    if below:
        nearest = below[0]
        said.append(
            f"LDC at its defaults is significantly above {len(below)} of {len(found)} methods that "
            "keep no data, each tuned or at its own defaults, whichever came out higher; the "
            f"nearest of them is {nearest} ({_points(found[nearest].difference)})."
        )
    for method in by_verdict.get("above", []):
        said.append(f"**{method} is above LDC** {_why(collected, protocol, method, found[method])}")
    for method in by_verdict.get("tie", []):
        said.append(f"{method} ties with LDC {_why(collected, protocol, method, found[method])}")
    if untested := by_verdict.get("untested"):
        said.append(f"Too few seeds to test: {', '.join(untested)}.")
    return said


def _why(collected: Collected, protocol: str, method: str, test: Paired) -> str:
    own = collected.done(protocol, "default", REFERENCE)
    regime = collected.higher(protocol, method)
    other = collected.done(protocol, regime, method) if regime else {}
    learned, kept = [], []
    for seed in sorted(set(own) & set(other)):
        mine, theirs = scores(own[seed].accuracy), scores(other[seed].accuracy)
        if mine.learning is None or theirs.learning is None:
            continue
        learned.append(100 * (theirs.learning - mine.learning))
        kept.append(100 * (theirs.acc - mine.acc) - learned[-1])
    p = "" if test.p_holm is None else f", p {p_text(test.p_holm)}"
    text = f"({_points(test.difference)}{p})"
    parts = estimate(learned), estimate(kept)
    if parts[0] is None or parts[1] is None:
        return f"{text}."
    return f"{text}: {_points(parts[0])} in what is learned, {_points(parts[1])} in what is kept."


def _points(found: Estimate) -> str:
    text = f"{found.mean:+.1f}"
    if found.half is not None:
        text += f" ± {found.half:.1f}"
    return text.replace("-", "−") + " points"
