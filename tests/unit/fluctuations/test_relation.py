"""Known answer 18, planted exponents with realistic errors, the null, and what a result says."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from flatcl import exact
from flatcl.errors import DataError, OptionError
from flatcl.fluctuations import principal_directions
from flatcl.fluctuations.bases import hessian_directions
from flatcl.fluctuations.flatness import curvature, flatness
from flatcl.fluctuations.panel import SETTINGS, Row, relation
from flatcl.fluctuations.powerfit import PowerFit, power_fit
from flatcl.fluctuations.relation import VERSION, VarianceFlatness
from flatcl.fluctuations.surface import LossSurface

LOSS, LR = 0.02, 0.1


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def slopes_of(fit):
    return fit.exponent, fit.inverse, fit.orthogonal, fit.theil_sen


@pytest.mark.parametrize("exponent", [-4.0, -0.5, 2.0])
def test_an_exact_power_law_is_recovered_exactly(exponent):
    x = torch.logspace(-2, 1, 30, dtype=torch.float64)
    fit = power_fit(x, 7e-3 * x**exponent)
    assert fit is not None
    assert slopes_of(fit) == pytest.approx((exponent,) * 4, rel=1e-9)
    assert (fit.low, fit.high) == pytest.approx((exponent, exponent), rel=1e-9)
    assert fit.spearman == pytest.approx(math.copysign(1.0, exponent))
    assert fit.p_value == 1 / 2001
    assert (fit.n, fit.decades) == (30, pytest.approx(3.0))


def test_every_slope_against_its_definition():
    rng = np.random.default_rng(0)
    u = rng.standard_normal(60)
    v = 1.5 * u + rng.standard_normal(60)
    fit = power_fit(tensor(np.exp(u)), tensor(np.exp(v)))
    assert fit is not None
    C = np.cov(u, v)
    # The principal axis in closed form.
    orthogonal = (C[1, 1] - C[0, 0] + math.hypot(C[1, 1] - C[0, 0], 2 * C[0, 1])) / (2 * C[0, 1])
    pairs = [(v[i] - v[j]) / (u[i] - u[j]) for i in range(60) for j in range(i)]
    expected = (np.polyfit(u, v, 1)[0], C[1, 1] / C[0, 1], orthogonal, np.median(pairs))
    assert slopes_of(fit) == pytest.approx(expected, rel=1e-9)
    ranks = [np.argsort(np.argsort(a)) for a in (u, v)]
    assert fit.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-9)
    assert fit.low < fit.exponent < fit.high
    # Symmetric where the errors are: x and y change places.
    turned = power_fit(tensor(np.exp(v)), tensor(np.exp(u)))
    assert turned is not None
    assert 1 / turned.exponent == pytest.approx(fit.inverse, rel=1e-9)
    assert 1 / turned.orthogonal == pytest.approx(fit.orthogonal, rel=1e-9)


def planted(psi, rng, k=100):
    """Widths over two decades with 5 % error; variances of 50 samples that scatter by 0.3."""
    F = np.geomspace(0.1, 10.0, k)
    scatter = np.exp(0.3 * rng.standard_normal(k)) * rng.chisquare(50, k) / 50
    return tensor(F * np.exp(0.05 * rng.standard_normal(k))), tensor(1e-4 * F**-psi * scatter)


@pytest.mark.parametrize("psi", [0.0, 2.0, 4.0])
def test_planted_exponents_lie_in_their_intervals(psi):
    fits = []
    for i in range(50):
        F, variance = planted(psi, np.random.default_rng([i, int(psi)]))
        fits.append(power_fit(F, variance, draws=400, seed=i))
    within = [fit is not None and fit.low <= -psi <= fit.high for fit in fits]
    assert sum(within) >= 45
    # Not because the intervals are wide: a standard error is 0.36 / (√100 · 1.34).
    widths = [fit.high - fit.low for fit in fits if fit is not None]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.36 / 13.4, rel=0.3)


def test_without_a_relation_small_p_values_are_as_rare_as_they_say():
    p_values = []
    for i in range(400):
        F, variance = planted(0.0, np.random.default_rng([i, 7]), k=40)
        fit = power_fit(F, variance, draws=200, seed=i)
        assert fit is not None
        p_values.append(fit.p_value)
    small = sum(p < 0.05 for p in p_values)
    assert binomtest(small, 400, 0.05, alternative="greater").pvalue > 0.01
    assert binomtest(small, 400, 0.05, alternative="less").pvalue > 0.01
    assert np.mean(p_values) == pytest.approx(0.5, abs=4 * 0.29 / 20)
    F, variance = planted(0.5, np.random.default_rng(0), k=40)
    steep = power_fit(F, variance, draws=200)
    assert steep is not None
    assert steep.p_value == 1 / 201


def test_draws_are_named_by_the_seed():
    F, variance = planted(2.0, np.random.default_rng(0))
    fits = [power_fit(F, variance, draws=50, seed=seed) for seed in (0, 0, 1)]
    assert fits[0] == fits[1] != fits[2]
    assert fits[0] is not None
    assert fits[2] is not None
    assert slopes_of(fits[0]) == slopes_of(fits[2])


def test_units_do_not_matter():
    F, variance = planted(2.0, np.random.default_rng(0))
    fit, scaled = power_fit(F, variance), power_fit(1e3 * F, 1e-12 * variance)
    assert fit is not None
    assert scaled is not None
    assert asdict(scaled) == pytest.approx(asdict(fit), rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_what_has_no_logarithm_is_left_out(bad):
    F, variance = planted(2.0, np.random.default_rng(0), k=20)
    spoilt, loose = F.clone(), variance.clone()
    spoilt[3], loose[5] = bad, bad
    good = [i for i in range(20) if i not in {3, 5}]
    fit = power_fit(spoilt, loose)
    assert fit == power_fit(F[good], variance[good])
    assert fit is not None
    assert fit.n == 18


def test_too_little_for_an_exponent():
    F, variance = planted(2.0, np.random.default_rng(0), k=8)
    assert power_fit(F, variance, draws=20) is not None
    assert power_fit(F[:7], variance[:7]) is None
    one = torch.ones(8).double()
    assert power_fit(F, one) is None
    assert power_fit(one, variance) is None
    F[0] = math.nan
    assert power_fit(F, variance) is None
    assert power_fit(F[:0], variance[:0]) is None
    with pytest.raises(DataError, match=r"x has shape \(8,\), y \(7,\); a fit needs pairs"):
        power_fit(F, variance[:7])


@pytest.mark.parametrize("g", [0.0, 1.0, 2.0])
def test_stationary_sgd_in_closed_form(g):
    h = np.geomspace(1e-4, 1e-2, 40)
    variance = tensor([exact.stationary_variance(x, 3.0 * x**g, lr=LR) for x in h])
    F = tensor([exact.flatness(LOSS, x) for x in h])
    row = relation("hessian", variance, F, tensor(h))
    assert row.psi == pytest.approx(2 * (g - 1), abs=0.01)
    assert row.psi == pytest.approx(-exact.null_exponent(g), abs=0.01)
    assert row.curvature is not None
    assert 2 * row.curvature.exponent == pytest.approx(2 * (g - 1), abs=0.01)
    assert row.psi_ci95 is not None
    low, high = row.psi_ci95
    assert low <= row.psi <= high


def test_a_row_counts_what_it_leaves_out():
    F, variance = planted(2.0, np.random.default_rng(0), k=30)
    h = F**-2.0
    F[[1, 4, 9]] = math.nan
    h[2] = -0.1
    row = relation("pca", variance, F, h)
    assert (row.censored, row.directions) == (3, 30)
    assert row.flatness is not None
    assert row.curvature is not None
    assert (row.flatness.n, row.curvature.n) == (27, 29)
    keep = torch.arange(30) >= 4
    part = relation("pca_predicted", variance, F, h, keep=keep)
    assert (part.censored, part.directions) == (2, 26)
    assert part.flatness == power_fit(F[4:], variance[4:])
    few = relation("pca", variance, F, h, keep=torch.arange(30) < 7)
    assert (few.psi, few.psi_ci95, few.censored, few.directions) == (None, None, 2, 7)
    with pytest.raises(OptionError, match="setting is 'wal'; there are pca, "):
        relation("wal", variance, F, h)


# SGD on a quadratic of forty directions, the noise's exponent g planted.

H = np.geomspace(0.02, 0.4, 40)
CHAINS, STEPS, BURN_IN, EVERY = 60, 4000, 2000, 10


def trained(g):
    """Snapshots [CHAINS · STEPS / EVERY, 40] of independent chains, one after the other."""
    rng = np.random.default_rng(int(g))
    x, kept = np.zeros((CHAINS, 40)), []
    for t in range(-BURN_IN, STEPS):
        x -= LR * (H * x + np.sqrt(H**g) * rng.standard_normal(x.shape))
        if t >= 0 and t % EVERY == 0:
            kept.append(x.copy())
    return torch.from_numpy(np.concatenate(kept))


class Point(nn.Module):
    """Gives back its weights."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(40))

    def forward(self, x):
        return self.w.expand(len(x), -1)


