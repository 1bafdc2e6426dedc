"""LDC as it comes against every other method, and where it is not above: why."""

from __future__ import annotations

from benchmarks.collected import Collected
from benchmarks.contenders import CONTROL, EWC, Entry, compared, contenders
from benchmarks.families import WITHOUT_DATA, Family, family
from benchmarks.outcomes import REGIMES, Regime
from benchmarks.statistics import REFERENCE, Estimate, Paired, Verdict, estimate, paired
from benchmarks.views import bytes_text, p_text, settings_text
from flatcl.scores import scores

RIVALS: tuple[Family, ...] = (*CONTROL, *EWC, *WITHOUT_DATA)
REHEARSING: tuple[Family, ...] = ("given",)
KEEPING: tuple[Family, ...] = ("rehearsal",)
BOUND: tuple[Family, ...] = ("bound",)
_ALONE = "naive+r"


def against_rivals(
    collected: Collected, protocol: str, families: tuple[Family, ...] = RIVALS
) -> list[tuple[Entry, Paired]]:
    """Return the methods of some families, each with its test against LDC at its defaults.

    Args:
        collected: all runs.
        protocol: its name.
        families: of the methods; those that keep no data and are not given LDC's rehearsal,
            unless told.

    Returns:
        Those with a seed in common with LDC, the nearest to it or above it first; p
        Holm-corrected over these.
    """
    entries = compared(collected, contenders(collected, protocol, families))
    found = [(entry, entry.versus) for entry in entries if entry.versus is not None]
    return sorted(found, key=lambda pair: -pair[1].difference.mean)


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
    rivals = against_rivals(collected, protocol)
    given = against_rivals(collected, protocol, REHEARSING)
    said = _said(collected, rivals, "methods that keep no data")
    if rivals:
        said.append(
            "LDC rehearses at draws from Gaussians of earlier inputs, beside its constraint; none "
            "of these methods rehearses. FRONT.md has each part alone, on five streams."
        )
    said += _said(collected, given, "methods that keep no data and are given its rehearsal")
    if any(entry.method == _ALONE for entry, _ in given):
        said.append(f"{_ALONE} is LDC without its constraint.")
    kept = against_rivals(collected, protocol, KEEPING)
    return [*said, *_said(collected, kept, "methods that keep samples")]


def _said(collected: Collected, found: list[tuple[Entry, Paired]], methods: str) -> list[str]:
    by_verdict: dict[Verdict, list[tuple[Entry, Paired]]] = {}
    for entry, test in found:
        by_verdict.setdefault(test.verdict, []).append((entry, test))
    said = []
    if below := by_verdict.get("below"):
        nearest, test = below[0]
        if len(found) == 1:
            text = f"Of {methods}, {nearest.method} alone was run: LDC at its defaults is "
            text += f"significantly above it ({_points(test.difference)})."
        else:
            text = f"LDC at its defaults is significantly above {len(below)} of {len(found)} "
            text += f"{methods}; the nearest of them is {nearest.method} "
            text += f"({_points(test.difference)})."
        said.append(text + _regimes(collected, [entry for entry, _ in found]))
    for entry, test in by_verdict.get("above", []):
        said.append(f"**{entry.method} is above LDC** {_why(collected, entry, test)}")
    for entry, test in by_verdict.get("tie", []):
        said.append(f"{entry.method} ties with LDC {_why(collected, entry, test)}")
    if untested := by_verdict.get("untested"):
        said.append(f"Too few seeds to test: {', '.join(entry.method for entry, _ in untested)}.")
    return said


def _why(collected: Collected, entry: Entry, test: Paired) -> str:
    own = collected.done(entry.protocol, "default", REFERENCE)
    other = collected.done(entry.protocol, entry.regime, entry.method)
    learned, kept = [], []
    for seed in sorted(set(own) & set(other)):
        mine, theirs = scores(own[seed].accuracy), scores(other[seed].accuracy)
        if mine.learning is None or theirs.learning is None:
            continue
        learned.append(100 * (theirs.learning - mine.learning))
        kept.append(100 * (theirs.acc - mine.acc) - learned[-1])
    p = "" if test.p_holm is None else f", p {p_text(test.p_holm)}"
    text = f"({_points(test.difference)}{p}{_bytes(collected, entry)})"
    parts = estimate(learned), estimate(kept)
    if parts[0] is not None and parts[1] is not None:
        text += f": {_points(parts[0])} in what is learned, {_points(parts[1])} in what is kept"
    return f"{text}.{_tuned_alike(collected, entry)}"


def _regimes(collected: Collected, entries: list[Entry]) -> str:
    """Return which of them had a second regime to come out higher in."""
    run: dict[tuple[Regime, ...], list[str]] = {}
    for entry in entries:
        there = tuple(one for one in REGIMES if collected.runs(entry.protocol, one, entry.method))
        run.setdefault(there, []).append(entry.method)
    both = len(run.pop(REGIMES, []))
    if not run:
        return " Each was run tuned and at its own defaults, and enters as it came out higher."
    alone = "; ".join(
        f"{'tuned' if there == ('tuned',) else 'at their defaults'} alone: {', '.join(methods)}"
        for there, methods in sorted(run.items())
    )
    return (
        f" Run tuned and at their own defaults, to enter as they came out higher: {both} of the "
        f"{len(entries)}; {alone}."
    )


def _bytes(collected: Collected, entry: Entry) -> str:
    """Return what a method that keeps samples holds after the last task, and LDC."""
    if family(entry.method) not in KEEPING:
        return ""
    held = []
    for regime, method in ((entry.regime, entry.method), ("default", REFERENCE)):
        done = collected.done(entry.protocol, regime, method).values()
        held.append(max((run.bytes_held[1] for run in done if run.bytes_held), default=None))
    if held[0] is None or held[1] is None:
        return ""
    return f", {bytes_text(held[0])} held, LDC {bytes_text(held[1])}"


def _tuned_alike(collected: Collected, entry: Entry) -> str:
    """Return a tuned rival's distance from LDC whose rate and strength are tuned too."""
    if entry.regime != "tuned":
        return ""
    own = collected.acc(entry.protocol, "tuned", REFERENCE)
    test = paired(collected.acc(entry.protocol, "tuned", entry.method), own)
    if test is None:  # LDC tuned has not been run
        return ""
    settings = collected.runs(entry.protocol, "tuned", REFERENCE)[0].settings
    return f" Beside LDC tuned alike ({settings_text(settings)}): {_points(test.difference)}."


def _points(found: Estimate) -> str:
    text = f"{found.mean:+.1f}"
    if found.half is not None:
        text += f" ± {found.half:.1f}"
    return text.replace("-", "−") + " points"
