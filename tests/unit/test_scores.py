"""Scores of a hand-made matrix of accuracies, and t-intervals from a table."""

from __future__ import annotations

import pytest

from flatcl.errors import DataError
from flatcl.scores import mean_ci95, scores

R = [
    [0.90, 0.20, 0.10],
    [0.95, 0.80, 0.15],  # task 1 gains before it is forgotten: the maximum is here
    [0.60, 0.70, 0.85],
]


def test_scores_of_a_matrix_worked_by_hand() -> None:
    found = scores(R)
    assert found.acc == pytest.approx((0.60 + 0.70 + 0.85) / 3)
    assert found.bwt == pytest.approx(((0.60 - 0.90) + (0.70 - 0.80)) / 2)
    assert found.forgetting == pytest.approx(((0.95 - 0.60) + (0.80 - 0.70)) / 2)
    assert found.learning == pytest.approx((0.90 + 0.80 + 0.85) / 3)


def test_acc_is_learning_plus_bwt_of_the_old_tasks() -> None:
    found = scores(R)
    assert found.bwt is not None
    assert found.learning is not None
    assert found.acc == pytest.approx(found.learning + found.bwt * 2 / 3)


def test_joint_has_acc_only() -> None:
    found = scores([None, None, R[2]])
    assert found.acc == pytest.approx(2.15 / 3)
    assert (found.bwt, found.forgetting, found.learning) == (None, None, None)


def test_a_single_task_cannot_forget() -> None:
    found = scores([[0.7]])
    assert (found.acc, found.bwt, found.forgetting, found.learning) == (0.7, None, None, 0.7)


@pytest.mark.parametrize("matrix", [[], [[0.1, 0.2]], [[0.1, 0.2], None]])
def test_an_unfinished_matrix_is_refused(matrix: list[list[float] | None]) -> None:
    with pytest.raises(DataError, match="square matrix with its last row"):
        scores(matrix)


def test_interval_from_the_t_table() -> None:
    # n = 3: t(2, .975) = 4.3027; s of 1, 2, 3 is 1
    mean, half = mean_ci95([1.0, 2.0, 3.0])
    assert mean == pytest.approx(2.0)
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert mean_ci95([5.0]) == (5.0, None)
    with pytest.raises(DataError, match="no values"):
        mean_ci95([])
