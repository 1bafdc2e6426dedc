"""LDC beside a replay buffer: what samples add to it, and it to them."""

from __future__ import annotations

from flatcl.avalanche import LDCPlugin
from flatcl.host import ensure_avalanche
from flatcl.rivals import RIVALS as _BUILT_IN
from flatcl.rivals import Rival

ensure_avalanche()

from avalanche.training.plugins import SupervisedPlugin  # noqa: E402


def _plugins(_: float, memory: int) -> list[SupervisedPlugin]:
    return [*_BUILT_IN["replay"].own_plugins(0.0, memory), LDCPlugin()]


RIVAL = Rival("ldc-replay", None, (), _plugins, stores_data=True)
