"""Options of a comparison: what is refused, and how."""

from __future__ import annotations

from typing import Any

import pytest

from flatcl.errors import OptionError
from flatcl.options import option_fields
from flatcl.protocol import METHODS, SCENARIOS, CompareOptions
from flatcl.records import TUNING_SEED


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tasks", 0, "tasks is 0: give a whole number, 1 or more"),
        ("epochs", 1.5, "epochs is 1.5: give a whole number"),
        ("seeds", True, "seeds is True: give a whole number"),
        ("train_size", 0, "train-size is 0: give a whole number"),
        ("lr", float("nan"), "lr is nan: give a finite number"),
        ("lr", 0.0, "lr is 0.0: give a number above 0"),
        ("strength", -1.0, "strength is -1.0: give a finite number, 0 or more"),
        ("max_angle", float("inf"), "max-angle is inf: give a finite number"),
        ("weight_decay", "1", "weight-decay is '1': give a finite number"),
        ("scenario", "spilt", "scenario is 'spilt': choose one of permuted, rotated"),
        ("init", None, "init is None: choose one of torch, he"),
        ("source", "both", "source is 'both': choose one of probe, fisher, sgd, published"),
        ("methods", ("ewc", "gem"), "there is no method 'gem'; choose from naive"),
        ("methods", (), "there is no method ''"),
        ("methods", ("ewc", "ewc"), "name each method once"),
        ("hidden", (100, 0), "hidden is .*: give whole numbers"),
        ("seed", 2**32, "seed is 4294967296: give one below"),
        ("momentum", 1.0, "momentum is 1.0: give a number below 1"),
        ("centre", 0, "centre is 0: give true or false"),
        ("device", "", "device is '': give a name"),
        ("first_tasks", 6, "first-tasks is 6: there are 5 tasks, give as many at most"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CompareOptions(**{name: value})


def test_momentum_is_refused_for_adam() -> None:
    with pytest.raises(OptionError, match="it is sgd's: leave it away for adam"):
        CompareOptions(optimizer="adam", momentum=0.9)


def test_reported_seeds_start_at_the_first_and_never_meet_the_tuning_seed() -> None:
    assert list(CompareOptions(seed=7, seeds=3).report_seeds) == [7, 8, 9]
    assert TUNING_SEED not in CompareOptions(seed=2**32 - 3, seeds=3).report_seeds
    assert TUNING_SEED >= 2**32


def test_every_option_explains_itself() -> None:
    assert all(item.metadata["help"] for item in option_fields(CompareOptions))


def test_names_are_those_of_the_modules_that_serve_them() -> None:
    from typing import get_args

    from flatcl.rivals import RIVALS
    from flatcl.tasks import Scenario

    assert set(METHODS) == {*RIVALS, "ldc"}
    assert get_args(Scenario) == SCENARIOS


def test_the_headline_says_which_tasks_are_trained() -> None:
    assert CompareOptions(tasks=5, first_tasks=2).headline().startswith("digits, the first 2 of 5 ")
    assert CompareOptions(tasks=5).headline().startswith("digits, 5 permuted tasks")
