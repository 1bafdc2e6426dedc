"""How many images a replay buffer may keep at the bytes that LDC holds."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch

from flatcl import Landscape
from flatcl.core.gaussians import RANK
from flatcl.data import load_images
from flatcl.models import make_model
from flatcl.protocol import CompareOptions
from flatcl.streams import StreamOptions, make_stream

_LABEL = 8  # bytes


def at_ldc_bytes(options: CompareOptions) -> CompareOptions:
    """Return the options with a replay buffer as large as what LDC holds by default.

    Images count as they are delivered, float32, as everywhere in the tables.

    Args:
        options: of a protocol.

    Returns:
        The options with their ``memory``.
    """
    fields = ("data", "scenario", "tasks", "pad", "hidden", "bias", "model")
    return replace(options, memory=_images(*(getattr(options, name) for name in fields)))


@lru_cache
def _images(
    data: str,
    scenario: str,
    tasks: int,
    pad: int,
    hidden: tuple[int, ...],
    bias: bool,
    model: str,
) -> int:
    images = load_images(data)
    wanted = StreamOptions(scenario=scenario, tasks=tasks, pad=pad)  # type: ignore[arg-type]
    stream = make_stream(images, wanted, seed=0)
    network = make_model(
        stream.input_shape,
        stream.n_outputs,
        seed=0,
        outputs_per_task=stream.outputs_per_task,
        kind=model,  # type: ignore[arg-type]  # checked by CompareOptions
        hidden=hidden,
        bias=bias,
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    inputs = math.prod(stream.input_shape)
    # A mean and RANK directions of every group, an output of a task label, as LDC has them after
    # the last task.
    told = scenario == "split-task"
    groups = {
        (task if told else 0, output)
        for task, outputs in enumerate(stream.classes_per_task)
        for output in outputs
    }
    gaussians = len(groups) * (RANK + 1) * inputs * 4
    held = Landscape(network, optimizer).describe().total + gaussians
    return max(1, held // (4 * inputs + _LABEL))