@pytest.mark.parametrize("g", [0.0, 1.0, 2.0])
def test_the_exponent_of_simulated_sgd_end_to_end(g):
    h, snapshots = tensor(H), trained(g)
    surface = LossSurface(
        Point(),
        torch.zeros(1, 1),
        torch.zeros(1),
        loss=lambda w, _: LOSS + 0.5 * (h * w * w).sum(1),
    )
    true = tensor([exact.stationary_variance(x, x**g, lr=LR) for x in H]).flip(0)
    a = 1 - LR * h.flip(0)
    error = (2 / (CHAINS * STEPS * (1 - a * a) / (1 + a * a))).sqrt()
    assert float(error.max()) < 0.07

    eigen = hessian_directions(surface)
    variance = ((snapshots - snapshots.mean(0)) @ eigen.vectors.T).square().mean(0)
    z = (variance / true - 1) / error
    assert float(z.abs().max()) < 4
    assert float(z.square().mean()) == pytest.approx(1.0, abs=4 * (2 / 40) ** 0.5)
    width = flatness(surface, eigen.vectors, reach=10.0, tolerance=1e-6).width
    torch.testing.assert_close(
        width, tensor([exact.flatness(LOSS, x) for x in H]).flip(0), rtol=1e-5, atol=0.0
    )
    row = relation("hessian", variance, width, eigen.values)
    assert row.psi_ci95 is not None
    low, high = row.psi_ci95
    assert low <= 2 * (g - 1) <= high
    assert high - low < 0.2

    found = principal_directions(snapshots, 40)
    assert found.total == pytest.approx(float(true.sum()), rel=0.03)
    if g == 1:  # equal variances: PCA sorts their sampling errors, within the edges of chance
        edges = exact.marchenko_pastur_edges(40 * float(error.max()) ** 2 / 2)
        ratios = found.variances / true.mean()
        assert edges[0] < float(ratios.min()) < 0.95
        assert 1.05 < float(ratios.max()) < edges[1]
    else:
        ranked = true.sort(descending=True).values
        worst = 4 * float(error.max())
        torch.testing.assert_close(found.variances, ranked, rtol=worst, atol=0.0)
    blended = relation(
        "pca",
        found.variances,
        flatness(surface, found.directions, reach=10.0).width,
        curvature(surface, found.directions),
    )
    assert blended.psi == pytest.approx(2 * (g - 1), abs=0.3 if g == 1 else 0.15)


