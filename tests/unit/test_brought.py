"""What a caller brings to a comparison: fair for every method, and refused where it cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import SGD

from flatcl.brought import Brought
from flatcl.cells import run_cell
from flatcl.errors import NonFiniteError, OptionError
from flatcl.experiments import CompareOptions, compare
from flatcl.host import ensure_avalanche
from flatcl.records import TUNING_SEED, Cell

ensure_avalanche()
from avalanche.benchmarks import (  # noqa: E402
    benchmark_with_validation_stream,
    nc_benchmark,
)
from avalanche.models import MTSimpleMLP  # noqa: E402

ONE = CompareOptions(methods=("naive",), seeds=1, epochs=1, batch_size=16)


class Digits(torch.utils.data.Dataset):
    """scikit-learn's, as a data set of Avalanche's own kind of benchmark."""

    def __init__(self, start: int, stop: int) -> None:
        images, targets = load_digits(return_X_y=True)
        self.x = torch.tensor(images[start:stop], dtype=torch.float32) / 16
        self.targets = targets[start:stop].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.x[place], self.targets[place]


def stream(seed: int = 0, **options: Any) -> Any:
    options = {"n_experiences": 5, "task_labels": False, **options}
    return nc_benchmark(Digits(0, 300), Digits(300, 500), seed=seed % 97, **options)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))


def test_every_method_sees_the_same_batches_in_every_task() -> None:
    brought = Brought(network(), stream())
    cells = Cell("naive", None, 0, "test"), Cell("ewc", 0.0, 0, "test")
    naive, ewc = (run_cell(ONE, cell, brought.of(cell)) for cell in cells)
    assert naive.status == "done"
    assert naive.accuracy == ewc.accuracy  # a penalty of weight 0 is Naive
    other = Cell("naive", None, 1, "test")
    assert run_cell(ONE, other, brought.of(other)).accuracy != naive.accuracy


def test_joint_training_still_sees_all_tasks_at_once() -> None:
    options = replace(ONE, methods=("joint", "naive"), epochs=8, lr=0.1)
    found = compare(options, model=network, benchmark=stream()).summary["methods"]
    assert found["joint"]["acc_mean"] > 60 > found["naive"]["acc_mean"]


def test_the_heads_of_tasks_to_come_are_there_to_be_judged() -> None:
    model = MTSimpleMLP(input_size=64, hidden_size=20)
    before = len(list(model.parameters()))
    options = replace(ONE, methods=("naive", "ldc"), lr=0.1)
    found = compare(options, model=model, benchmark=stream(task_labels=True))
    assert not found.broken
    assert len(list(model.parameters())) == before  # the caller's is copied
    assert found.summary["methods"]["ldc"]["acc_mean"] > 40


@pytest.mark.filterwarnings("ignore:stream generator will be converted")  # of Avalanche's own
def test_seeds_are_such_as_numpy_takes() -> None:
    seen: set[int] = set()

    def model(seed: int) -> nn.Module:
        np.random.RandomState(seed)
        seen.add(seed)
        return network(seed % 97)

    def benchmark(seed: int) -> Any:
        return benchmark_with_validation_stream(stream(seed), 0.2)

    assert TUNING_SEED >= 2**32
    options = replace(ONE, methods=("ewc",))
    found = compare(options, model=model, benchmark=benchmark)
    assert seen == {0, TUNING_SEED % 2**32}
    assert any(step["acc_val"] for step in found.summary["methods"]["ewc"]["grid"])


@pytest.mark.filterwarnings("ignore:stream generator will be converted")
def test_a_rival_whose_tuning_fails_is_not_shown_untuned() -> None:
    def model(seed: int) -> nn.Module:
        if seed:
            raise ValueError("no such seed")
        return network(seed)

    def benchmark(seed: int) -> Any:
        return benchmark_with_validation_stream(stream(seed), 0.2)

    with pytest.raises(OptionError, match=r"ewc failed at .* while it was tuned, .*no such seed"):
        compare(replace(ONE, methods=("ewc",)), model=model, benchmark=benchmark)


class Short:
    """A test stream that does not go with its training stream."""

    train_stream = (1, 2, 3)
    test_stream = (1,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "mlp"}, "model is of type str: give a network"),
        ({"model": nn.Linear}, "model is the class Linear: give a network"),
        ({"model": lambda seed: "x"}, r"model\(seed\) returned of type str"),
        ({"optimizer": SGD([torch.zeros(1)], lr=0.1)}, "optimizer is of type SGD: give a function"),
        ({"benchmark": stream}, "benchmark is given without a model"),
        (
            {"model": network, "benchmark": 3},
            "the benchmark is of type int, without a train_stream",
        ),
        ({"model": network, "benchmark": lambda seed: None}, "the benchmark is None, without a"),
        ({"model": network, "benchmark": Short()}, "3 in train_stream, 1 in test_stream"),
        ({"model": network, "benchmark": lambda seed: Short()}, "3 in train_stream, 1 in test"),
    ],
)
def test_what_cannot_be_used_is_refused_before_it_is_trained(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        compare(ONE, **given)


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(OptionError, match="options is a dict"):
        compare({"epochs": 1})  # type: ignore[arg-type]


def test_a_comparison_in_which_no_run_ends_well_says_why() -> None:
    few = nn.Linear(64, 3)
    with pytest.raises(NonFiniteError, match=r"no run ended well: .*out of bounds"):
        compare(ONE, model=few, benchmark=stream())


def test_the_summary_and_the_picture_tell_what_was_brought(tmp_path: Path) -> None:
    options = replace(ONE, methods=("naive",))
    compare(options, model=network(), benchmark=stream(), out=tmp_path)
    config = json.loads((tmp_path / "summary.json").read_text())["config"]
    assert config["own"] == {"benchmark": "NCScenario", "model": "Sequential"}
    assert config["data"] is config["scenario"] is config["hidden"] is None
    assert config["lr"] == options.lr
    line = Brought(network(), stream(), lambda weights: SGD(weights, lr=1.0)).headline(options)
    assert line.startswith("own benchmark (NCScenario); own network (Sequential), own optimiser (")
    assert Brought(network).headline(options).startswith("digits, 5 permuted tasks; own network (")
    assert Brought().headline(options) == options.headline()
    assert "own" not in Brought().config(options)
