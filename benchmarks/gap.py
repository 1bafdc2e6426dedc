"""How much of the way from the best EWC, or Naive if that is better, to joint training LDC goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks.about import ProtocolAbout
from benchmarks.collected import Collected
from benchmarks.contenders import CONTROL, EWC, best, better
from benchmarks.families import WITHOUT_DATA, family
from benchmarks.statistics import REFERENCE, Estimate
from flatcl.scores import mean_ci95

CLASSES = "class"
"""The kind of protocol that the mean gap leaves out: pure regularisers are Naive's equals there,
so that the gap is not one between regularisers."""


@dataclass(frozen=True)
class Gap:
    """How much of the way from the best EWC to joint training LDC goes at its defaults.

    EWC with λ = 0 is Naive, so where Naive is above every EWC (its search has the learning
    rate alone to go through), the way begins there.

    Attributes:
        protocol: its name.
        base: the variant of EWC, or of Naive, that the way begins at.
        width: joint less base, points, on the seeds that all three finished.
        share: (LDC - base) / (joint - base) of the means over those seeds; above 1 if LDC is above
            joint, below 0 if it is under the base; None if there is no gap to close.
        other: the best other method without data; None without one.
        other_share: the same of it, on the seeds that it, base and joint finished.
    """

    protocol: str
    base: str
    width: Estimate
    share: float | None
    other: str | None = None
    other_share: float | None = None


def gap_closed(collected: Collected, protocol: str) -> Gap | None:
    """Return the share of joint - base that LDC closes on a protocol.

    A gap whose 95 % interval reaches 0 (or which is not positive, with a single seed) is none: the
    share would be a ratio of noise. That does not depend on LDC.

    Args:
        collected: all runs.
        protocol: its name.

    Returns:
        The gap; None without finished runs of tuned EWC, LDC at its defaults and joint on a
        common seed.
    """
    base = best(collected, protocol, (*EWC, *CONTROL))
    joint = better(collected, protocol, "joint")
    tuned = any(
        collected.done(protocol, "tuned", method)
        for method in collected.methods(protocol, "tuned")
        if family(method) in EWC
    )
    if base is None or joint is None or not tuned:
        return None
    high = collected.acc(protocol, joint.regime, joint.method)
    low = collected.acc(protocol, base.regime, base.method)
    ldc = collected.acc(protocol, "default", REFERENCE)
    seeds = sorted(set(high) & set(low) & set(ldc))
    if not seeds:
        return None
    gaps = [high[seed] - low[seed] for seed in seeds]
    mean, half = mean_ci95(gaps)
    width = Estimate(mean, half, len(gaps))
    if mean - (half or 0.0) <= 0:
        return Gap(protocol, base.method, width, None)
    share = _share(ldc, low, high)
    other = best(collected, protocol, WITHOUT_DATA)
    if other is None:
        return Gap(protocol, base.method, width, share)
    theirs = collected.acc(protocol, other.regime, other.method)
    return Gap(protocol, base.method, width, share, other.method, _share(theirs, low, high))


def _share(
    acc: Mapping[int, float], low: Mapping[int, float], high: Mapping[int, float]
) -> float | None:
    """Return how much of the gap is closed on the common seeds; None if there it is none."""
    seeds = sorted(set(acc) & set(low) & set(high))
    whole = fmean(high[seed] - low[seed] for seed in seeds) if seeds else 0.0
    return fmean(acc[seed] - low[seed] for seed in seeds) / whole if whole > 0 else None


def mean_share(gaps: Sequence[Gap]) -> float | None:
    """Return the geometric mean of the shares.

    A share above 1 enters as 1, so that no protocol makes up for another by more than the whole
    gap. One of 0 or less enters as 0, which makes the mean 0: where LDC closes nothing, no mean
    hides it. Protocols without a gap do not enter.

    Args:
        gaps: one a protocol.

    Returns:
        0 … 1; None if no gap has a share.
    """
    shares = [min(1.0, max(0.0, gap.share)) for gap in gaps if gap.share is not None]
    if not shares:
        return None
    return 0.0 if min(shares) == 0 else math.exp(fmean(map(math.log, shares)))


def gaps(collected: Collected, about: Mapping[str, ProtocolAbout]) -> list[Gap]:
    """Return the gaps of all protocols but the class-incremental ones.

    Args:
        collected: all runs.
        about: the protocols by name.

    Returns:
        Those that there are, in the order of ``about``.
    """
    there = set(collected.protocols)
    names = [name for name, entry in about.items() if name in there and entry.kind != CLASSES]
    return [gap for name in names if (gap := gap_closed(collected, name)) is not None]


def mean_sentence(found: Sequence[Gap]) -> str:
    """Return what the gaps come to, in words.

    Args:
        found: one a protocol.

    Returns:
        A sentence or two, empty without gaps.
    """
    mean = mean_share(found)
    shut = [gap.protocol for gap in found if gap.share is None]
    text = ""
    if mean is not None:
        n = sum(gap.share is not None for gap in found)
        text = (
            f"Geometric mean of the gap closed on the {n} protocols that are not "
            f"class-incremental and have a gap: **{100 * mean:.0f} %** (a share above 100 % enters "
            "as 100 %, one below 0 as 0)"
        )
        theirs = mean_share([replace(gap, share=gap.other_share) for gap in found])
        text += (
            "." if theirs is None else f"; of the best other, counted alike: {100 * theirs:.0f} %."
        )
    if shut:
        text += f" No gap to close: {', '.join(shut)}."
    return text.strip()
