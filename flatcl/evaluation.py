"""Accuracy and loss of a model on each experience, each experience counting as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from flatcl.datasets import ExperienceData
from flatcl.errors import DataError, NonFiniteError
from flatcl.host import ensure_avalanche

ensure_avalanche()
from avalanche.models import avalanche_forward  # noqa: E402


class Judgement(NamedTuple):
    """What a model is worth on one experience.

    Attributes:
        accuracy: share of samples whose largest output is the target, 0 … 1.
        loss: mean cross-entropy, nats; infinite where a target has no output yet.
    """

    accuracy: float
    loss: float


def accuracy_row(
    model: nn.Module,
    experiences: Iterable[Any],
    *,
    device: torch.device | str,
    batch_size: int = 1024,
) -> list[float]:
    """Return the accuracy on each experience, 0 … 1, in the order given; see ``judge``.

    Args:
        model: called as Avalanche calls it, with the task labels if it takes them.
        experiences: Avalanche experiences, such as a benchmark's ``test_stream``.
        device: where the model is.
        batch_size: samples evaluated at once.

    Returns:
        One accuracy an experience: the share of samples whose largest output is the target.
    """
    found = judge(model, experiences, device=device, batch_size=batch_size)
    return [one.accuracy for one in found]


@torch.no_grad()
def judge(
    model: nn.Module,
    experiences: Iterable[Any],
    *,
    device: torch.device | str,
    batch_size: int = 1024,
) -> list[Judgement]:
    """Return what the model is worth on each experience, in the order given.

    The model is in evaluation mode meanwhile; each module's own mode is restored. An experience
    without samples is a DataError; a largest output that is NaN or infinite, from which no class
    can be read, a NonFiniteError.

    Args:
        model: called as Avalanche calls it, with the task labels if it takes them.
        experiences: Avalanche experiences, such as a benchmark's ``test_stream``.
        device: where the model is.
        batch_size: samples evaluated at once.

    Returns:
        Accuracy and loss of each.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return [
            _judged(model, experience.dataset, number, torch.device(device), batch_size)
            for number, experience in enumerate(experiences)
        ]
    finally:
        for module, mode in modes:
            module.training = mode


def _judged(
    model: nn.Module, data: Any, number: int, device: torch.device, batch_size: int
) -> Judgement:
    if len(data) == 0:
        raise DataError(f"experience {number} has no samples: give it at least one")
    hits = torch.zeros((), dtype=torch.int64, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for batch in _batches(data.eval(), batch_size):
        x, y, labels = (batch[place].to(device) for place in (0, 1, -1))
        outputs = avalanche_forward(model, x, labels)
        best, guess = outputs.max(1)
        if int(y.max()) < outputs.shape[1]:
            total += F.cross_entropy(outputs, y, reduction="sum")
        else:  # a head that has still to grow
            total += torch.inf
        hits += (guess == y).sum()
        finite &= best.isfinite().all()
    if not finite:
        raise NonFiniteError(
            f"the model's outputs on experience {number} are NaN or infinite: "
            f"training diverged, lower the learning rate"
        )
    return Judgement(int(hits) / len(data), float(total) / len(data))


def _batches(data: Any, batch_size: int) -> Iterable[Sequence[Tensor]]:
    if isinstance(data, ExperienceData):
        return data.feed(batch_size)
    return DataLoader(data, batch_size=batch_size, collate_fn=data.collate_fn)
