"""Known answers 8 and 16: noise against every batch there is, and trajectories made of noise."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
from torch import nn

from flatcl import exact
from flatcl.errors import NonFiniteError, OptionError
from flatcl.fluctuations import cosine_overlap, principal_directions
from flatcl.fluctuations.bases import random_directions
from flatcl.fluctuations.noise import (
    effective_temperature,
    frozen_walk,
    gradient_noise,
    langevin,
    noise_alone,
    over_noise,
    temperature_profile,
)
from flatcl.fluctuations.surface import LossSurface

LR = 0.1


def softmax_regression(n, d=4, classes=3):
    g = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    x, y = torch.randn(n, d, generator=g), torch.randint(classes, (n,), generator=g)
    return LossSurface(nn.Linear(d, classes, bias=False), x, y)


class Point(nn.Module):
    """Gives back its weights, so that the loss is any function of them and the targets."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(w, dtype=torch.float64))

    def forward(self, x):
        return self.w.expand(len(x), -1)


def wells(stiffness, centres, w=0.0):
    """Sample n has the loss ½ m_n (w − c_n)², in one weight."""
    targets = torch.stack([stiffness, centres], dim=1)
    return LossSurface(
        Point([w]), targets, targets, loss=lambda w, y: 0.5 * y[:, 0] * (w[:, 0] - y[:, 1]) ** 2
    )


def quadratic(h, slope=0.0):
    """½ Σ h w² + slope Σ w, at w = 0."""
    return LossSurface(
        Point(torch.zeros(len(h))),
        torch.zeros(1, 1),
        torch.zeros(1),
        loss=lambda w, _: (0.5 * h * w * w + slope * w).sum(1),
    )


@pytest.mark.parametrize(("N", "B"), [(12, 5), (12, 1), (12, 12), (5, 3)])
def test_noise_is_the_variance_over_all_batches_without_replacement(N, B, generator):
    surface = softmax_regression(N)
    point = surface.reference + 0.3
    directions = random_directions(12, 4, generator=generator)
    batches = list(combinations(range(N), B))
    assert (N, B) != (12, 5) or len(batches) == 792
    slopes = surface.minibatch_gradients(point, torch.tensor(batches)) @ directions.T
    expected = slopes.var(0, unbiased=False)
    found = gradient_noise(surface, directions, batch_size=B, centre=point)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-16)
    assert (float(found.max()) < 1e-16) == (B == N)  # all samples together have no noise


@pytest.mark.parametrize("B", [1, 2, 3])
def test_noise_is_the_variance_over_all_batches_with_replacement(B, generator):
    N = 6
    surface = softmax_regression(N)
    directions = random_directions(12, 4, generator=generator)
    batches = torch.tensor(list(product(range(N), repeat=B)))
    slopes = surface.minibatch_gradients(surface.reference, batches) @ directions.T
    found = gradient_noise(surface, directions, batch_size=B, sampling="replacement")
    torch.testing.assert_close(found, slopes.var(0, unbiased=False), rtol=1e-12, atol=0.0)
    # S/B, S from (p − y) xᵀ by hand.
    p = (surface.inputs @ surface.reference.reshape(3, 4).T).softmax(1)
    error = p - nn.functional.one_hot(surface.targets, 3)
    each = torch.einsum("ni,nj->nij", error, surface.inputs).reshape(N, -1) @ directions.T
    torch.testing.assert_close(found, each.var(0, unbiased=False) / B, rtol=1e-12, atol=0.0)


def test_what_is_no_batch_is_refused():
    surface, unit = softmax_regression(12), torch.eye(12)[:1]
    for B in (0, 13):
        with pytest.raises(OptionError, match=f"batch_size is {B}; the surface has 12 samples"):
            gradient_noise(surface, unit, batch_size=B)
    with pytest.raises(OptionError, match="sampling is 'epoch': give 'shuffle' or 'replacement'"):
        gradient_noise(surface, unit, batch_size=3, sampling="epoch")  # type: ignore[arg-type]
    one = softmax_regression(1)
    assert float(gradient_noise(one, unit, batch_size=1)) == 0.0


def test_temperature_is_that_of_an_equally_strong_langevin_force():
    c, h = torch.tensor([0.3, 2.0]), 0.5
    temperature = effective_temperature(c, lr=LR)
    torch.testing.assert_close(temperature, LR * c / 2)
    for noise, T in zip(c.tolist(), temperature.tolist(), strict=True):
        expected = exact.stationary_variance(h, noise, lr=LR)
        assert exact.langevin_variance(T, h, LR) == pytest.approx(expected, rel=1e-6)


