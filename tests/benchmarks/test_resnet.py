"""The numbers that rivals get on the ResNet, and its weights."""

import math

import pytest
import torch

from benchmarks.resnet import METHODS, TUNING_SEED, chosen, network, runs_of
from flatcl.models import TaskSlice

pytestmark = pytest.mark.usefixtures("lab_methods_apart")
GRID = (3.0, 10.0, 30.0, 100.0, 300.0)  # of EWC


class Made:
    """Runs of which each value's accuracy is known."""

    def __init__(self, acc):
        self.runs = []
        for value, reached in acc.items():
            ((options, cell),) = runs_of("ewc", value, tuning=True)
            status = "diverged" if reached is None else "done"
            self.runs.append((options, cell, {"status": status, "accuracy": [[reached]]}))

    def get(self, options, cell):
        return next((r for o, c, r in self.runs if (o, c) == (options, cell)), None)


def peaked_at(best, values):
    return {value: 1 / (1 + abs(math.log(value / best))) for value in values}


@pytest.mark.parametrize("best", GRID[1:-1])
def test_the_best_value_within_the_grid_is_chosen(best):
    assert chosen("ewc", Made(peaked_at(best, GRID))) == (best, [])


def test_a_diverged_run_is_never_the_best():
    made = Made({**peaked_at(30, GRID), 30.0: None})
    assert chosen("ewc", made)[0] in {10.0, 100.0}


def test_all_values_of_the_grid_come_first():
    assert chosen("ewc", Made({3.0: 0.5})) == (None, list(GRID[1:]))


def test_a_grid_whose_end_is_best_grows_three_times_at_most():
    made = {value: value for value in GRID}
    for _ in range(3):
        value, missing = chosen("ewc", Made(made))
        assert value is None
        assert missing == [pytest.approx(max(made) * 10 / 3)]
        made[missing[0]] = missing[0]
    assert chosen("ewc", Made(made)) == (max(made), [])


def test_what_is_chosen_on_is_not_what_is_reported():
    for name in METHODS:
        reported = runs_of(name, 1.0, tuning=False)
        ((options, cell),) = runs_of(name, 1.0, tuning=True)
        assert cell.seed == TUNING_SEED
        assert cell.seed not in {c.seed for _, c in reported}
        assert {c.split for _, c in reported} == {"test"}
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
