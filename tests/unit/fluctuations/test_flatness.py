"""Known answers 17 and 24: widths of valleys whose crossings are known, and what has no width."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from flatcl import exact
from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations.bases import hessian_directions, random_directions
from flatcl.fluctuations.flatness import curvature, flatness, profile
from flatcl.fluctuations.surface import LossSurface

FINE = 1e-9  # tolerance where a known answer is to be met to 1e-6
LOSS = 0.02


class Point(nn.Module):
    """Gives back its weights, so that the loss is any function of them."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


def well(f: Callable[[Tensor], Tensor], w: object = (0.0,)) -> LossSurface:
    """The surface L(w) = f(w), f of rows [n, P]."""
    point = Point(torch.as_tensor(w, dtype=torch.float64))
    return LossSurface(point, torch.zeros(1, 1), torch.zeros(1), loss=lambda w, _: f(w))


def line(f: Callable[[Tensor], Tensor]) -> LossSurface:
    """The same in one weight, f of it."""
    return well(lambda w: f(w[:, 0]))


def quadratic(h: object, loss: float = LOSS) -> LossSurface:
    diagonal = torch.as_tensor(h, dtype=torch.float64)
    zero = torch.zeros_like(diagonal)
    return well(lambda w: loss + 0.5 * (diagonal * w * w).sum(1), zero)


def along(surface: LossSurface, **options) -> tuple[float, float]:
    """Left and right distance in the only direction."""
    options = {"reach": 100.0, "tolerance": FINE} | options
    found = flatness(surface, torch.ones(1, 1), **options)
    return float(found.left), float(found.right)


