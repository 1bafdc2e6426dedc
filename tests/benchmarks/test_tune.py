"""The search over learning rate and a method's own number."""

from __future__ import annotations

import math
import random
from dataclasses import astuple
from statistics import fmean

import pytest

from benchmarks.tune import (
    FINALISTS,
    MAX_EXTENSIONS,
    REPEATS,
    Found,
    Reached,
    Setting,
    Trial,
    lasting,
    search,
)

GRID = (1.0, 10.0, 100.0, 1000.0, 10000.0)
FURTHER = FINALISTS * (REPEATS - 1)


def run(curve, lr=0.1, grid=GRID, luck=lambda setting, repeat: 0.0, **given):
    """Search to the end; return what was found and the runs in the order they were asked."""
    known = {}
    asked = []
    while True:
        found: Found = search(lr, grid, known.get, **given)
        if found.chosen is not None:
            return found, asked
        assert found.missing
        for trial in found.missing:
            assert trial not in known
            asked.append(trial)
            acc = curve(trial.setting) + luck(trial.setting, trial.repeat)
            known[trial] = Reached(acc, 1.0)


def peak(lr, value):
    """A smooth hill with one top."""

    def curve(setting):
        off = abs(math.log10(setting.lr / lr)) + abs(math.log10((setting.value or 1.0) / value))
        return 1.0 / (1.0 + off)

    return curve


def test_every_method_starts_from_as_many_cells_and_a_top_inside_ends_it():
    found, asked = run(peak(0.1, 100.0))
    assert found.chosen == Setting(0.1, 100.0)
    assert len(found.tried) == 15
    assert len(asked) == 15 + FURTHER
    assert sorted({trial.setting.lr for trial in asked}) == [0.0333, 0.1, 0.3]
    assert found.on_edge == ()


@pytest.mark.parametrize(
    ("top", "cells"),
    [((0.1, 1.0), 15 + 3), ((0.3, 100.0), 15 + 5), ((0.3, 1e4), 4 * 6)],
    ids=["value", "rate", "both"],
)
def test_an_edge_grows_until_the_top_lies_inside(top, cells):
    found, asked = run(peak(*top))
    assert found.chosen == Setting(*top)
    assert len(found.tried) == cells
    assert len(asked) == len(set(asked)) == cells + FURTHER
    assert found.on_edge == ()


def test_a_top_that_is_never_reached_is_reported_on_the_edge():
    found, _ = run(lambda s: s.lr * 1e-3 + math.log10(s.value) * 1e-6)
    assert set(found.on_edge) == {"lr", "value"}
    assert len(found.tried) == (3 + MAX_EXTENSIONS["lr"]) * (5 + MAX_EXTENSIONS["value"])
    assert found.chosen == Setting(8.1, 1e10)


def test_a_plateau_is_no_reason_to_grow_and_its_middle_is_taken():
    found, _ = run(lambda _: 0.5)
    assert found.chosen == Setting(0.1, 100.0)
    assert len(found.tried) == 15


def test_at_a_fixed_rate_only_the_values_grow():
    found, asked = run(peak(0.9, 1e6), fixed_rate=True)
    assert found.chosen == Setting(0.1, 1e6)
    assert {trial.setting.lr for trial in asked} == {0.1}
    assert len(found.tried) == len(GRID) + 3
    assert found.on_edge == ()


def test_a_method_without_a_number_has_five_rates():
    found, asked = run(lambda s: 1 - abs(math.log(s.lr / 0.1)), grid=())
    assert found.chosen == Setting(0.1, None)
    assert [trial.setting.lr for trial in asked[:5]] == [0.0111, 0.0333, 0.1, 0.3, 0.9]
    assert len(asked) == 5 + FURTHER


def test_a_lucky_repeat_of_a_cell_does_not_choose_it():
    lucky = Setting(0.0333, 1000.0)
    top = Setting(0.1, 100.0)
    found, _ = run(
        peak(top.lr, top.value), luck=lambda s, repeat: 0.7 * (s == lucky and repeat == 0)
    )
    assert found.chosen == top
    assert len(found.tried[lucky]) == REPEATS
    finalists = [cell for cell, runs in found.tried.items() if len(runs) == REPEATS]
    assert len(finalists) == FINALISTS
    assert all(len(runs) in (1, REPEATS) for runs in found.tried.values())


def test_no_cell_that_was_run_once_looks_better_than_the_one_chosen():
    top = Setting(0.1, 100.0)
    lucky = [Setting(top.lr, value) for value in GRID if value != top.value]
    found, asked = run(
        peak(*astuple(top)), luck=lambda s, repeat: 0.7 * (s in lucky and not repeat)
    )
    assert found.chosen == top
    finalists = {cell for cell, runs in found.tried.items() if len(runs) == REPEATS}
    assert finalists == {*lucky, top}  # three of the four; then the fourth and the top
    assert len(asked) == 15 + len(finalists) * (REPEATS - 1)


