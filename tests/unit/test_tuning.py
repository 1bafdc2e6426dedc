"""Which runs come next: grids, their extension past an edge, and the reported repeats."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flatcl.protocol import CompareOptions
from flatcl.records import TUNING_SEED, Cell, Record
from flatcl.rivals import RIVALS
from flatcl.tuning import MAX_EXTENSIONS, choose, is_tuned, next_cells

GRID = RIVALS["ewc"].grid
RATIO = GRID[1] / GRID[0]


def _known(curve: Callable[[float], float]) -> Callable[[Cell], Record]:
    def known(cell: Cell) -> Record:
        assert cell.split == "val"
        assert cell.seed == TUNING_SEED
        assert cell.value is not None
        return Record(cell, "done", [[curve(cell.value)]], [1.0], 0)

    return known


def test_the_grid_is_asked_for_first() -> None:
    choice = choose("ewc", lambda _: None)
    assert choice.value is None
    assert [cell.value for cell in choice.missing] == list(GRID)


def test_an_inner_best_value_wins_without_extension() -> None:
    choice = choose("ewc", _known(lambda value: -abs(value - GRID[2])))
    assert choice.value == GRID[2]
    assert list(choice.tried) == list(GRID)


@pytest.mark.parametrize("peak", [GRID[0] / RATIO**3, GRID[-1] * RATIO**3])
def test_the_grid_grows_past_the_edge_until_the_best_is_inside(peak: float) -> None:
    choice = choose("ewc", _known(lambda value: 1 / (value / peak + peak / value)))
    assert choice.value == pytest.approx(peak, rel=1e-4)
    assert len(choice.tried) == len(GRID) + 4  # three to the peak, one beyond it


def test_growth_stops_after_its_limit() -> None:
    choice = choose("ewc", _known(lambda value: value))
    assert len(choice.tried) == len(GRID) + MAX_EXTENSIONS
    assert choice.value == pytest.approx(GRID[-1] * RATIO**MAX_EXTENSIONS, rel=1e-4)


def test_a_diverged_value_counts_as_zero_and_is_shown_as_none() -> None:
    def known(cell: Cell) -> Record:
        assert cell.value is not None
        if cell.value > GRID[1]:
            return Record(cell, "diverged", [[0.99], None], [1.0], None, "nan")
        return Record(cell, "done", [[0.1 * cell.value / GRID[1]]], [1.0], 0)

    choice = choose("ewc", known)
    assert choice.value == GRID[1]
    assert choice.tried[GRID[2]] is None


def test_of_equals_the_middle_wins_and_a_plateau_at_an_edge_is_not_followed() -> None:
    choice = choose("ewc", _known(lambda value: float(value <= GRID[2])))
    assert choice.value == GRID[1]
    assert list(choice.tried) == list(GRID)


def test_ldc_and_a_fixed_lambda_are_never_tuned() -> None:
    options = CompareOptions(methods=("ldc", "ewc", "ewc-online", "si", "naive"), ewc_lambda=5.0)
    assert [name for name in options.methods if is_tuned(options, name)] == ["si"]
    fixed = [cell for cell in next_cells(options, lambda _: None) if cell.method == "ewc"]
    assert fixed == [Cell("ewc", 5.0, seed, "test") for seed in (0, 1, 2)]


def test_tuned_methods_report_once_their_value_is_known() -> None:
    options = CompareOptions(methods=("naive", "ewc"), seeds=2)
    first = next_cells(options, lambda _: None)
    assert [cell.split for cell in first] == ["test"] * 2 + ["val"] * len(GRID)
    done = {cell: Record(cell, "done", [[0.5 * (cell.value == 10.0)]], [1.0], 0) for cell in first}
    second = next_cells(options, done.get)
    assert second == [Cell("ewc", 10.0, seed, "test") for seed in (0, 1)]
    done |= {cell: Record(cell, "done", [[1.0]], [1.0], 0) for cell in second}
    assert next_cells(options, done.get) == []
