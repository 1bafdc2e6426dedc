"""Noise of minibatch gradients at frozen weights, its temperature, and trajectories made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from flatcl.errors import NonFiniteError, OptionError
from flatcl.exact import frozen_variance
from flatcl.fluctuations.surface import LossSurface

SHARPEST = 10
"""Directions, from the sharpest on, that a force is looked for in."""

_TOGETHER = 256  # minibatches whose gradients are taken at once

Sampling = Literal["shuffle", "replacement"]
"""How minibatches are drawn: each epoch deals all samples in a new order, or independently."""


def gradient_noise(
    surface: LossSurface,
    directions: Tensor,
    *,
    batch_size: int,
    sampling: Sampling = "shuffle",
    centre: Tensor | None = None,
) -> Tensor:
    """Return the variance of the minibatch gradient along each direction, at frozen weights.

    Exact, from every sample's own derivative: C_ii = S_ii/B, S the samples' covariance, and times
    (N − B)/(N − 1) where a batch has no sample twice. It is one batch's variance: the
    anti-correlation of batches within an epoch is not in it.

    Args:
        surface: the loss over all N samples.
        directions: [k, P], of unit norm.
        batch_size: B.
        sampling: of the samples of a batch.
        centre: [P], w; the model's weights if None.

    Returns:
        [k], float64, nats²/w².

    Raises:
        OptionError: B is not between 1 and N, or sampling is unknown.
    """
    N = len(surface)
    if not 1 <= batch_size <= N:
        raise OptionError(f"batch_size is {batch_size}; the surface has {N} samples")
    if sampling not in {"shuffle", "replacement"}:
        raise OptionError(f"sampling is {sampling!r}: give 'shuffle' or 'replacement'")
    point = surface.reference if centre is None else centre
    slopes = surface.sample_slopes(point, directions).double()
    variance = slopes.var(1, unbiased=False) / batch_size
    if sampling == "shuffle" and N > 1:
        variance *= (N - batch_size) / (N - 1)
    return variance


def effective_temperature(noise: Tensor, *, lr: float) -> Tensor:
    """Return T_i = η C_ii / 2, the temperature at which a Langevin force would be as strong.

    Source: Feng & Tu, PNAS 118 (2021), T_i(δθ) = (η/2) ⟨(∂δL/∂δθ)²⟩.

    Args:
        noise: C_ii [...], variance of the minibatch gradient, nats²/w².
        lr: η, w²/nats.

    Returns:
        [...], nats.
    """
    return 0.5 * lr * noise


def temperature_profile(
    surface: LossSurface,
    direction: Tensor,
    offsets: Tensor,
    *,
    lr: float,
    batch_size: int,
    centre: Tensor | None = None,
) -> Tensor:
    """Return the effective temperature along a line through the centre.

    Args:
        surface: the loss.
        direction: [P], of unit norm.
        offsets: [n], displacements, w.
        lr: η.
        batch_size: B.
        centre: [P], w; the model's weights if None.

    Returns:
        T(δθ) [n], nats.
    """
    centre = surface.reference if centre is None else centre.to(surface.reference)
    found = [
        gradient_noise(
            surface,
            direction[None],
            batch_size=batch_size,
            centre=centre + offset * direction.to(centre),
        )[0]
        for offset in offsets.to(centre)
    ]
    return effective_temperature(torch.stack(found), lr=lr)


def noise_alone(noise: Tensor, *, lr: float, steps: int, batches: int | None = None) -> Tensor:
    """Return the variances that noise gives along directions when no landscape holds the weights.

    In closed form, ``exact.frozen_variance``, for directions that are not chosen by the window;
    ``frozen_walk`` has it for a window's own principal directions. σ² below it is a force's doing.

    Args:
        noise: C_ii [k], variance of the minibatch gradient, nats²/w².
        lr: η.
        steps: T, of the window.
        batches: M of an epoch that deals all samples anew; None for independent batches.

    Returns:
        [k], w², about the window's mean.
    """
    return noise * frozen_variance(1.0, lr=lr, window=steps, batches=batches)


def over_noise(variances: Tensor, alone: Tensor) -> float:
    """Return how large variances are beside those of noise alone, in the first directions.

    Args:
        variances: σ² [k], w², sharpest direction first.
        alone: of ``noise_alone`` [k], w².

    Returns:
        Geometric mean of the first ``SHARPEST`` ratios, below 1 where a force holds the sharp
        directions; NaN where one of them does not move.
    """
    return float((variances[:SHARPEST] / alone[:SHARPEST]).log().mean().exp())


def frozen_walk(
    surface: LossSurface,
    *,
    lr: float,
    batch_size: int,
    steps: int,
    generator: torch.Generator,
    sampling: Sampling = "replacement",
    every: int = 1,
    centre: Tensor | None = None,
) -> Tensor:
    """Return the trajectory that SGD's noise makes when no landscape holds the weights.

    w(t+1) = w(t) − η (g_B − ∇L), both gradients at the frozen centre: the trajectory has the noise
    of SGD, and no restoring force. What it shows, no landscape caused. With independent batches it
    is a random walk; where each epoch deals all samples anew, it returns at each epoch's end.

    Args:
        surface: the loss; float32 will do.
        lr: η.
        batch_size: B.
        steps: T · every.
        generator: of the batches, on the CPU.
        sampling: of the batches; of an epoch's last samples those that fill no batch are left out.
        every: steps between the points returned.
        centre: [P], w; the model's weights if None.

    Returns:
        [T, P], w, in the surface's dtype.

    Raises:
        OptionError: a number is below 1, every above steps, or no batch can be dealt.
    """
    if batch_size < 1 or not 1 <= every <= steps:
        raise OptionError(
            f"batch_size {batch_size}, steps {steps}, every {every}: all must be 1 or more, every "
            "at most steps"
        )
    if sampling == "shuffle" and batch_size > len(surface):
        raise OptionError(f"batch_size is {batch_size}; the surface has {len(surface)} samples")
    centre = surface.reference if centre is None else centre.to(surface.reference)
    mean = surface.gradient(centre)
    path = centre.new_empty(steps // every, surface.size)
    batches = _dealt(len(surface), batch_size, sampling, generator)
    place = torch.zeros_like(centre)
    for start in range(0, steps, _TOGETHER):
        most = min(_TOGETHER, steps - start)
        chosen = torch.stack([next(batches) for _ in range(most)]).to(centre.device)
        moves = surface.minibatch_gradients(centre, chosen).sub_(mean).mul_(-lr)
        part = moves.cumsum_(0).add_(place)
        place = part[-1].clone()
        kept = part[every - 1 - start % every :: every]
        path[start // every : start // every + len(kept)] = kept
    return path.add_(centre)


def _dealt(
    samples: int, batch_size: int, sampling: Sampling, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield batches of sample numbers [B], without end."""
    while True:
        if sampling == "replacement":
            yield torch.randint(samples, (batch_size,), generator=generator)
            continue
        order = torch.randperm(samples, generator=generator)
        yield from (
            order[b : b + batch_size] for b in range(0, samples - batch_size + 1, batch_size)
        )


