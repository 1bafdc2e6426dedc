"""The study on landscapes with known answers, and annealing along them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flatcl import exact
from flatcl.errors import DataError, OptionError, StateError
from flatcl.fluctuations import LossSurface, Study, VarianceFlatness, along, annealing

LR, P, STEPS, FLOOR = 0.1, 40, 1500, 1.0


class Weights(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - 1.0 - x


def valley(h: Tensor, spread: Tensor, samples: int = 200) -> LossSurface:
    """Mean loss 1 + Σ h w²/2 of quadratics whose centres scatter by ``spread``: C_ii = h² s²."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(samples, len(h), generator=generator, dtype=torch.float64)
    centres = (centres - centres.mean(0)) / centres.std(0, unbiased=False) * spread
    level = FLOOR - float((0.5 * h * spread**2).sum())

    def loss(distance: Tensor, targets: Tensor) -> Tensor:
        return level + 0.5 * (h * distance**2).sum(1)

    return LossSurface(Weights(len(h)), centres, torch.zeros(samples), loss=loss)


@pytest.fixture(scope="module")
def study() -> Study:
    h = torch.logspace(-1, math.log10(3.0), P, dtype=torch.float64)
    surface = valley(h, 0.02 / h.sqrt())
    generator = torch.Generator().manual_seed(1)
    w, path = surface.reference.clone(), torch.empty(STEPS, P, dtype=torch.float64)
    for t in range(-300, STEPS):
        chosen = torch.randint(len(surface), (1, 5), generator=generator)
        w = w - LR * surface.minibatch_gradients(w, chosen)[0]
        if t >= 0:
            path[t] = w
    return Study(path, surface, surface, LR, 5, directions=20, spacing=1)


def test_hessian_rows_have_the_planted_curvature_flatness_noise_and_variance(study: Study) -> None:
    part = study.hessian()
    h = torch.logspace(-1, math.log10(3.0), P, dtype=torch.float64).flip(0)
    torch.testing.assert_close(part["eigenvalues"], h)
    torch.testing.assert_close(part["curvature"], h[: len(part["curvature"])])
    widths = torch.tensor([exact.flatness(FLOOR, float(k)) for k in h]).double()
    torch.testing.assert_close(part["width"], widths[: len(part["width"])], rtol=2e-3, atol=0.0)
    c = 0.02**2 * h * (200 - 5) / (199 * 5)  # h² s², of batches without replacement
    torch.testing.assert_close(part["noise"], c[: len(part["noise"])], rtol=1e-9, atol=0.0)
    sigma = torch.tensor(
        [exact.stationary_variance(float(k), 0.02**2 * float(k) / 5, lr=LR) for k in h]
    ).double()
    ratio = part["variances"] / sigma[: len(part["variances"])]
    assert 0.7 < float(ratio.median()) < 1.2


def test_the_panel_has_its_known_answers(study: Study) -> None:
    found = VarianceFlatness({row.name: row for row in study.rows()})
    assert "replacement" not in found.rows
    assert found.rows["langevin"].psi == pytest.approx(-2.0, abs=0.35)
    stationary = found.rows["hessian_predicted"].psi
    assert stationary is not None
    assert abs(stationary) < 0.6  # C ∝ h: no relation at all
    assert found.rows["random_basis"].flatness is not None
    assert abs(found.rows["random_basis"].flatness.spearman) < 0.6
    assert str(found).startswith("| setting")


def test_parts_are_kept_by_name_and_made_once(study: Study) -> None:
    kept: dict[str, dict[str, Tensor]] = {}
    made: list[str] = []

    def keep(name, make):
        if name not in kept:
            made.append(name)
            kept[name] = make()
        return kept[name]

    again = Study(
        study.snapshots, study.surface, study.surface, LR, 5, directions=20, spacing=1, keep=keep
    )
    first, second = again.rows(), again.rows()
    assert first == second
    assert len(made) == len(set(made))
    assert set(made) == {"pca", "split", "detrended", "hessian", "walk", "random_basis", "langevin"}


def test_without_its_panel_there_is_one_row(study: Study) -> None:
    assert [row.name for row in study.rows(panel=False)] == ["pca"]


def test_refusals(study: Study) -> None:
    with pytest.raises(DataError, match=r"shape \(10, 7\); the surface's block has 40"):
        Study(torch.zeros(10, 7), study.surface, study.surface, LR, 5)
    with pytest.raises(OptionError, match="all must be above 0"):
        Study(study.snapshots, study.surface, study.surface, 0.0, 5)
    with pytest.raises(DataError, match="9 snapshots of 40 weights have no direction of rank 10"):
        Study(torch.zeros(9, 40), study.surface, study.surface, LR, 5)
    with pytest.raises(StateError, match="no twin"):
        study.twin_principal()


def test_annealing_gives_each_moments_temperature_and_width() -> None:
    surfaces = [valley(torch.tensor([0.5, 1.0, 2.0]).double() * k, torch.ones(3)) for k in (1, 3)]
    stages = annealing(surfaces, k=2, lr=LR, batch_size=4)
    for stage, k in zip(stages, (1.0, 3.0), strict=True):
        h = torch.tensor([2.0, 1.0]).double() * k
        torch.testing.assert_close(stage.curvature, h, rtol=1e-8, atol=0.0)
        c = h.square() / 4 * (200 - 4) / 199
        torch.testing.assert_close(stage.temperature, 0.5 * LR * c, rtol=1e-8, atol=0.0)
        widths = torch.tensor([exact.flatness(FLOOR, float(x)) for x in h]).double()
        torch.testing.assert_close(stage.width, widths, rtol=2e-3, atol=0.0)
        assert stage.loss == pytest.approx(FLOOR)


