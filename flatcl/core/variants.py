"""Ablated relatives of LDC: what was measured, (basis, k) of one task, changed in one respect.

Each function answers one question about the default: does the grading of stiffness matter, its
assignment to directions, its sign, the directions themselves? All but ``power`` leave a unit's
trace Σk as it is, so that one strength holds as firmly; ``power`` leaves the k-weighted mean, the
stiffness of the directions that the constraint rests on. They apply to each task's own
measurement, before it is merged with the earlier tasks' by the rule that serves the default.

The theory that they test: a displacement x raises the old loss by ½ xᵀHx, and k is H's diagonal in
a basis near its eigenbasis. A constraint of equal trace that is stiff elsewhere forbids what costs
nothing and permits what costs most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.measure import Found
from flatcl.core.merge import shared_basis, spectrum_in
from flatcl.core.options import LDCOptions

KEPT = 0.99  # share of the trace whose directions ``equal`` holds


def isotropic(stiffness: Tensor) -> Tensor:
    """Return the same stiffness in every direction: K = c I, whatever the basis.

    L2 to the old weights, layer by layer. Expected: worst of those that hold anything where
    capacity is short, since the many flat directions are held as firmly as the few sharp ones.

    Args:
        stiffness: k ≥ 0, any shape, nats/w².

    Returns:
        Its mean everywhere; trace as before.
    """
    return stiffness.mean().expand(stiffness.shape).clone()


def equal(stiffness: Tensor) -> Tensor:
    """Return one value for the stiffest directions, which hold ``KEPT`` of the trace; 0 elsewhere.

    The subspace alone counts then, as in methods that project gradients. Expected: a little worse
    than the default, which is graded; a lot would say that the grading is what matters.

    Args:
        stiffness: k ≥ 0, any shape, nats/w².

    Returns:
        0 or Σk / number kept; trace as before.
    """
    flat = stiffness.reshape(-1)
    values, order = flat.sort(descending=True, stable=True)
    sums = values.double().cumsum(0)
    kept = int((sums < KEPT * sums[-1]).sum()) + 1
    result = torch.zeros_like(flat)
    result[order[:kept]] = flat.sum() / kept
    return result.reshape(stiffness.shape)


def power(stiffness: Tensor, exponent: float) -> Tensor:
    """Return c k^p, with c such that the k-weighted mean stays: Σ k·k' = Σ k·k.

    Below 1 the flat directions are held more firmly beside the sharp ones, above 1 less. If an
    inverse power law σ² ∝ F^−ψ held with ψ = 4, a flatness-based 1/F² would be p = ½ here.
    Expected: near the default close to p = 1, and an optimum there if k is the curvature. The
    trace rises for p < 1.

    Args:
        stiffness: k ≥ 0, any shape, nats/w².
        exponent: p > 0.

    Returns:
        In the same shape, nats/w².
    """
    peak = stiffness.max()
    if float(peak) == 0.0:
        return stiffness.clone()
    u = stiffness / peak
    return u.pow(exponent) * (peak * u.square().sum() / u.pow(1.0 + exponent).sum())


def shuffled(stiffness: Tensor, generator: torch.Generator) -> Tensor:
    """Return the measured values dealt out at random to the unit's directions.

    The spectrum stays, what it belongs to does not. Expected: much worse than the default; if not,
    the measured assignment carries nothing.

    Args:
        stiffness: k ≥ 0, any shape, nats/w².
        generator: of the permutation, on the CPU.

    Returns:
        A permutation of the entries; trace as before.
    """
    order = torch.randperm(stiffness.numel(), generator=generator).to(stiffness.device)
    return stiffness.reshape(-1)[order].reshape(stiffness.shape)


def flipped(stiffness: Tensor) -> Tensor:
    """Return the values in reversed order: the flattest direction gets the largest.

    The sign of thermal equilibrium, where what moves most is free to change; assumed by Mashiach,
    Glickman & Tirer, arXiv:2507.08736 (PPAP), there from the weights' movement on a plateau.
    Expected: nothing of the old tasks is guarded, ACC near that of no constraint.

    Args:
        stiffness: k ≥ 0, any shape, nats/w².

    Returns:
        A permutation of the entries; trace as before.
    """
    flat = stiffness.reshape(-1)
    values, order = flat.sort(stable=True)
    result = torch.empty_like(flat)
    result[order] = values.flip(0)
    return result.reshape(stiffness.shape)


def random_basis(basis: KroneckerBasis, generator: torch.Generator) -> KroneckerBasis:
    """Return a Kronecker basis drawn uniformly, to carry the spectrum measured in another.

    Expected: much worse than the default, as all but a few directions of a layer are flat and a
    random one is a blend of them; near ``isotropic`` in what it guards.

    Args:
        basis: whose shape and dtype count.
        generator: of the draw, on the CPU.

    Returns:
        Orthonormal sides from the Haar measure.
    """

    def side(like: Tensor) -> Tensor:
        draw = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        Q, R = torch.linalg.qr(draw)
        # QR alone is not uniform: its signs are the algorithm's choice.
        uniform: Tensor = Q * R.diagonal().sign()
        return uniform.to(like)

    return KroneckerBasis.of_sides(side(basis.U_out), side(basis.U_in))


def varied(
    found: Found,
    held: Mapping[str, Constraint],
    options: LDCOptions,
    generator: torch.Generator,
) -> Found:
    """Return a task's measurement as the options vary it, in the basis shared with what is held.

    Args:
        found: measured in the task's own bases if ``options.varied``, else in the shared ones.
        held: constraints of the earlier tasks, by unit's name.
        options: of LDC.
        generator: of permutations and random bases, on the CPU.

    Returns:
        ``found`` itself for the default; bases and stiffness of a variant.
    """
    if not options.varied:
        return found
    bases, stiffness = dict(found.bases), {}
    for name, measured in found.stiffness.items():
        basis = bases[name]
        k = _varied_stiffness(measured, options, generator)
        if basis is not None:
            if options.directions == "random":
                basis = random_basis(basis, generator)
            if name in held:
                new = Constraint(basis, k, held[name].anchor)
                basis = shared_basis([held[name], new])
                k = spectrum_in(new, basis)
            bases[name] = basis
        stiffness[name] = k
    return replace(found, bases=bases, stiffness=stiffness)


def _varied_stiffness(k: Tensor, options: LDCOptions, generator: torch.Generator) -> Tensor:
    if options.power != 1.0:
        return power(k, options.power)
    if options.stiffness == "equal":
        return equal(k)
    if options.stiffness == "isotropic":
        return isotropic(k)
    if options.stiffness == "shuffled":
        return shuffled(k, generator)
    if options.stiffness == "flipped":
        return flipped(k)
    return k
