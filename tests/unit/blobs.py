"""Two small tasks and the means to train any method on them in milliseconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from flatcl.data import Images
from flatcl.rivals import RIVALS
from flatcl.streams import Stream, StreamOptions, fast, make_stream

from avalanche.logging import BaseLogger  # isort: skip
from avalanche.training.plugins import EvaluationPlugin  # isort: skip
from avalanche.training.templates import SupervisedTemplate  # isort: skip

TASKS, SAMPLES, BATCH, INPUTS, CLASSES = 2, 48, 16, 6, 2


def blob_stream() -> Stream:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(100) % CLASSES
    x = torch.randn(100, INPUTS, generator=generator) + y[:, None]
    images = Images("blobs", x, y, x[:20], y[:20], CLASSES)
    return make_stream(images, StreamOptions(tasks=TASKS, train_size=SAMPLES), seed=0)


def data_of(stream: Stream, task: int = 0) -> tuple[Tensor, Tensor]:
    x, y, _ = stream.benchmark.train_stream[task].dataset.batch(torch.arange(SAMPLES))
    return x, y


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def common(model: nn.Module, **options: Any) -> dict[str, Any]:
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": BATCH,
        "train_epochs": 2,
        "eval_mb_size": 64,
        "evaluator": EvaluationPlugin(loggers=[BaseLogger()]),
        **options,
    }


def build(name: str, model: nn.Module, value: float | None = None, **options: Any) -> Any:
    return RIVALS[name].build(value, **common(model, **options))


def plugged(plugin: object, model: nn.Module, **options: Any) -> Any:
    return fast(SupervisedTemplate)(plugins=[plugin], **common(model, **options))


def train(strategy: SupervisedTemplate, stream: Stream, tasks: int = TASKS) -> None:
    for experience in stream.benchmark.train_stream[:tasks]:
        strategy.train(experience, eval_streams=[])


def trained(name: str, stream: Stream, value: float | None = None) -> Tensor:
    model = network()
    train(build(name, model, value), stream)
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def in_second_task(model: nn.Module, **fields: object) -> Any:
    """Stand in for a strategy just before its backward pass; its loss is zero."""
    clock = SimpleNamespace(train_exp_counter=1)
    return SimpleNamespace(
        clock=clock, model=model, device=torch.device("cpu"), loss=torch.zeros(()), **fields
    )