def test_directions_that_nothing_moves_along_have_no_memory_and_no_variance() -> None:
    """Weights of a dead unit; rounding, of a direction that leaks into the others, is no motion."""
    generator = torch.Generator().manual_seed(2)
    live = torch.randn(400, 6, dtype=torch.float64, generator=generator) * 1e-3
    path = torch.cat([live, torch.zeros(400, 4)], 1) + torch.linspace(1, 3, 10).double()
    surface = valley(torch.cat([torch.ones(6), torch.zeros(4)]).double(), torch.zeros(10).double())
    rows = torch.eye(10, dtype=torch.float64)
    rows[9, 0] = 1e-15
    part = along(path, rows, surface)
    alone = along(path, rows[:6], surface)
    for name in ("tau", "stationarity"):
        assert part[name][6:].isnan().all()
        assert torch.equal(part[name][:6], alone[name])
        assert alone[name].isfinite().all()
    assert not part["variances"][6:].any()
    torch.testing.assert_close(part["variances"][:6], live.var(0, unbiased=False))
    still = along(path, rows[6:], surface)
    assert still["tau"].isnan().all()


def test_noise_is_of_the_window_s_own_sampling(study: Study) -> None:
    other = replace(study, sampling="replacement")
    share = (200 - 5) / (200 - 1)
    torch.testing.assert_close(study.noise(), other.noise() * share)
    torch.testing.assert_close(study.hessian()["noise"], other.hessian()["noise"] * share)
    stages = [
        annealing([study.surface], k=4, lr=LR, batch_size=5, sampling=sampling)[0]
        for sampling in ("shuffle", "replacement")
    ]
    torch.testing.assert_close(stages[0].temperature, stages[1].temperature * share)


def test_a_study_s_seed_leaves_room_for_its_controls_own(study: Study) -> None:
    replace(study, seed=10**15).random_basis()
    for seed in (-1, 10**15 + 1, 4611686018427387904):
        with pytest.raises(OptionError, match=f"seed is {seed}: give a whole number from 0 to"):
            replace(study, seed=seed)


def test_weights_that_vary_along_too_few_directions_are_refused_by_name(study: Study) -> None:
    path = study.snapshots[:, :3] @ torch.randn(3, P).double()
    path += 1.0 - path.mean(0)
    with pytest.raises(DataError, match=r"vary along 3 directions, none of rank 10 .* lower spac"):
        replace(study, snapshots=path, spacing=10).principal()


def test_a_surface_that_is_not_at_the_window_s_mean_is_refused(study: Study) -> None:
    spread = float(study.snapshots.var(0, unbiased=False).sum().sqrt())
    moved = study.snapshots + 0.6 * spread / P**0.5
    with pytest.raises(DataError, match=r"from the window's mean, 0\.6.* times its spread"):
        replace(study, snapshots=moved).rows(panel=False)
    near = study.snapshots + 0.3 * spread / P**0.5
    assert replace(study, snapshots=near).rows(panel=False)[0].psi is not None


def test_a_stride_counts_in_steps(study: Study) -> None:
    """The same directions relax in time, and the null lasts as many steps."""
    every = 3
    strided = replace(study, snapshots=study.snapshots[every - 1 :: every], every=every)
    assert strided.steps == study.steps
    rows, some = ({row.name: row for row in s.rows()} for s in (study, strided))
    assert some["hessian_predicted"].directions == rows["hessian_predicted"].directions > 0
    alone, thinned = study.noise_alone(), strided.noise_alone()
    torch.testing.assert_close(thinned, alone)
    ratio = float(strided.walk()["variances"][0] / study.walk()["variances"][0])
    assert ratio == pytest.approx(1.0, rel=0.05)


def test_the_null_in_the_hessian_s_basis_knows_a_force(study: Study) -> None:
    independent = replace(study, sampling="replacement")
    alone = independent.noise_alone()
    c = independent.hessian()["noise"]
    expected = [exact.frozen_variance(float(x), lr=LR, window=STEPS) for x in c]
    torch.testing.assert_close(alone, torch.tensor(expected, dtype=torch.float64))
    found = independent.hessian()["variances"] / alone
    assert float(found.max()) < 0.3  # every direction relaxes within the window
    row = {row.name: row for row in independent.rows()}["walk_hessian"]
    assert row.psi == pytest.approx(2.0, abs=0.01)  # c ∝ h here, and no force: 2g


def test_a_loss_without_curvature_has_no_langevin_control(study: Study) -> None:
    slopes = torch.randn(200, P, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    flat = LossSurface(
        Weights(P), torch.zeros_like(slopes), slopes, loss=lambda w, y: 1.0 + (w * y).sum(1)
    )
    names = [row.name for row in replace(study, surface=flat, whole=flat).rows()]
    assert "hessian" in names
    assert "langevin" not in names
    with pytest.raises(DataError, match="largest eigenvalue is 0"):
        replace(study, surface=flat, whole=flat).langevin()
