"""What knobs do, on made-up rows with known answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flatcl.generalize_effects import effects, left_out, levels
from flatcl.generalize_summary import (
    correlations_table,
    effects_table,
    facts_of,
    levels_table,
    networks,
    rank_correlations,
)


def row(knob: str, value: float, gap: float, *, seed: int = 0, **changed: Any) -> dict[str, Any]:
    """A network whose factors are all 1 but for what is changed; seeds differ by a little."""
    found: dict[str, Any] = {
        "knob": knob, "value": value, "seed": seed, "status": "done", "reached": True,
        "epochs": 10, "gap": gap * (1 + seed / 1000), "matched_gap": gap, "sharpness": 1.0,
        "size": 1.0, "correlation": 0.5, "product": 1.0, "weight_norm": 1.0, "trace": 1.0,
        "margin": 1.0, "share_of_means": 0.0, "correlation_null": 0.25, "correlation_spread": 0.0,
        "ratio": 1.0, "ratio_top": 1.0, "ratio_null": 1.0, "share_top": 1.0,
        "rank_correlation_curvature": 0.0, "expansion_error": 0.0,
    }  # fmt: skip
    return found | changed


def knob(name: str, gaps: dict[float, float], **changed: Any) -> list[dict[str, Any]]:
    seeds = (0, 1, 2)
    return [row(name, v, gap, seed=s, **changed) for v, gap in gaps.items() for s in seeds]


@pytest.mark.parametrize("name", ["weight decay", "dropout"])
def test_the_zero_of_a_regulariser_is_left_out(name: str) -> None:
    """Off to on raises the gap fourfold; among the values that are on it falls."""
    rows = knob(name, {0: 1.0}) + knob(name, {0.1: 4.0, 0.2: 3.0, 0.3: 2.0}, epochs=200)
    (found,) = effects(rows)
    assert (found.first, found.last) == (0.1, 0.3)
    assert found.changes["gap"].mean == pytest.approx(math.log(0.5))
    assert found.changes["gap"].sign == -1
    assert found.monotone
    (said,) = left_out(rows)
    assert f"{name.capitalize()} 0 is not compared" in said
    assert "10 epochs on average, with it 200" in said


def test_the_zero_of_another_knob_is_its_smallest_value() -> None:
    rows = knob("label noise", {0: 1.0, 0.1: 2.0})
    (found,) = effects(rows)
    assert (found.first, found.last) == (0, 0.1)
    assert left_out(rows) == []


def test_a_regulariser_with_one_value_has_nothing_to_be_compared_with() -> None:
    rows = knob("dropout", {0: 1.0, 0.1: 2.0})
    assert effects(rows) == []
    assert "nothing to compare" in left_out(rows)[0]
    assert left_out(knob("dropout", {0.1: 1.0, 0.2: 2.0})) == []
    assert left_out(knob("dropout", {0: 1.0})) == []


@pytest.mark.parametrize(
    ("gaps", "monotone"),
    [((1, 2, 3), True), ((3, 2, 1), True), ((2, 1, 3), False), ((1, 1, 2), True)],
)
def test_a_gap_that_turns_is_not_monotone(gaps: tuple[float, ...], monotone: bool) -> None:
    (found,) = effects(knob("batch size", dict(enumerate(gaps, 1))))
    assert len(found.steps) == 2
    assert found.monotone is monotone
    assert effects_table([found]).splitlines()[-1].endswith("yes |" if monotone else " no |")


def test_a_turn_within_the_interval_counts_for_nothing() -> None:
    gaps = {1: (1.0, 1.0), 2: (0.9, 1.1), 3: (3.0, 3.0)}
    rows = [
        row("learning rate", v, g, seed=s) for v, two in gaps.items() for s, g in enumerate(two)
    ]
    (found,) = effects(rows)
    assert found.steps[0].sign == 0
    assert found.monotone


@pytest.mark.parametrize(
    ("changed", "through"),
    [
        ({"sharpness": 2.0}, "sharpness"),
        ({"size": 2.0, "sharpness": 0.5}, "size"),
        ({"correlation": 0.7}, "c"),
        ({"sharpness": 2.0, "correlation": 0.7}, "sharpness, c"),
        ({"sharpness": 2.0, "size": 2.0, "correlation": 0.7}, "sharpness, size, c"),
        ({"size": 0.5}, "none of them"),
    ],
)
def test_the_gap_moves_through_what_goes_its_way(changed: dict[str, float], through: str) -> None:
    rows = knob("batch size", {1: 1.0}) + knob("batch size", {2: 2.0}, **changed)
    (found,) = effects(rows)
    assert found.through == through
    still = knob("batch size", {1: 1.0}) + knob("batch size", {2: 1.0}, **changed)
    assert effects(still)[0].through == "no change of the gap"


def test_every_value_has_its_means_and_its_step() -> None:
    rows = knob("dropout", {0: 1.0}) + knob("dropout", {0.1: 4.0}, epochs=200)
    rows[0]["correlation"] = None
    rows += [row("dropout", 0.1, 9.0, seed=9, reached=False)]
    off, on = levels(rows)
    assert (off.value, off.networks, off.step) == (0, 3, None)
    assert off.means["gap"] == pytest.approx(1.001)
    assert off.means["correlation"] == 0.5
    assert (on.networks, on.means["epochs"]) == (3, 200)
    assert on.step is not None
    assert on.step.mean == pytest.approx(math.log(4))
    assert "× 4.00" in levels_table([off, on])


def test_c_is_among_the_measures_and_a_network_counts_once() -> None:
    rows = [
        row("batch size", n, float(n), correlation=0.1 * n, size=float(-n), seed=n)
        for n in range(1, 6)
    ]
    rows.append(rows[0] | {"knob": "dropout", "value": 0})
    assert len(networks(rows)) == 5
    found = rank_correlations(rows)
    assert found["correlation"] == pytest.approx(1)
    assert found["size"] == pytest.approx(-1)
    assert math.isnan(found["sharpness"])  # does not vary
    rows[1]["correlation"] = None
    found = rank_correlations(rows)
    assert found["correlation"] == pytest.approx(1)
    assert found["size"] == pytest.approx(-1)
    (line,) = (one for one in correlations_table(rows).splitlines() if "c alone" in one)
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["c alone", "4", "1.00"]


def test_the_extent_of_c_is_told_beside_its_null() -> None:
    rows = [row("batch size", n, 1.0, correlation=0.1 * n, seed=n) for n in (2, 4)]
    (said,) = (fact for fact in facts_of(rows) if fact.startswith("c is"))
    assert "0.30 on average, over networks from 0.20 to 0.40" in said
    assert "(the null) it is 0.25" in said
