"""The networks of the comparison, drawn from a seed of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from flatcl.errors import OptionError
from flatcl.host import ensure_avalanche
from flatcl.seeds import derive_seed

ensure_avalanche()
from avalanche.models import MultiTaskModule  # noqa: E402

_CHANNELS = (32, 64, 64)
_DENSE = 128


class TaskSlice(MultiTaskModule):  # type: ignore[misc]  # Avalanche ships no types
    """A network whose output layer serves all tasks, and that answers with a task's part of it.

    Args:
        network: maps inputs to logits [B, n_tasks · width].
        width: logits of one task.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network = network
        self.width = width

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Tensor | dict[int, Tensor]:
        """Return each sample's logits for its own task.

        Args:
            x: inputs [B, ...].
            task_labels: [B], the tasks' numbers; or one number for all; or None for every task
                that training has met.

        Returns:
            Logits [B, width], or a dict of them by task if ``task_labels`` is None.
        """
        if task_labels is None:
            return {t: self.forward_single_task(x, t) for t in self.known_train_tasks_labels}
        if isinstance(task_labels, int):
            return self.forward_single_task(x, task_labels)
        units = torch.arange(self.width, device=x.device)
        columns = task_labels.to(x.device)[:, None] * self.width + units
        logits: Tensor = self.network(x)
        return logits.gather(1, columns)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Return the logits of one task.

        Args:
            x: inputs [B, ...].
            task_label: the task's number.

        Returns:
            Logits [B, width].
        """
        logits: Tensor = self.network(x)
        return logits[:, task_label * self.width : (task_label + 1) * self.width]


def make_model(
    input_shape: Sequence[int],
    n_outputs: int,
    *,
    seed: int,
    outputs_per_task: int | None = None,
    kind: Literal["mlp", "cnn"] = "mlp",
    hidden: Sequence[int] = (100, 100),
    bias: bool = True,
    init: Literal["torch", "he"] = "torch",
) -> nn.Module:
    """Return a network whose weights depend on ``seed`` alone; torch's global RNG is untouched.

    Args:
        input_shape: (C, H, W) or (D,) of one input.
        n_outputs: width of the output layer that serves all tasks.
        seed: of the initial weights.
        outputs_per_task: logits of one task where the task is told; None, or ``n_outputs``, where
            all tasks share them.
        kind: "mlp" has ReLU layers on the flattened input; "cnn" has three 3×3 convolutions (32,
            64, 64 channels, ReLU, 2×2 max-pooling while the image lasts) and a layer of 128, and
            refuses inputs that are no images with an OptionError.
        hidden: widths of the mlp's hidden layers.
        bias: whether layers have biases.
        init: "torch" keeps PyTorch's own; "he" draws from N(0, 2/fan_in), biases 0.

    Returns:
        The network, on the CPU and in training mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        if kind == "mlp":
            network = _mlp(math.prod(input_shape), hidden, n_outputs, bias)
        else:
            network = _cnn(input_shape, n_outputs, bias)
        if init == "he":
            _draw_he(network)
    if outputs_per_task in (None, n_outputs):
        return network
    assert outputs_per_task is not None  # for mypy, which does not read the test above
    return TaskSlice(network, outputs_per_task)


def _mlp(inputs: int, hidden: Sequence[int], outputs: int, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([inputs, *hidden]):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    last = hidden[-1] if hidden else inputs
    return nn.Sequential(*layers, nn.Linear(last, outputs, bias=bias))


def _cnn(shape: Sequence[int], outputs: int, bias: bool) -> nn.Sequential:
    if len(shape) != 3:
        raise OptionError(f"model is 'cnn' but inputs have shape {tuple(shape)}: take model 'mlp'")
    channels, height, width = shape
    layers: list[nn.Module] = []
    for out in _CHANNELS:
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=bias), nn.ReLU()]
        channels = out
        if min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * width, _DENSE, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(_DENSE, outputs, bias=bias))


def _draw_he(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
