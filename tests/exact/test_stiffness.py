"""Known answers 15 and 16: stiffness in nats against the Hessian of a softmax regression."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.engine import Landscape
from flatcl.core.gradients import probe_gradients
from flatcl.core.layers import matrix_views, trained_parameters
from flatcl.core.moments import EigenMoments, KroneckerMoments, OuterProduct, stacked
from flatcl.core.options import LDCOptions

CLASSES, WIDTH, N = 4, 5, 2000


def softmax_regression(generator, N=N):
    """A model, inputs, and labels drawn from the model's own probabilities (so C = H)."""
    model = nn.Linear(WIDTH, CLASSES, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64))
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    x = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64) * scales
    p = F.softmax(model(x).detach(), 1)
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    return model, x, y, p


def hessian(x, p):
    per_sample = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nij,nk,nl->ikjl", per_sample, x, x).reshape(
        CLASSES * WIDTH, CLASSES * WIDTH
    ) / len(x)


def diagonal_in(constraint, K):
    Q = torch.kron(constraint.basis.U_out, constraint.basis.U_in)
    return (Q.T @ K @ Q).diagonal().reshape(constraint.stiffness.shape)


def test_closed_form_hessian_agrees_with_autograd(generator):
    model, x, y, p = softmax_regression(generator)

    def loss(flat):
        return F.cross_entropy(x @ flat.reshape(CLASSES, WIDTH).T, y)

    H = torch.autograd.functional.hessian(loss, model.weight.detach().reshape(-1))
    torch.testing.assert_close(hessian(x, p), H, rtol=1e-10, atol=1e-12)


OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr),
}


def sgd_stiffness(model, x, y, *, optimizer, lr, batch, steps, generator):
    """Stiffness that source "sgd" finds while the weights stay (all but) fixed."""
    landscape = Landscape(
        model,
        OPTIMIZERS[optimizer](model.parameters(), lr),
        options=LDCOptions(source="sgd", interval=10**6),
    )
    landscape.begin_task(steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator)
        model.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        landscape.metric.optimizer.step()
        landscape.step(batch)
    landscape.end_task()
    return landscape.constraints["weight"]


def test_sgd_source_is_the_hessian_in_nats(generator):
    # Many samples: the labels' own sampling error is part of what separates C from H.
    model, x, y, p = softmax_regression(generator, N=50_000)
    c = sgd_stiffness(
        model, x, y, optimizer="sgd", lr=1e-9, batch=50, steps=20_000, generator=generator
    )
    expected = diagonal_in(c, hessian(x, p))
    # 2000 gradients: an entry is known to √(2/2000) = 3 %, more where tails are heavy; four errors.
    torch.testing.assert_close(c.stiffness, expected, rtol=0.15, atol=0.01 * float(expected.max()))
    assert float(c.stiffness.sum()) == pytest.approx(float(hessian(x, p).trace()), rel=0.05)


@pytest.mark.parametrize(
    ("optimizer", "lr", "batch"),
    [
        ("sgd", 1e-9, 5),
        ("sgd", 1e-9, 80),
        ("sgd", 1e-8, 20),
        ("momentum", 1e-9, 20),
        ("adam", 1e-9, 20),
        ("adamw", 1e-9, 20),
    ],
)
def test_sgd_stiffness_does_not_depend_on_batch_rate_or_optimiser(generator, optimizer, lr, batch):
    model, x, y, p = softmax_regression(generator)
    # Labels that the model does not fit: the mean gradient is not zero, and must not count.
    y = torch.where(torch.arange(N) % 4 == 0, torch.zeros_like(y), y)
    per_sample = (p - F.one_hot(y, CLASSES))[:, :, None] * x[:, None, :]
    flat = per_sample.reshape(N, -1)
    C = (flat - flat.mean(0)).T @ (flat - flat.mean(0)) / N
    assert float(flat.mean(0).norm()) > 0.3
    c = sgd_stiffness(
        model, x, y, optimizer=optimizer, lr=lr, batch=batch, steps=5_000, generator=generator
    )
    expected = diagonal_in(c, C)
    torch.testing.assert_close(c.stiffness, expected, rtol=0.25, atol=0.03 * float(expected.max()))


