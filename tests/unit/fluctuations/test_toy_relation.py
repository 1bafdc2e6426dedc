"""Known answer 18 in a window: ψ by closed form where τ is short, and PCA's excess over it."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from benchmarks import toy_relation
from benchmarks.toy_relation import CASES, SAMPLINGS, Toy, expected, measure, psi

TOY = Toy(directions=40, batches=300, window=3000)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_only_a_cut_on_predicted_times_in_the_hessian_basis_finds_psi(sampling):
    keep = TOY.predicted
    theory = psi(TOY.h[keep], expected(TOY, 1.0, sampling)[keep])
    found = [measure(TOY, TOY.trajectory(seed, sampling), 1.0)["psi"] for seed in range(4)]
    mean = {name: fmean(one[name] for one in found) for name in found[0]}
    # One seed scatters by 0.09: four standard errors of a mean of four.
    assert mean["hessian_predicted"] == pytest.approx(theory, abs=0.18)
    assert mean["hessian"] > theory + 0.5
    assert mean["pca"] == pytest.approx(1.75, abs=0.06)
    assert mean["pca_measured"] == pytest.approx(mean["pca"], abs=0.06)


def test_noise_that_grows_with_curvature_shifts_psi_by_twice_its_exponent():
    weights = TOY.trajectory(0, "replacement")
    one, two = (measure(TOY, weights, g)["psi"]["hessian"] for g in (1.0, 1.4))
    assert two - one == pytest.approx(0.8, abs=1e-10)


def test_reshuffled_noise_sums_to_zero_over_an_epoch_and_is_dealt_anew():
    # Next to no force: the weights are the running sum of the noise, in the second epoch and third.
    free = Toy(directions=3, h_low=1e-15, h_high=1e-14, batches=50, window=100, burn_in=1)
    x = free.trajectory(0, "reshuffled")
    second, third = np.diff(x[:50], axis=0, prepend=0), np.diff(x[50:], axis=0, prepend=0)
    assert abs(x[[49, 99]]).max() < 1e-12
    np.testing.assert_allclose(np.sort(second, 0), np.sort(third, 0), atol=1e-12)
    assert abs(second - third).max() > 0.01


def test_seeds_that_are_there_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(toy_relation, "RESULTS", tmp_path / "toy.json")
    toy_relation.fill(TOY, 1)
    before = (tmp_path / "toy.json").read_bytes()
    monkeypatch.setattr(Toy, "trajectory", None)
    toy_relation.fill(TOY, 1)
    assert (tmp_path / "toy.json").read_bytes() == before
    assert toy_relation.render(TOY).count("\n| C ∝ h") == 2 * (len(CASES) - 1)
    with pytest.raises(SystemExit, match="another set-up"):
        toy_relation.fill(Toy(), 1)
