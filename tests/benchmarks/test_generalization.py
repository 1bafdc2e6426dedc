"""The claims' table of ``benchmarks.generalization``."""

from __future__ import annotations

import pytest

from benchmarks.generalization import claims_table
from flatcl.generalize_effects import Change, Effect

UP, DOWN, STILL = Change(0.5, 0.1, 10), Change(-0.5, 0.1, 10), Change(0.0, 0.1, 10)


@pytest.mark.parametrize(
    ("gap", "steps", "said"),
    [
        (DOWN, (DOWN, DOWN), "down ✓"),
        (UP, (UP, STILL), "up ✗"),
        (STILL, (DOWN, UP), "neither ✗, not monotone"),
    ],
)
def test_a_mark_follows_the_change_and_a_turn_is_told(
    gap: Change, steps: tuple[Change, ...], said: str
) -> None:
    changes = {"gap": gap, "sharpness": UP, "size": DOWN, "correlation": STILL}
    table = claims_table([Effect("weight decay", 0.001, 0.01, changes, steps)])
    cells = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert cells == ["weight decay up", "down", said, "up", "up ✓", "down", "down ✓"]
