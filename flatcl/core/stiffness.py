"""From the fluctuation of gradients to stiffness k, in nats/w².

Regime of every formula here: a likelihood loss, gradients at (nearly) fixed weights. There the
per-sample gradient covariance C is the Fisher matrix and, near a minimum, the Hessian H, so that
directions of large gradient variance are the sharp ones: the *inverse* variance–flatness relation
at the level of a single step, where it needs no equilibrium and no time window.

Source: Feng & Tu, PNAS 118 (2021) e2015617118, for the relation. Departure: they read variances of
weights over a window; a window blends memory and drift into the variance, one step does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.moments import EigenMoments
from flatcl.errors import StateError


def stiffness_from_training(moments: EigenMoments) -> Tensor:
    """Return k = B · Var(g_B), from gradients of batch means recorded with weight B.

    Var is taken about the mean gradient: E[g_B²] = C/B + ḡ² (1/B-free), so that with the mean
    removed k is C whatever the batch size. Σ_t B_t (g_t − ḡ)² / (n − 1) allows for a smaller last
    batch. Regime: any optimiser, since the gradient is read and not the increment; for plain SGD
    g = −Δ/η.

    Args:
        moments: of n ≥ 2 gradients of the mean loss, each with its batch size as weight.

    Returns:
        k, in the coordinates' shape, ≥ 0, nats/w².

    Raises:
        StateError: fewer than two gradients were recorded.
    """
    if moments.count < 2:
        raise StateError(
            f"{moments.count} training gradients were recorded in the task's last part, need 2: "
            'train longer, or use source="probe"'
        )
    spread = moments.second_moment() - moments.squared_sum() / moments.weight
    return (spread / (moments.count - 1)).clamp_min(0.0)


def stiffness_from_probe(moments: EigenMoments, inputs: int) -> Tensor:
    """Return k = ⟨Σ z²⟩ per input, from probe gradients of batch *sums*.

    With independent random output directions r_n of covariance R, the cross terms of a batch sum
    G = Σ_n J_nᵀ r_n vanish in expectation, so E[G Gᵀ] = Σ_n J_nᵀ R J_n: a batch gradient is an
    unbiased draw of the batch's summed curvature, and no per-sample gradient is needed.

    Args:
        moments: of the probe's gradients, each with weight 1.
        inputs: number of inputs that they cover.

    Returns:
        k, in the coordinates' shape, ≥ 0, nats/w².

    Raises:
        StateError: nothing was recorded.
    """
    if moments.count < 1 or inputs < 1:
        raise StateError("the probe saw no input: pass the task's batches to end_task")
    return moments.second_moment() / inputs


def damp(stiffness: Tensor, damping: float, basis: KroneckerBasis | None = None) -> Tensor:
    """Return k with a share of its mean over outputs added to every output direction.

    An input direction that matters to the units that are active matters, in part, to the silent
    ones too: their gradient is zero now, but they may switch on in a later task.

    Args:
        stiffness: k [out, in], nats/w².
        damping: δ ≥ 0.
        basis: of k; a pooled output coordinate counts for all of its directions.

    Returns:
        k + δ ⟨k⟩_out, [out, in].
    """
    if basis is None or not basis.pooled_out:
        return stiffness + damping * stiffness.mean(0, keepdim=True)
    out, _ = basis.directions()
    return stiffness + damping * (out @ stiffness / out.sum())


OutputDraw = Callable[[Tensor, float, torch.Generator], Tensor]
"""Maps outputs [..., C], a scale and a CPU generator to random directions r [..., C]."""


def output_directions(outputs: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return random directions in output space, one a row, that do not depend on the labels.

    r = scale · (ε − mean ε), ε ~ N(0, 1): a shift of all logits does not change a softmax, so
    the mean is taken out. With a single output r = scale · ε / √2, which is what the two-logit
    softmax (z, 0) gives the logit z.

    Args:
        outputs: [..., C], the network's outputs.
        scale: standard deviation; covariance of r is scale² (I − 11ᵀ/C).
        generator: on the CPU; the draw is moved to the outputs' device.

    Returns:
        [..., C], in the outputs' dtype.
    """
    noise: Tensor = torch.randn(outputs.shape, generator=generator).to(outputs)
    if outputs.shape[-1] == 1:
        alone: Tensor = noise * (scale * 0.5**0.5)
        return alone
    centred: Tensor = noise - noise.mean(-1, keepdim=True)
    return centred * scale


def label_directions(outputs: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return the loss's gradients at the outputs, one a row, for labels that the network predicts.

    r = p − e_y with y ~ p = softmax(outputs): zero mean and covariance diag p − ppᵀ, so that the
    gradients' second moment is the Fisher matrix, which for a softmax is the Gauss–Newton Hessian
    too. A single output is a logit: r = p − y, p its sigmoid. True labels in y's place would give
    the empirical Fisher, which vanishes with the loss; so does this one, more slowly.

    Args:
        outputs: [..., C], logits.
        scale: unused: the loss has a unit of its own.
        generator: on the CPU; the draw is moved to the outputs' device.

    Returns:
        [..., C], in the outputs' dtype.
    """
    uniform: Tensor = torch.rand(outputs[..., :1].shape, generator=generator).to(outputs)
    if outputs.shape[-1] == 1:
        p = outputs.sigmoid()
        return p - (uniform < p).to(p)
    p = outputs.softmax(-1)
    label = (p.cumsum(-1) < uniform).sum(-1, keepdim=True).clamp_max(outputs.shape[-1] - 1)
    return p.scatter_add(-1, label, -torch.ones_like(label, dtype=p.dtype))
