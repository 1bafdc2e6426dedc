"""Three permutations of the digits, learnt in a second by any method of the lab."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from blobs import common
from torch import nn

from flatcl.data import load_images
from flatcl.evaluation import accuracy_row
from flatcl.models import make_model
from flatcl.rivals import Rival
from flatcl.streams import Stream, StreamOptions, make_stream


@lru_cache
def digits(scenario: Any = "permuted", tasks: int = 3) -> Stream:
    size = 500 if scenario == "permuted" else None
    return make_stream(load_images("digits"), StreamOptions(scenario, tasks, size), seed=0)


def network_for(stream: Stream, **options: Any) -> nn.Module:
    return make_model(
        stream.input_shape,
        stream.n_outputs,
        seed=0,
        outputs_per_task=stream.outputs_per_task,
        **{"hidden": (40,), **options},
    )


def run(
    rival: Rival, value: float | None, stream: Stream, model: nn.Module, *, lr: float = 0.05
) -> tuple[float, float]:
    """Return the mean accuracy after the last task, and that just after each task."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    torch.manual_seed(0)
    strategy = rival.build(value, **common(model, optimizer=optimizer, train_epochs=8))
    learnt = []
    for number, experience in enumerate(stream.benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        row = accuracy_row(model, stream.benchmark.test_stream, device="cpu")
        learnt.append(row[number])
    return sum(row) / len(row), sum(learnt) / len(learnt)
