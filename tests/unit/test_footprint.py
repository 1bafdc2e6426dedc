"""Bytes held between tasks, against counts by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from blobs import TASKS, build, flat, network, train

from flatcl.footprint import bytes_held
from flatcl.streams import Stream

from avalanche.training.plugins import SupervisedPlugin  # isort: skip


@pytest.mark.parametrize(
    ("name", "value", "copies"),
    [
        ("naive", None, 0),
        ("ewc", 1.0, 2 * TASKS),  # anchor and importance for each task
        ("ewc-online", 1.0, 2),
        ("si", 1.0, 4),  # anchor, importance, its running sum, and the path
        ("mas", 1.0, 2),
        ("lwf", 1.0, 1),
    ],
)
def test_bytes_held_in_copies_of_the_model(
    name: str, value: float | None, copies: int, stream: Stream
) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())  # its state is not counted
    strategy = build(name, model, value, optimizer=optimizer)
    train(strategy, stream)
    assert bytes_held(strategy) == flat(model).nbytes * copies


def test_bytes_held_counts_each_storage_once_and_nothing_foreign(stream: Stream) -> None:
    class Keeper(SupervisedPlugin):  # type: ignore[misc]
        def __init__(self, strategy: Any) -> None:
            super().__init__()
            self.strategy, self.model = strategy, strategy.model
            self.weight = strategy.model[0].weight.detach()
            self.experience = stream.benchmark.train_stream[0]
            whole = torch.zeros(10, dtype=torch.float64)
            self.nested = {"a": [whole, whole[:3]], "b": SimpleNamespace(again=whole)}
            array = np.zeros(5, dtype=np.float32)
            self.arrays = (array, array[1:])
            self.me = self

    strategy = build("naive", network())
    strategy.plugins.append(Keeper(strategy))
    assert bytes_held(strategy) == 10 * 8 + 5 * 4


def test_bytes_held_believes_a_plugin_that_says_so() -> None:
    class Says(SupervisedPlugin):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.zeros(100)

        def bytes_held(self) -> int:
            return 12

    strategy = build("naive", network(), None, plugins=[Says()])
    assert bytes_held(strategy) == 12