def fit(psi, half=0.1, **more):
    """A fit of σ² against F with the given ψ and half-width of its interval."""
    return PowerFit(
        **{
            "exponent": -psi,
            "low": -psi - half,
            "high": -psi + half,
            "inverse": -1.1 * psi,
            "orthogonal": -1.05 * psi,
            "theil_sen": -psi,
            "spearman": -0.9,
            "p_value": 0.0005,
            "n": 98,
            "decades": 1.7,
        }
        | more
    )


def row(name, psi=None, half=0.1, **counts):
    flat = None if psi is None else fit(psi, half)
    counts = {"censored": 2, "directions": 100} | counts
    return Row(name, flat, None if psi is None else fit(-psi / 2, half), **counts)


def result(*rows, **facts):
    return VarianceFlatness({r.name: r for r in rows}, facts)


def test_a_result_comes_back_from_its_file(tmp_path):
    steep = replace(fit(2.0), inverse=math.inf, orthogonal=math.inf)
    kept = result(
        row("pca", 2.0),
        Row("walk", steep, None, censored=0, directions=50),
        row("hessian_predicted", directions=3),
        stationarity=1.5,
        steps=1200,
        sampling="shuffle",
        enough=True,
        unknown=None,
    )
    path = kept.save(tmp_path / "deep" / "result.json")
    assert VarianceFlatness.load(path) == kept
    assert VarianceFlatness.from_dict(kept.to_dict()) == kept
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["version"] == VERSION
    assert content["rows"][1]["flatness"]["inverse"] is None
    assert content["rows"][1]["curvature"] is None
    assert result(ratio=math.nan).to_dict()["facts"] == {"ratio": None}
    F, variance = planted(2.0, np.random.default_rng(0))
    measured = result(relation("pca", variance, F, F**-2.0))
    measured.save(path)
    assert VarianceFlatness.load(path) == measured


