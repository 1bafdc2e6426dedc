"""Means, intervals and paired tests of the lab's runs; accuracies in percent from here on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from benchmarks.collected import Collected
from benchmarks.families import in_order, naive_of
from benchmarks.outcomes import Outcome, Regime
from flatcl.errors import DataError
from flatcl.scores import mean_ci95, scores

LEVEL = 0.05
REFERENCE = "ldc"
WILCOXON_PAIRS = 6  # below, its smallest two-sided p, 2/2ⁿ, is above 0.05

Verdict = Literal["above", "below", "tie", "untested"]


@dataclass(frozen=True)
class Estimate:
    """A mean over repeats.

    Attributes:
        mean: of the values.
        half: half-width of the 95 % t-interval, t(n-1, .975)·s/√n; None for one value.
        n: number of values.
    """

    mean: float
    half: float | None
    n: int


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Return the mean of the values that there are.

    Args:
        values: one a repeat; None where it does not define one.

    Returns:
        The estimate, None without values.
    """
    there = [value for value in values if value is not None]
    return Estimate(*mean_ci95(there), len(there)) if there else None


@dataclass(frozen=True)
class Paired:
    """A method less a reference, pair by pair.

    Attributes:
        difference: mean over the seeds that both finished, in points of ACC, with its interval.
        p: of the two-sided paired t-test; None for fewer than two pairs.
        p_wilcoxon: of the two-sided Wilcoxon signed-rank test, the check; None likewise.
        p_holm: ``p`` corrected for all tests of the table; None until it is.
    """

    difference: Estimate
    p: float | None
    p_wilcoxon: float | None
    p_holm: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Where the method lies; "tie" if the corrected p is not below 0.05."""
        if self.p_holm is None:
            return "untested"
        if self.p_holm >= LEVEL:
            return "tie"
        return "above" if self.difference.mean > 0 else "below"

    @property
    def doubtful(self) -> bool:
        """Whether Wilcoxon's test, where it could, does not bear out a difference."""
        if self.verdict not in {"above", "below"} or self.p_wilcoxon is None:
            return False
        return self.difference.n >= WILCOXON_PAIRS and self.p_wilcoxon >= LEVEL


def paired(method: Mapping[int, float], reference: Mapping[int, float]) -> Paired | None:
    """Return the differences of two methods on the seeds that both have.

    Where all differences are equal the t statistic is 0/0 or infinite: p is then 1 if they are
    zero, else Wilcoxon's, which does not need their spread.

    Args:
        method: values by seed.
        reference: what is taken from them, by seed.

    Returns:
        The comparison, its p not yet corrected; None without a common seed.
    """
    seeds = sorted(set(method) & set(reference))
    if not seeds:
        return None
    gaps = [method[seed] - reference[seed] for seed in seeds]
    half = mean_ci95(gaps)[1]
    difference = Estimate(fmean(gaps), half, len(gaps))
    if len(gaps) < 2:
        return Paired(difference, None, None)
    from scipy.stats import t, wilcoxon

    moved = [gap for gap in gaps if gap != 0]
    check = float(wilcoxon(moved).pvalue) if moved else 1.0
    spread = stdev(gaps) / math.sqrt(len(gaps))
    if spread <= 1e-12 * max(map(abs, gaps), default=0.0) or not moved:
        return Paired(difference, check, check)
    p = 2 * float(t.sf(abs(difference.mean) / spread, len(gaps) - 1))
    return Paired(difference, p, check)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, so that the whole family errs in 5 %.

    The i-th smallest of m becomes max over k ≤ i of min(1, (m - k + 1)·p_k).

    Args:
        values: p of every test of the family.

    Returns:
        Corrected ones, in the same order.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    corrected, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def corrected(family: Sequence[Paired | None]) -> list[Paired | None]:
    """Return comparisons with p corrected over all of them that have one.

    Args:
        family: the comparisons of one table; None where there is none.

    Returns:
        The same, in the same order.
    """
    ps = iter(holm([c.p for c in family if c is not None and c.p is not None]))
    return [c if c is None or c.p is None else replace(c, p_holm=next(ps)) for c in family]


