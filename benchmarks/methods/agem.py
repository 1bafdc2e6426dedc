"""A-GEM: no step may raise the loss on a memory of earlier samples, to first order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.methods._passes import task_batches
from benchmarks.methods._weights import flat, gradient_of, trainable
from flatcl.host import ensure_avalanche
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.models import avalanche_forward  # noqa: E402
from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """Return the gradient nearest to the given one whose dot product with a reference is not < 0.

    Source: Chaudhry et al. 2019, arXiv 1812.00420, eq. 11.

    Args:
        gradient: g [P].
        reference: r [P].

    Returns:
        ``g − (g·r / r·r) r`` where g·r < 0, else g itself.
    """
    dot = gradient @ reference
    if dot >= 0:
        return gradient
    return gradient - dot / (reference @ reference) * reference


class AGEM(SupervisedPlugin):
    """Averaged gradient episodic memory, with as many samples in all whatever the tasks.

    After every task each task met so far has an equal share of the memory, the first ones one more
    where it does not divide; what is dropped is random, as what is taken. The reference gradient
    is that of the training loss, in training mode, on a random draw of the batch size from the
    whole memory. Weights that the current loss does not reach take part with gradient 0.

    Source: Chaudhry et al. 2019, arXiv 1812.00420, algorithm 2. Departures: the number of tasks
    is not known ahead, so that shares shrink as tasks come; the reference batch is as large as the
    training batch, because the memory is small. Avalanche 0.6.0's plugin has a memory that grows
    with the tasks, fails once they outnumber the reference batch and cannot be saved.

    Args:
        memory: samples kept in all, ≥ 1.
    """

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory = memory
        self.counts: list[int] = []
        self.samples: Sequence[Tensor] = ()

    def after_backward(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Project the gradient, from the second task on.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        if not self.counts:
            return
        weights = trainable(strategy.model)
        chosen = torch.randperm(sum(self.counts))[: len(strategy.mb_y)]
        x, y, t = (part[chosen].to(strategy.device) for part in self.samples)
        with torch.enable_grad():
            loss = strategy._criterion(avalanche_forward(strategy.model, x, t), y)
        parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        gradient = gradient_of(strategy.model)
        projected = project(gradient, flat(parts))
        if projected is gradient:
            return
        pieces = torch.split(projected, [weight.numel() for weight in weights])
        for weight, piece in zip(weights, pieces, strict=True):
            weight.grad = piece.view_as(weight).clone()

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Take samples of the task, and drop as many of the others.

        Args:
            strategy: the strategy that trains.
            **kwargs: unused.
        """
        tasks = len(self.counts) + 1
        share, more = divmod(self.memory, tasks)
        shares = [share + (task < more) for task in range(tasks)]
        kept = list(zip(*(torch.split(part, self.counts) for part in self.samples), strict=True))
        if shares[-1] > 0:
            x, y, *_, t = next(task_batches(strategy, shares[-1], count=shares[-1]))
            kept.append((x, y, t))
        else:
            kept.append(tuple(part[:0] for part in self.samples))
        kept = [
            tuple(part[:most] for part in parts) for parts, most in zip(kept, shares, strict=True)
        ]
        self.counts = [len(parts[0]) for parts in kept]
        self.samples = tuple(torch.cat(parts) for parts in zip(*kept, strict=True))


RIVAL = Rival("agem", None, (), lambda _, memory: [AGEM(memory)], stores_data=True)
