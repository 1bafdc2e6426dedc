"""Avalanche's SI and LwF as they are shipped, for rows beside the repaired ones.

What is wrong with them, and what the repair is, stands at ``RepairedSI`` and ``RepairedLwF`` in
``flatcl.rivals``. Both are tuned over the grids of the repaired ones.
"""

from __future__ import annotations

from flatcl.host import ensure_avalanche
from flatcl.rivals import RIVALS as REPAIRED
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.training.plugins import LwFPlugin, SynapticIntelligencePlugin  # noqa: E402

_SI, _LWF = REPAIRED["si"], REPAIRED["lwf"]

RIVALS = (
    Rival("si-stock", _SI.hyperparameter, _SI.grid, lambda x, _: [SynapticIntelligencePlugin(x)]),
    Rival("lwf-stock", _LWF.hyperparameter, _LWF.grid, lambda x, _: [LwFPlugin(x, temperature=2)]),
)
"""SI, which on the CPU is Naive, and LwF, whose teacher stays in training mode."""