def intransigence(run: Outcome, joint: Outcome | None) -> float | None:
    """Return how much less a method learns of a new task than joint training knows of it.

    Mean over j of (reference_j - R[j][j]). The reference is joint training's final accuracy on
    task j, same seed: one joint run sees all T tasks.

    Args:
        run: a finished run.
        joint: joint training's finished run of its seed.

    Returns:
        Points; None without a joint run or where the run has no R[j][j].

    Raises:
        DataError: the two runs differ in their number of tasks.

    Source: Chaudhry et al. 2018, arXiv 1801.10112, eq. 4. Departure: there the reference of task
    j is trained jointly on tasks ≤ j alone; here, to spare T - 1 trainings, on all.
    """
    if joint is None or any(row is None for row in run.accuracy):
        return None
    reference = joint.accuracy[-1]
    if reference is None or len(reference) != len(run.accuracy):
        raise DataError(f"{run.protocol}: joint and {run.method} differ in their tasks")
    rows = [row for row in run.accuracy if row is not None]
    return 100 * fmean(reference[j] - rows[j][j] for j in range(len(rows)))


@dataclass(frozen=True)
class Line:
    """What one method reached on a protocol in a regime; percent and points.

    Attributes:
        method: its name.
        settings: what it ran with.
        acc: final accuracy, mean over tasks; None if no run came to its end.
        bwt: backward transfer.
        forgetting: Chaudhry's, from the best accuracy that a task ever had.
        learning: accuracy on each task just after it.
        intransigence: see the function.
        seconds: training and ends of tasks, a run.
        times_naive: seconds of the fastest run relative to Naive's, of either regime, on one kind
            of machine (``Collected.cost``); None where there is none for both.
        bytes_held: the most of any run, after the first task and after the last.
        n_seeds: runs that came to their end: the ones that are averaged.
        n_diverged: runs that did not: counted, never averaged.
        versus: less LDC; None for LDC itself or without it.
        reference: the regime of the LDC that it is compared with.
    """

    method: str
    settings: Mapping[str, float]
    acc: Estimate | None
    bwt: Estimate | None
    forgetting: Estimate | None
    learning: Estimate | None
    intransigence: Estimate | None
    seconds: Estimate | None
    times_naive: float | None
    bytes_held: tuple[int, int] | None
    n_seeds: int
    n_diverged: int
    versus: Paired | None = None
    reference: Regime | None = None


def line(collected: Collected, protocol: str, regime: Regime, method: str) -> Line:
    """Return what a method reached, not yet compared.

    Args:
        collected: all runs.
        protocol: its name.
        regime: whose.
        method: its name; it has at least one run.

    Returns:
        Means over the runs that came to their end.
    """
    runs = collected.runs(protocol, regime, method)
    done = collected.done(protocol, regime, method)
    reached = {seed: scores(run.accuracy) for seed, run in done.items()}
    where = collected.nearest(protocol, regime, "joint")
    joint = collected.done(protocol, where, "joint") if where else {}
    naive = naive_of(collected.methods(protocol, regime))
    held = [run.bytes_held for run in done.values() if run.bytes_held is not None]

    def points(kind: str) -> Estimate | None:
        values = [getattr(score, kind) for score in reached.values()]
        return estimate([None if value is None else 100 * value for value in values])

    return Line(
        method,
        runs[0].settings,
        points("acc"),
        points("bwt"),
        points("forgetting"),
        points("learning"),
        estimate([intransigence(run, joint.get(seed)) for seed, run in done.items()]),
        estimate([run.taken for run in done.values()]),
        collected.cost(protocol, method, naive) if naive else None,
        (max(first for first, _ in held), max(last for _, last in held)) if held else None,
        len(done),
        len(runs) - len(done),
    )


def table(collected: Collected, protocol: str, regime: Regime) -> list[Line]:
    """Return all lines of a table, each compared with LDC, p corrected over the whole table.

    LDC is that of the table's regime, or, if it has none there, that of the other.

    Args:
        collected: all runs.
        protocol: its name.
        regime: whose.

    Returns:
        One line a method, in the order in which tables show them.
    """
    methods = in_order(collected.methods(protocol, regime))
    where = collected.nearest(protocol, regime, REFERENCE)
    ldc = collected.acc(protocol, where, REFERENCE) if where else {}
    family = corrected(
        [
            None
            if (method, regime) == (REFERENCE, where)
            else paired(collected.acc(protocol, regime, method), ldc)
            for method in methods
        ]
    )
    lines = [line(collected, protocol, regime, method) for method in methods]
    return [
        replace(entry, versus=versus, reference=where if versus else None)
        for entry, versus in zip(lines, family, strict=True)
    ]