def test_where_repeats_scatter_no_mean_is_above_that_of_the_one_chosen():
    luck = random.Random(0)
    found, asked = run(peak(0.1, 100.0), luck=lambda *_: luck.gauss(0.0, 0.2))
    means = {cell: fmean(one.acc_val for one in runs) for cell, runs in found.tried.items()}
    assert max(means.values()) == means[found.chosen]
    assert len(found.tried[found.chosen]) == REPEATS
    assert len(asked) == len(set(asked))


def test_an_edge_that_only_the_mean_finds_best_grows_too():
    lucky = Setting(0.1, 10.0)
    found, _ = run(peak(0.1, 1e6), luck=lambda s, repeat: 0.4 * (s == lucky and repeat == 0))
    assert found.chosen == Setting(0.1, 1e6)
    assert found.on_edge == ()


@pytest.mark.parametrize("falling", [False, True])
def test_the_grid_ends_at_the_largest_value_that_there_can_be(falling):
    shares = sorted((0.003, 0.01, 0.03, 0.1, 0.3), reverse=falling)
    found, asked = run(lambda s: s.value - abs(math.log10(s.lr / 0.1)), grid=shares, most=1.0)
    assert max(trial.setting.value for trial in asked) == 1.0
    assert found.chosen == Setting(0.1, 1.0)
    assert found.on_edge == ("value",)


def two_hills(setting):
    """A hill in the grid's middle, and past a valley what a tiny rate reaches at any value."""
    return 0.8 if setting.lr < 1e-4 else peak(0.1, 100.0)(setting) / 2


def test_a_rate_past_a_valley_is_found_from_beside_the_grid():
    found, _ = run(two_hills)
    assert found.chosen == Setting(0.1, 100.0)
    found, asked = run(two_hills, beside=1e-5)
    assert found.chosen == Setting(1e-5, 100.0)  # the middle of equals
    assert found.on_edge == ()
    assert len(asked) == 15 + 5 + 2 * FINALISTS
    assert {t.setting.value for t in asked if t.setting.lr == 1e-5} == set(GRID)


def test_beside_the_grid_only_the_values_grow():
    found, _ = run(lambda s: (s.lr == 1e-5) / (1 + abs(math.log10(s.value / 0.1))), beside=1e-5)
    assert found.chosen == Setting(1e-5, 0.1)
    assert {setting.lr for setting in found.tried} == {1e-5, 0.0333, 0.1, 0.3}
    assert {setting.value for setting in found.tried} == {0.01, 0.1, *GRID}


def test_a_rate_beside_is_no_other_where_the_grid_has_it_and_loses_ties():
    assert run(peak(0.1, 100.0), beside=0.3) == run(peak(0.1, 100.0))
    found, _ = run(lambda _: 0.5, beside=1e-5)
    assert found.chosen == Setting(0.1, 100.0)


def lasts(found, finished):
    """Go on until a setting is chosen; return it and the settings that were run, in order."""
    known = {}
    while True:
        later = lasting(found, known.get)
        if later.chosen is not None:
            return later.chosen, [trial.setting for trial in known]
        (trial,) = later.missing
        assert trial == Trial(trial.setting, 0, whole=True)
        assert trial not in known
        known[trial] = finished(trial.setting)


def test_what_a_search_chose_is_kept_where_it_lasts():
    found, _ = run(peak(0.1, 100.0))
    assert lasts(found, lambda _: True) == (found.chosen, [found.chosen])
    assert lasting(found, lambda _: True) == found


def test_what_diverges_on_the_whole_stream_gives_way_to_the_next_best():
    found, _ = run(peak(0.1, 100.0), luck=lambda s, repeat: 0.01 * (s.lr < 0.1))
    chosen, tried = lasts(found, lambda s: s.lr < 0.1)
    assert chosen == Setting(0.0333, 100.0)
    assert all(setting.lr == 0.1 for setting in tried[:-1])
    means = [fmean(one.acc_val for one in found.tried[setting]) for setting in tried]
    assert means == sorted(means, reverse=True)


def test_finalists_go_before_a_cell_that_was_run_once():
    found, _ = run(peak(0.1, 100.0), luck=lambda s, repeat: -0.4 * (repeat > 0))
    finalists = [cell for cell, runs in found.tried.items() if len(runs) == REPEATS]
    assert len(finalists) < 15
    _, tried = lasts(found, lambda s: s not in finalists)
    assert set(tried[:-1]) == set(finalists)


def test_where_nothing_lasts_the_search_s_choice_stands_and_what_diverged_in_it_is_not_tried():
    found, _ = run(lambda s: 0.0 if s.lr > 0.1 else peak(0.1, 100.0)(s))
    chosen, tried = lasts(found, lambda _: False)
    assert chosen == found.chosen
    assert set(tried) == {cell for cell in found.tried if cell.lr <= 0.1}
