"""Activity–weight duality: the generalisation gap of a layer, direction by direction.

A change of a layer's input has the same effect as a change of its weights; the test samples are
therefore moves of the weights about the training samples, and the gap between test and training
loss is a sum over directions in weight space of sharpness times size. Source: Feng, Zhang and Tu,
Nature Machine Intelligence 5, 908 (2023), arXiv 2203.10736.
"""

from __future__ import annotations

from flatcl.duality.constraint import dual_energies
from flatcl.duality.decomposition import Decomposition, decompose
from flatcl.duality.dual import DualMoves, dual_moves
from flatcl.duality.gap import Gap, Matched, generalization_gap
from flatcl.duality.layer import DualLayer
from flatcl.duality.pairs import Pairs, nearest_pairs, random_pairs
from flatcl.fluctuations.loss import cross_entropy

__all__ = [
    "Decomposition",
    "DualLayer",
    "DualMoves",
    "Gap",
    "Matched",
    "Pairs",
    "cross_entropy",
    "decompose",
    "dual_energies",
    "dual_moves",
    "generalization_gap",
    "nearest_pairs",
    "random_pairs",
]