def test_curvatures_of_rounding_have_no_say_in_the_fit_against_curvature():
    """As those of a dead unit's weights: h and σ² of 1e-30 would be thirty decades of both."""
    F, variance = planted(2.0, np.random.default_rng(0))
    live = relation("hessian", variance, F, F**-2.0)
    none = torch.full((2,), math.nan, dtype=torch.float64)
    dead = torch.tensor([1e-30, -3e-32], dtype=torch.float64)
    both = relation(
        "hessian",
        torch.cat([variance, dead.abs() / 1e3]),
        torch.cat([F, none]),
        torch.cat([F**-2.0, dead]),
    )
    assert both.curvature == live.curvature
    assert both.flatness == live.flatness
    assert (live.flat, both.flat) == (0, 2)
    said = VarianceFlatness({"hessian": both}).verdict()
    assert f"2 of {len(F) + 2} Hessian directions have no curvature beyond rounding" in said
    assert "beyond rounding" not in VarianceFlatness({"hessian": live}).verdict()
    assert VarianceFlatness.from_dict(VarianceFlatness({"hessian": both}).to_dict()).rows == {
        "hessian": both
    }


def test_a_result_of_before_had_no_count_of_flat_directions():
    content = result(row("pca", 2.0)).to_dict()
    del content["rows"][0]["flat"]
    assert VarianceFlatness.from_dict(content) == result(row("pca", 2.0))