def langevin(
    surface: LossSurface,
    *,
    lr: float,
    temperature: float,
    steps: int,
    burn_in: int,
    generator: torch.Generator,
    centre: Tensor | None = None,
) -> Tensor:
    """Return a trajectory of gradient descent with isotropic white noise, σ² = T/h in theory.

    w ← w − η (∇L(w) − ∇L(centre)) + √(2ηT) ξ, the block's full gradient over the surface's data.
    Without the constant tilt −∇L(centre) the slow descent of a network that is not quite at its
    minimum would swamp a small temperature.

    Args:
        surface: the loss; a fixed subset of the data will do if the Hessian is of the same.
        lr: η, below 2 / h of every direction.
        temperature: T, nats.
        steps: recorded, after the burn-in.
        burn_in: steps before.
        generator: of ξ, on the CPU.
        centre: [P], w; the model's weights if None.

    Returns:
        [steps, P], w, in the surface's dtype.

    Raises:
        NonFiniteError: the trajectory diverged.
    """
    centre = surface.reference if centre is None else centre.to(surface.reference)
    tilt = surface.gradient(centre)
    size = (2.0 * lr * temperature) ** 0.5
    w, path = centre.clone(), centre.new_empty(steps, surface.size)
    for t in range(-burn_in, steps):
        kick = torch.randn(surface.size, generator=generator).to(w)
        w = w.add(surface.gradient(w).sub_(tilt), alpha=-lr).add_(kick, alpha=size)
        if t >= 0:
            path[t] = w
    if not bool(torch.isfinite(path[-1]).all()):
        raise NonFiniteError(f"Langevin dynamics diverged: lower lr {lr:g} or the temperature")
    return path
