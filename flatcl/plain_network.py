"""Fully connected networks without biases, with ReLUs, and their step of plain SGD."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from flatcl.seeds import derive_seed


def plain_network(widths: Sequence[int], *, seed: int) -> nn.Sequential:
    """Return the network at its initial weights, PyTorch's own, drawn from a seed of their own.

    Args:
        widths: of inputs, hidden layers and outputs.
        seed: of the weights; torch's global random state is untouched.

    Returns:
        Linear layers without biases and ReLUs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def descend_(
    weights: list[Tensor],
    x: Tensor,
    y: Tensor,
    lr: float,
    *,
    keep: Tensor | None = None,
    decay: float = 0.0,
) -> tuple[Tensor, list[Tensor]]:
    """Make one step of SGD on the cross-entropy of linear layers with ReLUs between them.

    By hand: for a network this small autograd costs more than the arithmetic.

    Args:
        weights: a matrix [out, in] a layer; changed in place.
        x: [B, in], in the weights' dtype.
        y: [B], classes.
        lr: η.
        keep: dropout of the first hidden layer: what its activities are multiplied with
            [B, hidden], 0 or 1/(1 − p).
        decay: β of the loss β|w|²/2 that is added.

    Returns:
        The minibatch's mean loss, nats, and its gradients before the step, one a layer, both
        without the decay's part.
    """
    activities = [x]
    for place, w in enumerate(weights[:-1]):
        a = (activities[-1] @ w.T).clamp_min_(0.0)
        activities.append(a if place or keep is None else a.mul_(keep))
    logs = (activities[-1] @ weights[-1].T).log_softmax(1)
    loss = nll_loss(logs, y)
    error = logs.exp_()
    error[torch.arange(len(y)), y] -= 1.0
    error /= len(y)
    gradients = []
    for place in range(len(weights) - 1, -1, -1):
        w, a = weights[place], activities[place]
        gradients.append(error.T @ a)
        if place:
            error = (error @ w).mul_(a > 0)
            if place == 1 and keep is not None:
                error.mul_(keep)
    gradients.reverse()
    if decay:
        torch._foreach_mul_(weights, 1.0 - lr * decay)
    torch._foreach_add_(weights, gradients, alpha=-lr)
    return loss, gradients