def spoilt(change):
    content = json.loads(json.dumps(result(row("pca", 2.0)).to_dict()))
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=VERSION + 1), f"has version {VERSION + 1}, this flatcl reads"),
        (lambda c: c.pop("version"), r"no variance–flatness result \('version'\)"),
        (lambda c: c.pop("rows"), "'rows'"),
        (lambda c: c.pop("facts"), "'facts'"),
        (lambda c: c.update(facts="none"), "no variance–flatness result"),
        (lambda c: c.update(rows=3), "no variance–flatness result"),
        (lambda c: c.update(rows=["pca"]), "no variance–flatness result"),
        (lambda c: c["rows"][0].pop("censored"), "'censored'"),
        (lambda c: c["rows"][0].update(name="wal"), "unknown settings wal"),
        (lambda c: c["rows"][0].update(flatness=2.0), "no variance–flatness result"),
        (lambda c: c["rows"][0]["flatness"].pop("n"), "'n'"),
        (lambda c: c["rows"][0]["flatness"].pop("low"), "'low'"),
        (lambda c: c["rows"][0]["flatness"].update(n=None), "no variance–flatness result"),
        (lambda c: c["rows"][0]["flatness"].update(n="many"), "no variance–flatness result"),
        (lambda c: c["rows"][0]["flatness"].update(more=1), "'more'"),
    ],
)
def test_a_spoilt_result_is_refused(change, message, tmp_path):
    content = spoilt(change)
    with pytest.raises(DataError, match=message):
        VarianceFlatness.from_dict(content)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        VarianceFlatness.load(path)


def test_what_is_no_result_is_refused(tmp_path):
    for content in (None, [1], "result"):
        with pytest.raises(DataError, match=f"no .* result but a {type(content).__name__}"):
            VarianceFlatness.from_dict(content)
    path = tmp_path / "result.json"
    for damage in (b"{", b"\xff\xfe", b""):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"result\.json' holds no result"):
            VarianceFlatness.load(path)
    for nowhere in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DataError, match="holds no result"):
            VarianceFlatness.load(nowhere)


def test_the_table():
    text = result(row("pca", 2.0), row("hessian_predicted", directions=3, censored=1)).table()
    header, rule, *lines = text.splitlines()
    cells = [[c.strip() for c in line.strip("| ").split("|")] for line in (header, *lines)]
    assert re.fullmatch(r"[|\-: ]+", rule)
    assert len({len(line) for line in (header, rule, *lines)}) == 1
    assert [len(c) for c in cells] == [8, 8, 8]
    named = [dict(zip(cells[0], c, strict=True)) for c in cells[1:]]
    assert named[0] == {
        "setting": "SGD, principal directions",
        "ψ (σ² ∝ F^−ψ) [95 %]": "2.00 [1.90, 2.10]",
        "2k (σ² ∝ h^k)": "2.00",
        "rank corr. σ², F": "-0.90",
        "permuted p": "0.0005",
        "directions": "98 of 100",
        "censored": "2",
        "decades of F": "1.7",
    }
    assert cells[2] == [
        SETTINGS["hessian_predicted"], "too few", "–", "–", "–", "0 of 3", "1", "–"
    ]  # fmt: skip


def test_every_setting_has_a_line():
    whole = result(*(row(name, 1.0) for name in SETTINGS))
    assert len(whole.table().splitlines()) == 2 + len(SETTINGS)
    assert str(whole) == f"{whole.table()}\n\n{whole.verdict()}"


INVERSE, EQUILIBRIUM = "an inverse relation, larger", "the sign of equilibrium, larger"
NONE = "no relation beyond its error"
BEYOND, SUFFICES = "not the noise's alone", "noise in a finite window suffices"
WEAKENS, ALIKE = "the landscape weakens the relation", "not told apart from it"


