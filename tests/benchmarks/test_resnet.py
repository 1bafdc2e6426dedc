"""The numbers that rivals get on the ResNet, and its weights."""

import math

import pytest
import torch

from benchmarks.resnet import METHODS, OPTIONS, network, reported_runs, searched, tuning_run
from benchmarks.tune import REPEATS, Setting, Trial
from flatcl.models import TaskSlice

pytestmark = pytest.mark.usefixtures("lab_methods_apart")
GRID = (3.0, 10.0, 30.0, 100.0, 300.0)  # of EWC


def trials(values):
    settings = [Setting(OPTIONS.lr, value) for value in values]
    return [Trial(setting, repeat) for setting in settings for repeat in range(REPEATS)]


class Made:
    """Runs of which each value's accuracy is known, by repeat or of all alike."""

    def __init__(self, acc):
        self.runs = []
        for trial in trials(acc):
            reached = acc[trial.setting.value]
            if isinstance(reached, list):
                reached = reached[trial.repeat]
            status = "diverged" if reached is None else "done"
            record = {"status": status, "accuracy": [[reached]], "seconds": [1.0]}
            self.runs.append((*tuning_run("ewc", trial), record))

    def get(self, options, cell):
        return next((r for o, c, r in self.runs if (o, c) == (options, cell)), None)


def peaked_at(best, values):
    return {value: 1 / (1 + abs(math.log(value / best))) for value in values}


@pytest.mark.parametrize("best", GRID[1:-1])
def test_the_best_value_within_the_grid_is_chosen(best):
    found = searched("ewc", Made(peaked_at(best, GRID)))
    assert (found.chosen, found.missing) == (Setting(OPTIONS.lr, best), [])


def test_a_diverged_run_is_never_the_best():
    found = searched("ewc", Made({**peaked_at(30, GRID), 30.0: None}))
    assert found.chosen.value in {10.0, 100.0}


def test_one_lucky_repeat_chooses_nothing():
    lucky = {10.0: [1.0, 0.1, 0.1], 30.0: [0.9, 0.9, 0.9]}
    assert searched("ewc", Made({**dict.fromkeys(GRID, 0.5), **lucky})).chosen.value == 30.0


def test_all_values_of_the_grid_come_first_at_the_one_rate():
    found = searched("ewc", Made({3.0: 0.5}))
    assert found.chosen is None
    assert found.missing == [Trial(Setting(OPTIONS.lr, value), 0) for value in GRID[1:]]


@pytest.mark.parametrize("name", ["naive", "ldc", "joint"])
def test_what_has_no_number_or_a_default_is_not_searched(name):
    found = searched(name, Made({}))
    assert (found.chosen, found.missing) == (Setting(OPTIONS.lr, None), [])


def test_what_is_chosen_on_is_not_what_is_reported():
    for name in METHODS:
        reported = reported_runs(name, 1.0)
        assert {cell.split for _, cell in reported} == {"test"}
        for trial in trials([1.0]):
            options, cell = tuning_run(name, trial)
            assert cell.seed not in {c.seed for _, c in reported}
            assert (cell.split, options.class_order) == ("val", "drawn")


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    one, same, other = (network(seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(one, TaskSlice)
    weights = [next(net.parameters()) for net in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