def test_batch_noise_without_replacement_by_enumeration(generator):
    g = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    means = torch.stack([g[list(s)].mean(0) for s in itertools.combinations(range(12), 5)])
    assert len(means) == 792
    S = (g - g.mean(0)).T @ (g - g.mean(0)) / 12
    cov = (means - g.mean(0)).T @ (means - g.mean(0)) / len(means)
    torch.testing.assert_close(cov, S / 5 * (12 - 5) / (12 - 1), rtol=1e-12, atol=1e-14)


def probe_landscape(model, **options):
    return Landscape(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        options=LDCOptions(source="probe", width=0.0, damping=0.0, **options),
    )


@pytest.mark.parametrize("probe_batch", [8, 64])
def test_probe_is_its_closed_form_whatever_its_batch(generator, probe_batch):
    """For f = W x, K = scale² (I − 11ᵀ/C) ⊗ ⟨x xᵀ⟩."""
    model, x, _, _ = softmax_regression(generator)
    landscape = probe_landscape(model, probe_batch=probe_batch, probe_inputs=2000)
    landscape.begin_task()
    landscape.step()
    landscape.end_task([x])
    c = landscape.constraints["weight"]
    scale = CLASSES**-0.75
    centring = torch.eye(CLASSES, dtype=torch.float64) - 1.0 / CLASSES
    K = scale**2 * torch.kron(centring, x.T @ x / N)
    expected = diagonal_in(c, K)
    torch.testing.assert_close(
        c.stiffness, expected, rtol=0.8 if probe_batch == 64 else 0.3, atol=0.02 * float(K.max())
    )
    assert float(c.stiffness.sum()) == pytest.approx(float(K.trace()), rel=0.1)