@pytest.mark.parametrize("reach", [10.0, 0.97, 1e4])
@pytest.mark.parametrize("factor", [2.0, math.e])
def test_a_quadratic_along_its_axes(factor, reach):
    h = torch.tensor([7e-3, 0.3, 2.0, 5e3], dtype=torch.float64)
    h = h if reach > 4 else h[1:]  # the flattest crosses at 3.1
    surface = quadratic(h)
    found = flatness(surface, torch.eye(len(h)), factor=factor, reach=reach, tolerance=FINE)
    expected = torch.tensor([exact.flatness(LOSS, float(x), factor=factor) for x in h])
    torch.testing.assert_close(found.width, expected.double(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found.left, found.right, rtol=1e-6, atol=0.0)
    assert found.target == pytest.approx(factor * LOSS, rel=1e-12)
    assert (found.loss, found.loss_error, found.reach) == (pytest.approx(LOSS), 0.0, reach)
    assert bool(found.monotone.all())
    assert not bool(found.censored.any())
    assert found.monotone.shape == found.censored.shape == (len(h), 2)


@pytest.mark.parametrize("tolerance", [0.1, 1e-3, 1e-6])
def test_the_tolerance_is_relative_and_kept(tolerance):
    h = torch.logspace(-2, 6, 30, dtype=torch.float64)
    found = flatness(quadratic(h), torch.eye(30), reach=50.0, tolerance=tolerance)
    expected = torch.tensor([exact.flatness(LOSS, float(x)) for x in h], dtype=torch.float64)
    torch.testing.assert_close(found.width, expected, rtol=tolerance, atol=0.0)


def test_an_absolute_threshold_in_place_of_the_factor():
    left, right = along(quadratic([3.0]), threshold=0.5)
    assert left == pytest.approx(math.sqrt(2 * (0.5 - LOSS) / 3.0), rel=1e-6)
    assert right == pytest.approx(left, rel=1e-6)
    # A loss of 0 has a width all the same.
    left, _ = along(quadratic([3.0], loss=0.0), threshold=0.5)
    assert left == pytest.approx(math.sqrt(2 * 0.5 / 3.0), rel=1e-6)


def test_a_skewed_well_is_the_sum_of_its_sides():
    soft, hard = 0.4, 30.0
    surface = line(lambda w: LOSS + 0.5 * torch.where(w < 0, soft, hard) * w * w)
    found = flatness(surface, torch.ones(1, 1), reach=100.0, tolerance=FINE)
    sides = exact.flatness(LOSS, soft) / 2, exact.flatness(LOSS, hard) / 2
    assert (float(found.left), float(found.right)) == pytest.approx(sides, rel=1e-6)
    assert float(found.width) == pytest.approx(sum(sides), rel=1e-6)
    turned = flatness(surface, -torch.ones(1, 1), reach=100.0, tolerance=FINE)
    assert float(turned.left) == float(found.right)


def test_the_centre_is_the_callers_choice():
    surface = line(lambda w: LOSS + 0.5 * (w - 2.0) ** 2)
    left, right = along(surface, centre=torch.tensor([2.0]))
    half = exact.flatness(LOSS, 1.0) / 2
    assert (left, right) == pytest.approx((half, half), rel=1e-6)
    # From the model's own weights it is downhill first on the right: flagged, and measured.
    found = flatness(surface, torch.ones(1, 1), reach=100.0, tolerance=FINE)
    far = math.sqrt(2 * (math.e * (LOSS + 2.0) - LOSS))
    assert (float(found.left), float(found.right)) == pytest.approx((far - 2, far + 2), rel=1e-6)
    assert found.monotone.tolist() == [[True, False]]


def test_the_reach_is_ten_times_the_centres_norm_unless_given():
    surface = quadratic([1.0])
    centre = torch.tensor([0.03])  # the crossing on the left is about 9 norms away
    found = flatness(surface, torch.ones(1, 1), centre=centre)
    assert found.reach == pytest.approx(0.3)
    assert not bool(found.censored.any())
    found = flatness(surface, torch.ones(1, 1), centre=centre / 2)
    assert bool(found.censored.all())


def test_a_side_that_does_not_reach_the_target_is_censored():
    surface = line(lambda w: LOSS + 0.5 * torch.where(w < 0, 0.01 * w.tanh() ** 2, w**2))
    found = flatness(surface, torch.tensor([[1.0], [-1.0]]), reach=100.0)
    assert found.censored.tolist() == [[True, False], [False, True]]
    assert found.left.isnan().tolist() == [True, False]
    assert found.right.isnan().tolist() == [False, True]
    assert bool(found.width.isnan().all())
    assert float(found.right[0]) == pytest.approx(exact.flatness(LOSS, 1.0) / 2, rel=1e-3)


@pytest.mark.parametrize("scale", [0.999, 1.001])
def test_the_reach_itself_is_looked_at(scale):
    half = exact.flatness(LOSS, 3.0) / 2
    found = flatness(quadratic([3.0]), torch.ones(1, 1), reach=scale * half, tolerance=1e-4)
    assert bool(found.censored.all()) == (scale < 1)
    assert bool(found.width.isnan().all()) == (scale < 1)


@pytest.mark.parametrize("reach", [100.0, 4.8 * 4096])  # the first step, of 4.8, is beyond all
def test_the_first_crossing_counts_not_a_later_one(reach):
    def bump(w):
        return LOSS * (1 + 4 * torch.exp(-0.5 * ((w - 1) / 0.3) ** 2) + 0.1 * w * w)

    def above(x):
        return float(bump(torch.tensor(x, dtype=torch.float64))) - math.e * LOSS

    left, right = along(line(bump), threshold=math.e * LOSS, reach=reach)
    assert right == pytest.approx(brentq(above, 0.0, 1.0), rel=1e-6)
    assert left == pytest.approx(-brentq(above, -50.0, 0.0), rel=1e-6)
    later = brentq(above, 2.0, 4.8)
    assert later > 5 * right
    assert above(2.0) < 0


def test_a_loss_that_falls_on_the_way_is_flagged():
    surface = line(lambda w: LOSS * (1 + 0.5 * torch.sin(2 * w) ** 2 + 0.01 * w * w))
    found = flatness(surface, torch.ones(1, 1), reach=100.0, tolerance=FINE)
    assert found.monotone.tolist() == [[False, False]]
    at = float(found.right)
    assert 0.5 * math.sin(2 * at) ** 2 + 0.01 * at**2 == pytest.approx(math.e - 1, rel=1e-6)


@pytest.mark.parametrize("far", [math.nan, math.inf, 1e300])
def test_a_cliff_still_brackets(far):
    half = exact.flatness(LOSS, 3.0) / 2
    surface = line(lambda w: torch.where(w.abs() > 1.05 * half, far, LOSS + 1.5 * w * w))
    assert along(surface) == pytest.approx((half, half), rel=1e-8)
    # Where it ends before the target is met, the valley ends there.
    surface = line(lambda w: torch.where(w.abs() > 0.5 * half, far, LOSS + 1.5 * w * w))
    assert along(surface) == pytest.approx((0.5 * half, 0.5 * half), rel=1e-8)


def test_an_exponential_wall_is_met():
    # ln L is the quadratic here, which the published profiles resemble.
    surface = line(lambda w: LOSS * torch.exp(2.0 * w * w))
    assert along(surface, reach=1e6) == pytest.approx((math.sqrt(0.5),) * 2, rel=1e-6)


def rotated(P: int, generator: torch.Generator) -> tuple[Tensor, LossSurface]:
    root = torch.randn(P, P, generator=generator, dtype=torch.float64)
    H = root @ root.T
    zero = torch.zeros(P, dtype=torch.float64)
    return H, well(lambda w: LOSS + 0.5 * torch.einsum("ni,ij,nj->n", w, H, w), zero)


def test_all_directions_of_a_quadratic_add_up_to_its_loss(generator):
    _, surface = rotated(6, generator)
    theta = torch.randn(6, generator=generator, dtype=torch.float64)
    loss = float(surface.losses(theta)[0])
    expected = (loss - LOSS) / (4 * (math.e - 1) * LOSS)

    def summed(directions):
        width = flatness(surface, directions, reach=1e3, tolerance=FINE).width
        return float(((directions @ theta) / width).square().sum())

    assert summed(hessian_directions(surface).vectors) == pytest.approx(expected, rel=1e-6)
    # Of other bases it is not true: cross terms are missing.
    other = summed(random_directions(6, 6, generator=generator))
    assert abs(other / expected - 1) > 0.01


def test_curvature_is_the_quadratic_form(generator):
    H, surface = rotated(6, generator)
    directions = random_directions(6, 4, generator=generator)
    expected = torch.einsum("ki,ij,kj->k", directions, H, directions)
    torch.testing.assert_close(curvature(surface, directions), expected, rtol=1e-10, atol=0.0)
    saddle = line(lambda w: 1.0 - w.cos() + 0.25 * w**4)
    bent = [float(curvature(saddle, torch.ones(1, 1), centre=torch.tensor([c]))) for c in (0, 2)]
    assert bent == pytest.approx([1.0, math.cos(2) + 12.0], rel=1e-10)
    dome = line(torch.cos)
    assert float(curvature(dome, torch.ones(1, 1))) == pytest.approx(-1.0)


def test_profile_values(generator):
    H, surface = rotated(5, generator)
    directions = random_directions(5, 3, generator=generator)
    centre = torch.randn(5, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([-1.5, 0.0, 0.25, 4.0])
    found = profile(surface, directions, offsets, centre=centre)
    assert found.shape == (3, 4)
    for i, p in enumerate(directions):
        for j, x in enumerate(offsets.double()):
            w = centre + x * p
            assert float(found[i, j]) == pytest.approx(float(LOSS + 0.5 * w @ H @ w), rel=1e-12)
    at_home = profile(surface, directions, torch.zeros(1))
    torch.testing.assert_close(at_home, torch.full((3, 1), LOSS, dtype=torch.float64))


def test_the_error_of_the_central_loss_is_that_of_the_samples():
    spread = torch.linspace(0.5, 2.0, 40, dtype=torch.float64)
    surface = LossSurface(
        Point(torch.zeros(1)), spread[:, None], spread, loss=lambda w, y: y * (1 + w[:, 0] ** 2)
    )
    found = flatness(surface, torch.ones(1, 1), reach=10.0)
    assert found.loss == pytest.approx(float(spread.mean()))
    assert found.loss_error == pytest.approx(float(spread.std()) / math.sqrt(40))
    assert float(found.width) == pytest.approx(2 * math.sqrt(math.e - 1), rel=1e-3)


def test_single_precision_gives_the_same_widths(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    double, single = (LossSurface(model, x, y, dtype=d) for d in (torch.float64, torch.float32))
    directions = random_directions(double.size, 5, generator=generator)
    a, b = (flatness(s, directions) for s in (double, single))
    assert a.width.dtype == b.width.dtype == torch.float64
    torch.testing.assert_close(a.width, b.width, rtol=2e-3, atol=0.0)
    # The width is where the loss says it is.
    for sign, sides in ((-1, a.left), (1, a.right)):
        w = double.reference + sign * sides[:, None] * directions
        met = double.losses(w) / a.loss
        torch.testing.assert_close(met, torch.full_like(met, math.e), rtol=5e-3, atol=0.0)


def test_what_has_no_width_is_refused():
    surface, unit = quadratic([1.0, 2.0]), torch.eye(2)
    for options in (
        {"factor": 1.0},
        {"factor": math.nan},
        {"tolerance": 0.0},
        {"tolerance": 1.0},
        {"reach": 0.0},
        {"reach": -1.0},
        {"reach": math.inf},
        {"reach": math.nan},
        {},  # the centre's norm, and so the reach, is 0
    ):
        with pytest.raises(OptionError, match=r"they need factor > 1, 0 < tolerance < 1, reach"):
            flatness(surface, unit, **options)
    for threshold in (LOSS, 0.001, math.nan):
        with pytest.raises(OptionError, match=r"is not above 0 and the loss at the centre, 0\.02"):
            flatness(surface, unit, reach=1.0, threshold=threshold)
    with pytest.raises(OptionError, match=r"threshold -0\.5 is not above 0"):
        flatness(quadratic([1.0], loss=-1.0), torch.ones(1, 1), reach=1.0, threshold=-0.5)
    for loss in (0.0, -1.0):
        with pytest.raises(DataError, match=f"the loss at the centre is {loss:g}, and so is any"):
            flatness(quadratic([1.0], loss=loss), torch.ones(1, 1), reach=1.0)
    for options in ({"reach": 1.0}, {}):
        with pytest.raises(NonFiniteError, match="the loss at the centre is nan"):
            flatness(surface, unit, centre=torch.tensor([math.nan, 0.0]), **options)
    with pytest.raises(NonFiniteError, match="the loss at the centre is inf"):
        flatness(surface, unit, centre=torch.tensor([math.inf, 0.0]))


@pytest.mark.parametrize("measure", [flatness, curvature, profile])
def test_directions_must_be_of_unit_norm_and_of_the_block(measure):
    surface = quadratic([1.0, 2.0])
    more = {flatness: {"reach": 1.0}, curvature: {}, profile: {"offsets": torch.zeros(1)}}[measure]
    with pytest.raises(OptionError, match=r"norm is 0\.5 away from 1"):
        measure(surface, torch.tensor([[1.0, 0.0], [0.0, 1.5]]), **more)
    with pytest.raises(OptionError, match="norm is nan away"):
        measure(surface, torch.full((1, 2), math.nan), **more)
    for shape in ((1, 3), (2,), (0, 2)):
        with pytest.raises(DataError, match=r"this block needs \(k, 2\)"):
            measure(surface, torch.ones(shape), **more)