@pytest.mark.parametrize(
    ("pca", "walk", "said"),
    [
        ((3.9, 0.2), (2.0, 0.2), (INVERSE, BEYOND)),  # an inverse relation beyond the walk's
        ((3.9, 0.2), (0.0, 0.2), (INVERSE, BEYOND)),
        ((2.1, 0.2), (2.0, 0.2), (INVERSE, SUFFICES)),  # what the walk has as well
        ((0.1, 0.2), (0.2, 0.1), (NONE, SUFFICES)),
        ((1.0, 0.2), (2.0, 0.2), (INVERSE, WEAKENS)),  # less than the walk's: a force against it
        ((0.0, 0.2), (2.0, 0.2), (NONE, WEAKENS)),
        ((-2.0, 0.2), (2.0, 0.2), (EQUILIBRIUM, WEAKENS)),
        ((-2.0, 0.2), (-2.1, 0.2), (EQUILIBRIUM, ALIKE)),
        ((0.3, 0.2), (0.1, 0.3), (INVERSE, ALIKE)),
    ],
)
def test_the_verdict_on_principal_directions(pca, walk, said):
    text = result(row("pca", *pca), row("walk", *walk)).verdict()
    phrases = (INVERSE, EQUILIBRIUM, NONE, BEYOND, SUFFICES, WEAKENS, ALIKE)
    assert tuple(p for p in phrases if p in text) == said
    assert f"ψ = {pca[0]:.2f} [{pca[0] - pca[1]:.2f}, {pca[0] + pca[1]:.2f}] in principal" in text
    assert f"gives ψ = {walk[0]:.2f}:" in text


def test_the_verdict_rests_on_the_rows_that_are_there():
    assert result().verdict() == "Too few directions for an exponent."
    assert result(row("pca")).verdict() == "Too few directions for an exponent."
    alone = result(row("pca", 2.0)).verdict()
    assert alone.endswith("larger variance where the valley is narrower.")
    assert alone == result(row("pca", 2.0), row("walk")).verdict()


@pytest.mark.parametrize(
    ("psi", "said"),
    [(2.0, "an inverse relation of the stationary"), (-2.0, "the sign of eq"), (0.0, "none bey")],
)
def test_the_verdict_on_directions_that_relax(psi, said):
    text = result(row("pca", 2.0), row("hessian_predicted", psi)).verdict()
    assert f"In the 98 Hessian directions that relax within the window ψ = {psi:.2f} [" in text
    assert f"]: {said}" in text
    few = row("hessian_predicted", directions=6, censored=1)
    text = result(row("pca", 2.0), few).verdict()
    assert "Of the Hessian directions measured 6 relax" in text
    assert "1 of them without a width: too few to test the stationary relation." in text


def test_the_verdict_on_the_control_and_on_the_window():
    pca = row("pca", 2.0)
    good = result(pca, row("langevin", -1.9), row("langevin_pca", -1.97)).verdict()
    assert "The Langevin control gives ψ = -1.90 where theory has −2 (-1.97 in its" in good
    assert "in doubt" not in good
    for psi, doubted in ((-1.66, False), (-1.64, True), (-2.34, False), (-2.36, True), (1.0, True)):
        alone = replace(row("langevin", psi), curvature=fit(0.0, 0.1))  # no relation with h
        text = result(pca, alone).verdict()
        assert ("so that the measurement itself is in doubt" in text) == doubted
    steep = replace(row("langevin", -3.1), curvature=row("langevin", -2.1).curvature)
    text = result(pca, steep).verdict()
    assert "ψ = -3.10 where theory has −2, and 2k = -2.10 against the curvature" in text
    assert "in doubt" not in text
    assert "Langevin" not in result(pca, row("langevin")).verdict()
    moving = result(pca, stationarity=1.8).verdict()
    assert "The window is not stationary: σ²(T)/σ²(T/2) is 1.80 of all weights" in moving
    for ratio in (1.0, 1.25, None):
        assert "not stationary" not in result(pca, stationarity=ratio).verdict()
    text = result(pca, stationarity=1.0, stationarity_hessian=2.2).verdict()
    assert "is 2.20 in the median of the Hessian's eigenvectors" in text
    text = result(pca, over_noise=0.8, over_noise_replacement=0.19).verdict()
    assert "σ² is 0.8 of what this noise gives without a force, and with replacement 0.19;" in text
    assert "without a force;" in result(pca, over_noise=0.8).verdict()
    assert "without a force" not in result(pca, over_noise=None).verdict()
