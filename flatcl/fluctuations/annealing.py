"""Temperature and flatness through one training: does SGD cool itself as it descends?

Source: Feng & Tu, PNAS 118 (2021), call it self-tuned annealing: the effective temperature is high
where the loss is high and the valley narrow, and falls on the way to flat minima.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatcl.fluctuations.bases import hessian_directions
from flatcl.fluctuations.flatness import flatness
from flatcl.fluctuations.noise import Sampling, effective_temperature, gradient_noise
from flatcl.fluctuations.surface import LossSurface


@dataclass(frozen=True)
class Stage:
    """One moment of a training, along its k sharpest directions at that moment.

    Attributes:
        loss: over the surface's data, nats.
        curvature: [k], h, by falling size, nats/w².
        temperature: [k], T_i = η C_ii / 2, nats.
        width: [k], F, w; NaN where a side is censored.
    """

    loss: float
    curvature: Tensor
    temperature: Tensor
    width: Tensor


def annealing(
    surfaces: Sequence[LossSurface],
    *,
    k: int,
    lr: float,
    batch_size: int,
    sampling: Sampling = "shuffle",
    seed: int = 0,
) -> list[Stage]:
    """Return temperature and flatness at several moments of one training.

    Along the leading eigenvectors of each moment's own Hessian: temperatures are of frozen weights,
    so that no trajectory enters.

    Args:
        surfaces: the loss on the same data, the network at each moment's weights.
        k: directions.
        lr: η.
        batch_size: B.
        sampling: of the samples of a batch.
        seed: of Lanczos' first vector.

    Returns:
        One stage a surface.
    """
    stages = []
    for surface in surfaces:
        generator = torch.Generator().manual_seed(seed)
        found = hessian_directions(surface, k, generator=generator)
        noise = gradient_noise(surface, found.vectors, batch_size=batch_size, sampling=sampling)
        valley = flatness(surface, found.vectors)
        temperature = effective_temperature(noise, lr=lr)
        stages.append(Stage(valley.loss, found.values, temperature, valley.width))
    return stages
