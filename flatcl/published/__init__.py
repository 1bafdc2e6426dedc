"""LDC as published: a few directions of the whole network, held by their measured flatness.

L̃ = L + λ Σ_t Σ_{i ≤ N_c} [p_{t,i} · (w − w_t)]² / F_{t,i}²: p_i the principal directions of largest
variance of the weights near the end of task t, F_i the two-sided distance over which the loss is
below e times its value L₀ at w_t.

Source: Y. Feng, Y. Tu, PNAS 118 (2021) e2015617118, the section on continual learning. What the
source leaves open, or could not be checked, and what is done here:

- λ, N_c, the constrained layers, and more than two tasks. Here ``PublishedOptions``: all layers,
  and a plain sum over tasks. On an exact quadratic with all directions the penalty is
  λ (L_t(w) − L₀) / (4 (e − 1) L₀): λ has hidden units of L₀, so that tasks which ended at different
  losses are weighted differently, and one λ cannot fit all streams.
- Directions whose profile does not reach e L₀ on one side within the reach (ten times the weights'
  norm): their F is at least the reach, and they are left free.
- The penalty acts through exact proximal steps, every few optimiser steps, in the optimiser's own
  metric, and not through the gradient, which diverges for sharp directions at a useful λ.
"""

from flatcl.published.constraint import PublishedLDC
from flatcl.published.landscape import PublishedLandscape
from flatcl.published.options import PublishedOptions

__all__ = ["PublishedLDC", "PublishedLandscape", "PublishedOptions"]
