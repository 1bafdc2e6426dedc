"""The images and the network that ``flatcl analyze`` looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatcl.analysis_options import AnalyzeOptions
from flatcl.data import load_images, stratified_split
from flatcl.errors import DataError
from flatcl.fluctuations.surface import LossSurface
from flatcl.plain_network import plain_network

# Images and points evaluated together: fewer cost calls, more leave the processor's cache.
_IMAGES, _POINTS = 1000, 32


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        x: [N, D], standardised by two numbers.
        y: [N], classes.
        classes: their number.
    """

    x: Tensor
    y: Tensor
    classes: int


def load_task(options: AnalyzeOptions) -> Task:
    """Return the training images as vectors, standardised by one mean and one deviation.

    Args:
        options: of the analysis.

    Returns:
        The images and labels.

    Raises:
        DataError: there are fewer images than two batches have, or they are all alike.
    """
    images = load_images(options.data)
    x, y = images.x_train.flatten(1).float(), images.y_train
    if options.train_size is not None and options.train_size < len(x):
        _, chosen = stratified_split(y, options.train_size, seed=options.seed)
        x, y = x[chosen], y[chosen]
    if len(x) < 2 * options.batch_size:
        raise DataError(f"{len(x)} images make no two batches of {options.batch_size}: lower it")
    spread = x.std()
    if not 0 < spread < math.inf:
        value = float(x[0, 0])
        raise DataError(
            f"the training pixels of {options.data} are all {value:g}, or too large for float32: "
            "give other images"
        )
    return Task((x - x.mean()) / spread, y, images.n_classes)


def make_network(task: Task, options: AnalyzeOptions) -> nn.Sequential:
    """Return the network at its initial weights, drawn from a seed of its own.

    Args:
        task: for the numbers of inputs and outputs.
        options: of the analysis.

    Returns:
        Linear layers without biases and ReLUs.
    """
    return plain_network((task.x.shape[1], *options.hidden, task.classes), seed=options.seed)


def watched(options: AnalyzeOptions) -> str:
    """Return the name of the weights between the last two hidden layers.

    Args:
        options: of the analysis.

    Returns:
        A parameter's name.
    """
    return f"{2 * (len(options.hidden) - 1)}.weight"


def surface_at(weights: list[Tensor], task: Task, options: AnalyzeOptions) -> LossSurface:
    """Return the loss over all images, of the watched weights, around given ones.

    The layers before the watched one do not move: its surface starts from what they give.

    Args:
        weights: of the whole network.
        task: the images.
        options: of the analysis.

    Returns:
        The surface, in float64.
    """
    network = make_network(task, options).double()
    with torch.no_grad():
        torch._foreach_copy_(list(network.parameters()), weights)
        name = watched(options)
        first = int(name.split(".")[0])
        inputs = torch.cat([network[:first](x.double()) for x in torch.split(task.x, _IMAGES)])
    return LossSurface(
        network[first:], inputs, task.y, parameters=name, batch=_IMAGES, rows=_POINTS
    )
