"""A spectrum's summaries on spectra that are known."""

from __future__ import annotations

import pytest
import torch

from flatcl import exact
from flatcl.errors import DataError, OptionError
from flatcl.fluctuations import participation_ratio, power_law, variance_share


def test_participation_ratio_counts_equal_directions():
    assert participation_ratio(torch.ones(7)) == pytest.approx(7.0)
    assert participation_ratio(torch.tensor([5.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert participation_ratio(torch.tensor([2.0, 1.0])) == pytest.approx(9 / 5)
    with pytest.raises(DataError, match="does not move"):
        participation_ratio(torch.zeros(3))


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
def test_a_planted_power_law_is_found_in_its_range_only(gamma):
    ranks = torch.arange(1, 201, dtype=torch.float64)
    v = ranks**-gamma
    v[:19] = 1e6  # what lies outside the range does not count
    fit = power_law(v, first=20, last=200)
    assert fit.gamma == pytest.approx(gamma, rel=1e-10)
    assert fit.standard_error < 1e-10
    assert (fit.first, fit.last) == (20, 200)


def test_the_interval_of_a_noisy_law_covers_it():
    g = torch.Generator().manual_seed(0)
    ranks = torch.arange(1, 101, dtype=torch.float64)
    hits = 0
    for _ in range(200):
        v = ranks**-2.0 * torch.exp(0.3 * torch.randn(100, generator=g, dtype=torch.float64))
        fit = power_law(v, first=1, last=100)
        hits += abs(fit.gamma - 2.0) < 1.96 * fit.standard_error
    assert 180 <= hits <= 200
    assert fit.residual == pytest.approx(0.3, rel=0.3)


def test_a_random_walk_has_the_power_law_too():
    spectrum = torch.from_numpy(exact.walk_spectrum(12_000))
    assert power_law(spectrum, first=20, last=1000).gamma == pytest.approx(2.0, abs=0.01)
    share = variance_share(spectrum, first=2, last=16, total=float(spectrum.sum()))
    assert share == pytest.approx(0.9, abs=0.01)


def test_ranges_outside_the_spectrum_are_refused():
    v = torch.tensor([3.0, 2.0, 1.0, 0.0])
    for first, last in ((0, 2), (3, 2), (1, 5)):
        with pytest.raises(OptionError, match="of 4 variances"):
            power_law(v, first=first, last=last)
        with pytest.raises(OptionError, match="of 4 variances"):
            variance_share(v, first=first, last=last, total=6.0)
    with pytest.raises(OptionError, match="fewer than 3"):
        power_law(v, first=1, last=2)
    with pytest.raises(DataError, match="is 0"):
        power_law(v, first=1, last=4)
