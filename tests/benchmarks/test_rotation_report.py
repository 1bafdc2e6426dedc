"""Sentences and factors of ``benchmarks.rotation_report``, on made-up rows."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import rotation_report as report

ANGLES = (10, 20, 80, 90)
ENERGIES = {"first": 1.0, "second": 2.0, "third": 4.0}


def row(angle: int, naive: float, ldc: float) -> dict[str, Any]:
    """Energies of 1, 2 and 4 nats by layer, 3 by the linear forecast, at two classes alike."""
    layers = {
        name: {"energy": [0.9 * nats, 1.1 * nats], "move": [1.0, 2.0], "per_sample": 0.5}
        for name, nats in ENERGIES.items()
    }
    return {
        "angle": angle,
        "zero_shot": [1.0, 2.0],
        "distance": [1.0, 2.0],
        "layers": layers,
        "trained": {
            "naive": {"forgetting": [naive - 0.1, naive + 0.1], "quadratic": 3.0},
            "ldc": {"forgetting": [ldc - 0.1, ldc + 0.1], "quadratic": 3.0},
        },
    }


ROWS = [row(10, 1.0, -1.0), row(20, 1.0, 2.0), row(80, 4.0, 2.0), row(90, 4.0, 2.0)]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines()[2:]]


def test_the_ratio_says_how_many_rows_it_rests_on() -> None:
    second = "½ Δw*ᵀKΔw*, second layer"
    assert report._ratio(ROWS, second, "forgetting, Naive") == "1.25"  # of 2, 2, ½, ½
    assert report._ratio(ROWS, second, "forgetting, LDC") == "1.00 (3 of 4)"
    assert report._ratio(ROWS[:1], second, "forgetting, LDC") == "– (0 of 1)"
    assert report._ratio(ROWS, "change of the images, |Δx|²", "zero-shot") == "–"


@pytest.mark.parametrize(
    ("forecast", "factors"), [("first layer", [1, 1, 4, 4]), ("third layer", [4, 4, 1, 1])]
)
def test_too_high_and_too_low_are_off_alike(forecast: str, factors: list[float]) -> None:
    pick = report._forecasts("naive")[forecast]
    assert report._factors(ROWS, pick, "forgetting, Naive") == pytest.approx(factors)


def test_all_layers_stand_beside_the_linear_forecast_by_range_of_angle() -> None:
    found = cells(report._errors(ROWS, ANGLES))
    naive, ldc = found[:3], found[3:]
    assert [line[1] for line in naive] == ["all angles", "10° to 20°", "80° to 90°"]
    assert naive[1][2:5] == ["2 of 2", "1.00, 1.0", "2.00, 2.0"]
    assert naive[1][5].startswith("4.00")
    assert naive[1][6].startswith("3.00")
    assert naive[2][3].startswith("4.00")
    assert naive[2][6].startswith("1.33")
    assert [line[2] for line in ldc] == ["3 of 4", "1 of 2", "2 of 2"]


def test_the_conclusion_counts_layers() -> None:
    """To 20° the linear forecast is off by 3, the layers by 1, 2, 4; above by 4/3 and 4, 2, 1."""
    said = report._sentences(ROWS, ANGLES)
    assert "2 of 3 layers over 10° to 20°" in said
    assert "1 of 3 layers over 80° to 90°" in said
    fell = report._nearer([row(10, 1.0, -1.0), row(90, 1.0, -1.0)], (10, 90))
    assert "Naive's forgetting in 2 of 3 layers over all angles" in fell
    assert "LDC" not in fell