def test_temperature_of_random_wells_grows_as_the_square_of_the_displacement(generator):
    # δL'(w) = (m − ⟨m⟩) w − (m c − ⟨m c⟩): a parabola in w, flat where all wells are as stiff.
    N, B, at = 50, 5, 0.5
    m = 1.0 + torch.rand(N, generator=generator, dtype=torch.float64)
    c = torch.randn(N, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([-30.0, -1.0, 0.0, 0.5, 1.0, 2.0, 30.0], dtype=torch.float64)
    one = torch.ones(1)
    share = (N - B) / (N - 1) / B

    def measured(stiffness):
        surface = wells(stiffness, c)
        centre = torch.tensor([at])
        return temperature_profile(surface, one, offsets, lr=LR, batch_size=B, centre=centre)

    slopes = m * (at + offsets[:, None] - c)
    expected = LR / 2 * share * slopes.var(1, unbiased=False)
    found = measured(m)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0.0)
    growth = LR / 2 * share * float(m.var(unbiased=False))
    far = float(found[0] + found[-1] - 2 * found[2]) / 2
    assert far == pytest.approx(growth * 30.0**2, rel=1e-8)
    assert float(found[-1] / found[2]) > 20
    even = measured(torch.full_like(m, 1.5))
    torch.testing.assert_close(even, even[:1].expand(7), rtol=1e-8, atol=0.0)
    # From the model's own weights if no centre is given.
    home = temperature_profile(wells(m, c, w=at), one, offsets, lr=LR, batch_size=B)
    torch.testing.assert_close(home, found, rtol=1e-10, atol=0.0)


@pytest.fixture(scope="module")
def walk():
    """A walk, its surface, and its batch size."""
    surface = softmax_regression(300, d=20, classes=10)
    T, B = 200, 7
    path = frozen_walk(
        surface,
        lr=LR,
        batch_size=B,
        steps=T,
        generator=torch.Generator().manual_seed(5),
        centre=surface.reference + 0.1,
    )
    return surface, path, B


def test_a_frozen_walk_has_the_noise_of_sgd(walk):
    surface, path, B = walk
    centre = surface.reference + 0.1
    steps = path.diff(dim=0, prepend=centre[None])
    T, P = steps.shape
    eye = torch.eye(P, dtype=torch.float64)
    options = {"batch_size": B, "sampling": "replacement", "centre": centre}
    expected = LR**2 * gradient_noise(surface, eye, **options)
    # Tolerances are four standard errors over seeds; the directions share their samples.
    # A mean of squares of noise that is not Gaussian has the relative error (2 + κ)/T, κ its excess
    # kurtosis, and that of a batch is a sample's over B.
    slopes = surface.sample_slopes(centre, eye)
    unit = (slopes - slopes.mean(1, keepdim=True)) / slopes.std(1, unbiased=False, keepdim=True)
    kurtosis = unit.pow(4).mean(1) - 3
    z = (steps.square().mean(0) / expected - 1) / ((2 + kurtosis / B) / T).sqrt()
    assert float(z.mean()) == pytest.approx(0.0, abs=0.25)
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.55)
    assert float(z.abs().max()) < 5
    mean = steps.mean(0) / (expected / T).sqrt()
    assert float(mean.square().mean()) == pytest.approx(1.0, abs=0.75)
    assert float(mean.abs().max()) < 5
    # Independent steps: without the force there is no memory.
    lagged = (steps[1:] * steps[:-1]).mean(0) / (expected / T**0.5)
    assert float(lagged.square().mean()) == pytest.approx(1.0, abs=0.4)


def test_a_frozen_walk_is_a_walk_to_pca(generator):
    surface = softmax_regression(6000, d=400, classes=10)
    path = frozen_walk(surface, lr=LR, batch_size=7, steps=200, generator=generator)
    T = len(path)
    found = principal_directions(path, 5)
    spectrum = torch.from_numpy(exact.walk_spectrum(T))
    shares = found.variances / found.total
    # The noise has some 2000 dimensions: 3 % for one standard error.
    torch.testing.assert_close(shares, (spectrum / spectrum.sum())[:5], rtol=0.12, atol=0.0)
    assert float(cosine_overlap(found.scores(path)).min()) > 0.95


