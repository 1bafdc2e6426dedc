"""A small stream that Naive forgets on, and how much a method forgets on it."""

from __future__ import annotations

from typing import Any

import torch
from blobs import common
from torch import Tensor, nn

from flatcl.data import Images
from flatcl.rivals import Rival
from flatcl.streams import Stream, StreamOptions, make_stream
from flatcl.tasks import Scenario

SIDE, CLASSES, SAMPLES = 4, 4, 200


def forgetful_stream(scenario: Scenario = "permuted", tasks: int = 2) -> Stream:
    """Return tasks of images around one random centre a class."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(4 * SAMPLES) % CLASSES
    centres = torch.randn(CLASSES, 1, SIDE, SIDE, generator=generator)
    x = centres[y] + 0.5 * torch.randn(len(y), 1, SIDE, SIDE, generator=generator)
    images = Images("centres", x, y, x[:40], y[:40], CLASSES)
    return make_stream(images, StreamOptions(scenario, tasks=tasks, train_size=SAMPLES), seed=0)


def perceptron(outputs: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    inputs = SIDE * SIDE
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def accuracy(model: nn.Module, stream: Stream, task: int) -> float:
    x, y, _ = stream.benchmark.train_stream[task].dataset.batch(torch.arange(SAMPLES))
    found: Tensor = model(x).argmax(1)
    return float((found == y).float().mean())


def accuracies(rival: Rival, value: float | None, stream: Stream, **options: Any) -> list[float]:
    """Return a method's accuracy on the first task after it, and on both tasks at the end."""
    model = perceptron()
    strategy = rival.build(value, **common(model, train_epochs=10, **options))
    found = []
    for experience in stream.benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
        found.append(accuracy(model, stream, 0))
    return [*found, accuracy(model, stream, 1)]
