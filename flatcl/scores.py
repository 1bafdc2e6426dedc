"""Numbers that sum up a matrix of accuracies, and their means over repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from flatcl.errors import DataError

Matrix = Sequence[Sequence[float] | None]
"""R[i][j], accuracy on task j after training on task i; a row is None if it was not measured."""


@dataclass(frozen=True)
class Scores:
    """One run's scores, in the unit of its accuracies; None where the run does not define them.

    With R[i][j] the accuracy on task j after task i, and T tasks counted from 1:

    Attributes:
        acc: mean over j of R[T][j].
        bwt: backward transfer, mean over j < T of R[T][j] - R[j][j]; negative if it forgets.
        forgetting: mean over j < T of (max over i < T of R[i][j]) - R[T][j].
        learning: mean over j of R[j][j].

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840 (ACC, BWT); Chaudhry et al. 2018, arXiv
    1801.10112, eq. 3 (forgetting).
    """

    acc: float
    bwt: float | None
    forgetting: float | None
    learning: float | None


def scores(matrix: Matrix) -> Scores:
    """Return the scores of one run.

    Args:
        matrix: R[i][j], one row a task trained; rows but the last may be None (joint training has
            only a last one), and then only ``acc`` is defined.

    Returns:
        The scores; ``bwt`` and ``forgetting`` are None with a single task.

    Raises:
        DataError: the matrix is empty, not square, or without its last row.
    """
    last = matrix[-1] if matrix else None
    if last is None or any(row is not None and len(row) != len(matrix) for row in matrix):
        raise DataError("accuracies must be a square matrix with its last row: train every task")
    rows = [row for row in matrix if row is not None]
    acc, tasks = fmean(last), len(matrix)
    if len(rows) < tasks:
        return Scores(acc, None, None, None)
    learning = fmean(rows[j][j] for j in range(tasks))
    if tasks == 1:
        return Scores(acc, None, None, learning)
    old = range(tasks - 1)
    bwt = fmean(last[j] - rows[j][j] for j in old)
    forgetting = fmean(max(row[j] for row in rows[:-1]) - last[j] for j in old)
    return Scores(acc, bwt, forgetting, learning)


def mean_ci95(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the half-width of its 95 % t-interval.

    Args:
        values: one a repeat.

    Returns:
        Mean, and t(n-1, .975)·s/√n; None for the latter if there is one value only.

    Raises:
        DataError: there are no values.
    """
    if not values:
        raise DataError("no values to average: at least one run must finish")
    if len(values) == 1:
        return values[0], None
    from scipy.stats import t

    n = len(values)
    return fmean(values), float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