def test_a_frozen_walk_starts_at_the_models_weights_and_repeats(generator):
    surface = softmax_regression(12)
    runs = [
        frozen_walk(
            surface, lr=LR, batch_size=3, steps=4, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    chosen = torch.randint(12, (1, 3), generator=torch.Generator().manual_seed(0))
    w = surface.reference
    first = w - LR * (surface.minibatch_gradients(w, chosen)[0] - surface.gradient(w))
    torch.testing.assert_close(runs[0][0], first, rtol=1e-12, atol=1e-14)
    single = LossSurface(
        nn.Linear(4, 3, bias=False), surface.inputs, surface.targets, dtype=torch.float32
    )
    path = frozen_walk(single, lr=LR, batch_size=3, steps=4, generator=generator)
    assert path.dtype == torch.float32


def test_langevin_on_a_quadratic_is_in_equilibrium(generator):
    T, lr, copies, steps = 0.3, 0.1, 200, 400
    h = torch.tensor([0.5, 1.0, 3.0, 10.0], dtype=torch.float64).repeat_interleave(copies)
    path = langevin(
        quadratic(h), lr=lr, temperature=T, steps=steps, burn_in=120, generator=generator
    )
    assert path.shape == (steps, len(h))
    for kappa, part in zip((0.5, 1.0, 3.0, 10.0), path.split(copies, dim=1), strict=True):
        a = 1 - lr * kappa
        samples = copies * steps * (1 - a * a) / (1 + a * a)
        expected = exact.langevin_variance(T, kappa, lr)
        found = float(part.square().mean())
        assert found == pytest.approx(expected, rel=4 * (2 / samples) ** 0.5)
    assert 4 * (2 / (copies * steps * 0.05)) ** 0.5 < 0.1  # the check has teeth


def test_the_tilt_keeps_a_centre_that_is_no_minimum(generator):
    h = torch.full((300,), 2.0, dtype=torch.float64)
    surface = quadratic(h, slope=5.0)  # its minimum is at −2.5
    still = langevin(surface, lr=0.1, temperature=0.0, steps=50, burn_in=0, generator=generator)
    assert float(still.abs().max()) < 1e-12
    options = {"lr": 0.1, "temperature": 0.2, "steps": 200, "burn_in": 50, "generator": generator}
    path = langevin(surface, **options)
    error = math.sqrt(0.1 / 300 / 200 * 9)  # a = 0.8: nine correlated steps count as one
    assert float(path.mean()) == pytest.approx(0.0, abs=4 * error)
    away = torch.full((300,), 7.0, dtype=torch.float64)
    path = langevin(surface, centre=away, **options)
    # Around any centre, since the tilt is the slope there.
    assert float(path.mean()) == pytest.approx(7.0, abs=4 * error)
    assert float((path - 7.0).square().mean()) == pytest.approx(
        exact.langevin_variance(0.2, 2.0, 0.1), rel=0.05
    )


def test_langevin_burns_in_before_it_records():
    h = torch.tensor([2.0, 3.0], dtype=torch.float64)
    runs = [
        langevin(
            quadratic(h),
            lr=0.1,
            temperature=0.2,
            steps=steps,
            burn_in=burn_in,
            generator=torch.Generator().manual_seed(0),
        )
        for steps, burn_in in ((8, 0), (5, 3))
    ]
    assert torch.equal(runs[0][3:], runs[1])


def test_langevin_that_diverges_is_refused(generator):
    surface = quadratic(torch.full((2,), 100.0, dtype=torch.float64))
    with pytest.raises(NonFiniteError, match=r"diverged: lower lr 0\.1"):
        langevin(surface, lr=0.1, temperature=1.0, steps=100, burn_in=300, generator=generator)


def test_a_walk_of_dealt_batches_returns_at_each_epoch_s_end(generator):
    surface = softmax_regression(42)
    options = {"lr": LR, "batch_size": 6, "sampling": "shuffle"}
    path = frozen_walk(surface, steps=600, generator=generator, **options).double()
    ends = path[6::7] - surface.reference
    assert float(ends.abs().max()) < 1e-5 * float((path - surface.reference).abs().max()) + 1e-6
    long = frozen_walk(surface, steps=7 * 700, generator=generator, **options).double()
    axes = random_directions(surface.size, 5, generator=generator)
    theta = (long - long.mean(0)) @ axes.double().T
    c = gradient_noise(surface, axes, batch_size=6, sampling="shuffle")
    expected = noise_alone(c, lr=LR, steps=7 * 700, batches=7)
    torch.testing.assert_close(theta.var(0, unbiased=False), expected, rtol=0.1, atol=0.0)
    assert over_noise(0.25 * expected, expected) == pytest.approx(0.25)


@pytest.mark.parametrize("sampling", ["shuffle", "replacement"])
@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_stride_leaves_out_steps_of_the_same_walk(sampling, every):
    surface = softmax_regression(42)
    options = {"lr": LR, "batch_size": 5, "steps": 600, "sampling": sampling}
    whole, some = (
        frozen_walk(surface, generator=torch.Generator().manual_seed(5), every=k, **options)
        for k in (1, every)
    )
    torch.testing.assert_close(some, whole[every - 1 :: every][: 600 // every])


def test_a_walk_that_cannot_be_is_refused(generator):
    surface = softmax_regression(42)
    for bad in ({"batch_size": 43, "sampling": "shuffle"}, {"every": 11}, {"steps": 0}):
        options = {"lr": LR, "batch_size": 5, "steps": 10, **bad}
        with pytest.raises(OptionError, match=r"batch_size|every"):
            frozen_walk(surface, generator=generator, **options)