def test_probe_perturbs_to_the_width_asked_and_restores_every_bit(generator):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    units, parameters = matrix_views(model), trained_parameters(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    seen = []

    def forward(batch):
        seen.append(model[0].weight.detach() - before["0.weight"])
        assert not model.training
        return model(batch[0])

    x = torch.randn(640, 6, generator=generator)
    chunks = [[part] for part in x.split(8)]
    widths = [0.25 if unit.matrix else 0.0 for unit in units]
    list(
        probe_gradients(
            model,
            units,
            parameters,
            chunks,
            forward=forward,
            widths=widths,
            scale=0.5,
            generator=generator,
        )
    )
    noise = torch.stack(seen)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.05)
    assert float((noise[0] - noise[1]).abs().max()) > 0  # fresh for each batch
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_factored_gradients_equal_dense_ones(generator):
    """The same directions, with and without the layers' taps: the same moments."""
    from flatcl.core import gradients as module

    model = nn.Sequential(
        nn.Linear(6, 40), nn.ReLU(inplace=True), nn.Linear(40, 40, bias=False), nn.Tanh(),
        nn.Linear(40, 3),
    )  # fmt: skip
    x = torch.randn(48, 6, generator=generator)
    units, parameters = matrix_views(model), trained_parameters(model)

    def gradients(tapped):
        with pytest.MonkeyPatch.context() as patch:
            if not tapped:
                patch.setattr(module, "tapped", lambda *_: nullcontext({}))
            return list(
                probe_gradients(
                    model, units, parameters, [[part] for part in x.split(16)],
                    forward=lambda batch: model(batch[0]), widths=[0.1] * len(units), scale=0.5,
                    generator=torch.Generator().manual_seed(1),
                )
            )  # fmt: skip

    rows, dense = gradients(True), gradients(False)
    assert all(isinstance(g, OuterProduct) and g.independent for batch in rows for g in batch)
    factored = [[replace(g, independent=False) for g in batch] for batch in rows]
    for i, unit in enumerate(units):
        sides = [KroneckerMoments.zeros(unit.gather(parameters)) for _ in range(2)]
        for which, batches in enumerate((factored, dense)):
            for batch in batches:
                sides[which].add(batch[i])
        torch.testing.assert_close(sides[0].S_in, sides[1].S_in, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(sides[0].S_out, sides[1].S_out, rtol=1e-4, atol=1e-6)
        basis = KroneckerBasis.from_moments(*sides[1].means())
        eigen = [EigenMoments.zeros(basis, unit.gather(parameters).detach()) for _ in range(2)]
        for which, batches in enumerate((factored, dense)):
            for batch in batches:
                eigen[which].add(batch[i])
        torch.testing.assert_close(eigen[0].second, eigen[1].second, rtol=1e-3, atol=1e-6)
        sides = [KroneckerMoments.zeros(unit.gather(parameters)) for _ in range(2)]
        eigen = [EigenMoments.zeros(basis, unit.gather(parameters).detach()) for _ in range(2)]
        for batch in stacked(rows, rows=20):
            sides[0].add(batch[i])
            eigen[0].add(batch[i])
        for batch in rows:
            for d, a in zip(batch[i].D, batch[i].A, strict=True):
                sides[1].add(torch.outer(d, a))
                eigen[1].add(torch.outer(d, a))
        torch.testing.assert_close(sides[0].S_in, sides[1].S_in, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(sides[0].S_out, sides[1].S_out, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(eigen[0].second, eigen[1].second, rtol=1e-3, atol=1e-6)


def test_rows_that_share_an_output_or_an_input_are_not_taken_as_independent(generator):
    """Tokens of one input, mixed by the network: the terms that join them are curvature."""

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(6, 40), nn.Linear(40, 3)

        def forward(self, x):
            return self.head(self.embed(x).cumsum(1)).flatten(0, 1)

    model = Mixer()
    units, parameters = matrix_views(model), trained_parameters(model)
    x = torch.randn(4, 5, 6, generator=generator)
    for outputs in (lambda b: model(b[0]), lambda b: model(b[0]).view(4, 5, 3)[:, -1]):
        (batch,) = probe_gradients(
            model, units, parameters, [[x]], forward=outputs, widths=[0.0, 0.0], scale=1.0,
            generator=generator,
        )  # fmt: skip
        assert not any(isinstance(g, OuterProduct) and g.independent for g in batch)


def test_row_by_row_the_probe_scatters_less_about_the_same_stiffness(generator):
    model = nn.Linear(6, 40)
    (unit,), parameters = matrix_views(model), trained_parameters(model)
    x = torch.randn(4096, 6, generator=generator)
    chunks = [[part] for part in x.split(16)]
    batches = list(
        probe_gradients(
            model, [unit], parameters, chunks, forward=lambda b: model(b[0]), widths=[0.0],
            scale=1.0, generator=generator,
        )
    )  # fmt: skip
    basis = KroneckerBasis(torch.eye(40), torch.eye(7))
    # r has covariance I − 11ᵀ/C, so that k = (1 − 1/C) ⟨a²⟩ in the coordinate basis.
    expected = (1 - 1 / 40) * torch.cat([x, torch.ones(4096, 1)], 1).square().mean(0)
    errors = []
    for independent in (True, False):
        found = EigenMoments.zeros(basis, unit.gather(parameters).detach())
        for (g,) in batches:
            found.add(replace(g, independent=independent))
        k = found.second / 4096
        torch.testing.assert_close(k.mean(0), expected, rtol=0.1, atol=0.0)
        errors.append(float((k - expected).square().mean().sqrt()))
    assert errors[0] < 0.5 * errors[1]


def test_probe_unit_is_fixed_by_the_first_task(generator):
    model = nn.Linear(4, 2)
    landscape = probe_landscape(model)
    landscape.begin_task()
    landscape.step()
    landscape.end_task([torch.randn(64, 4, generator=generator)])
    assert landscape.probe_scale == 2**-0.75
    grown = nn.Linear(4, 8)
    with torch.no_grad():
        grown.weight[:2], grown.bias[:2] = model.weight, model.bias
    landscape.attach(grown, torch.optim.SGD(grown.parameters(), lr=0.1))
    landscape.begin_task()
    landscape.step()
    landscape.end_task([torch.randn(64, 4, generator=generator)])
    assert landscape.probe_scale == 2**-0.75
    assert landscape.constraints["weight"].stiffness.shape == (8, 5)
