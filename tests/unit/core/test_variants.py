"""Ablated stiffness and directions: what each keeps, and that the engine applies them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flatcl import Landscape, LDCOptions
from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.measure import Found
from flatcl.core.merge import merge, spectrum_in
from flatcl.core.options import STIFFNESSES
from flatcl.core.stiffness import label_directions
from flatcl.core.variants import (
    KEPT,
    equal,
    flipped,
    isotropic,
    power,
    random_basis,
    shuffled,
    varied,
)
from flatcl.errors import OptionError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spectrum(seed: int = 0, shape: tuple[int, int] = (4, 7)) -> Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64).pow(6)


VARIANTS = {
    "equal": equal,
    "isotropic": isotropic,
    "shuffled": lambda k: shuffled(k, generator()),
    "flipped": flipped,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_trace_stays(name: str) -> None:
    k = spectrum()
    torch.testing.assert_close(VARIANTS[name](k).sum(), k.sum(), rtol=1e-12, atol=0)
    zero = VARIANTS[name](torch.zeros(2, 3))
    assert not zero.any()


def test_flipped_reverses_the_order_and_twice_is_nothing() -> None:
    k = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(flipped(k), torch.tensor([[0.0, 3.0], [2.0, 1.0]]))
    torch.testing.assert_close(flipped(flipped(spectrum())), spectrum())


def test_shuffled_is_another_arrangement_of_the_same_values() -> None:
    k = spectrum()
    dealt = shuffled(k, generator())
    assert not torch.equal(dealt, k)
    torch.testing.assert_close(dealt.reshape(-1).sort()[0], k.reshape(-1).sort()[0])


def test_equal_holds_the_fewest_directions_that_carry_the_share() -> None:
    k = torch.tensor([[0.5, 0.3], [0.195, 0.005]], dtype=torch.float64)
    torch.testing.assert_close(equal(k)[k > 0.1], torch.full((3,), 1.0 / 3.0).double())
    assert equal(k)[1, 1] == 0
    k = spectrum()
    held = equal(k) > 0
    assert k[held].sum() >= KEPT * k.sum()
    assert k[held].sum() - k[held].min() < KEPT * k.sum()


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.5])
def test_power_leaves_the_weighted_mean(exponent: float) -> None:
    k = spectrum()
    changed = power(k, exponent)
    torch.testing.assert_close((k * changed).sum(), k.square().sum(), rtol=1e-12, atol=0)
    ratio = changed / k.pow(exponent)
    torch.testing.assert_close(ratio, ratio[0, 0].expand(ratio.shape))
    assert not power(torch.zeros(2, 2), exponent).any()


def test_a_random_basis_is_orthonormal_and_uniform_in_sign() -> None:
    like = KroneckerBasis(torch.eye(3).double(), torch.eye(5).double())
    g = generator()
    draws = [random_basis(like, g) for _ in range(400)]
    for basis in draws[:3]:
        torch.testing.assert_close(basis.U_in.T @ basis.U_in, torch.eye(5).double())
    # Without the signs of R, QR by Householder gives a first column of one sign.
    first = torch.stack([basis.U_out for basis in draws])
    assert first.mean(0).abs().max() < 5 * (1 / 3) ** 0.5 / 400**0.5


def test_a_variant_is_rebased_as_a_merge_of_the_tasks_would() -> None:
    g = generator(1)
    like = KroneckerBasis(torch.eye(4).double(), torch.eye(7).double())
    anchor = torch.zeros(4, 7).double()
    old = Constraint(random_basis(like, g), spectrum(1), anchor)
    own = random_basis(like, g)
    found = Found({"w": own}, {"w": spectrum(2)})
    options = LDCOptions(stiffness="flipped")
    result = varied(found, {"w": old}, options, g)
    expected, _ = merge([old, Constraint(own, flipped(spectrum(2)), anchor)])
    assert result.bases["w"] is not None
    assert expected.basis is not None
    torch.testing.assert_close(result.bases["w"].U_in, expected.basis.U_in)
    total = result.stiffness["w"] + spectrum_in(old, result.bases["w"])
    torch.testing.assert_close(total, expected.stiffness)


def test_the_default_measurement_is_passed_on_untouched() -> None:
    found = Found({"w": None}, {"w": spectrum()})
    assert varied(found, {}, LDCOptions(), generator()) is found
    assert varied(found, {}, LDCOptions(stiffness="power:1"), generator()) is found


@pytest.mark.parametrize("bad", ["", "power", "power:0", "power:-1", "power:x", "power:inf", "odd"])
def test_an_unknown_stiffness_is_refused(bad: str) -> None:
    with pytest.raises(OptionError, match="stiffness"):
        LDCOptions(stiffness=bad)


def test_directions_are_refused_where_they_mean_nothing() -> None:
    with pytest.raises(OptionError, match="directions"):
        LDCOptions(directions="odd")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="pass over inputs"):
        LDCOptions(directions="fisher", source="sgd")


@pytest.mark.parametrize("outputs", [1, 3])
def test_label_directions_have_the_covariance_of_the_softmax(outputs: int) -> None:
    z = torch.randn(outputs, generator=generator(2), dtype=torch.float64)
    n = 200_000
    r = label_directions(z.expand(n, outputs), 0.1, generator(3))
    p = z.sigmoid() if outputs == 1 else z.softmax(0)
    expected = (p * (1 - p))[None] if outputs == 1 else torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(r.mean(0), torch.zeros(outputs).double(), rtol=0, atol=5e-3)
    torch.testing.assert_close(r.T @ r / n, expected, rtol=0, atol=5e-3)


def tasks(number: int) -> list[tuple[Tensor, Tensor]]:
    made = []
    for task in range(number):
        g = generator(task)
        x = torch.randn(64, 5, generator=g)
        made.append((x, (x @ torch.randn(5, generator=g) > 0).long()))
    return made


def trained(**options: object) -> tuple[Landscape, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    landscape = Landscape(model, optimizer, options=LDCOptions(interval=5, **options))  # type: ignore[arg-type]
    for x, y in tasks(3):
        landscape.begin_task()
        for i in range(40):
            part = slice(16 * (i % 4), 16 * (i % 4 + 1))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
            landscape.step(16)
        landscape.end_task([(x, y)])
    return landscape, model


CHANGES = [
    *({"stiffness": name} for name in (*STIFFNESSES[1:], "power:0.5")),
    {"directions": "random"},
    {"directions": "fisher"},
    {"source": "fisher"},
    {"source": "sgd", "stiffness": "shuffled"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_variant_runs_and_differs_from_the_default(change: dict[str, str]) -> None:
    _, plain = trained()
    landscape, model = trained(**change)
    pairs = list(zip(plain.parameters(), model.parameters(), strict=True))
    assert all(bool(torch.isfinite(b).all()) for _, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)
    for constraint in landscape.constraints.values():
        assert bool((constraint.stiffness >= 0).all())
        assert float(constraint.stiffness.sum()) > 0


def test_after_one_task_all_variants_hold_the_default_trace() -> None:
    def trace(**options: str) -> float:
        torch.manual_seed(0)
        layer = nn.Linear(5, 2)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        landscape = Landscape(layer, optimizer, options=LDCOptions(**options))  # type: ignore[arg-type]
        x, y = tasks(1)[0]
        landscape.begin_task()
        nn.functional.cross_entropy(layer(x), y).backward()
        optimizer.step()
        landscape.step()
        landscape.end_task([(x, y)])
        return float(landscape.constraints["weight"].stiffness.sum())

    default = trace()
    for change in [{"stiffness": n} for n in STIFFNESSES[1:]] + [{"directions": "random"}]:
        assert trace(**change) == pytest.approx(default, rel=1e-5), change


def test_an_isotropic_constraint_is_l2_to_the_old_weights() -> None:
    landscape, _ = trained(stiffness="isotropic")
    constraint = landscape.constraints["0.weight"]
    k = constraint.stiffness
    torch.testing.assert_close(k, k.mean().expand(k.shape), rtol=1e-4, atol=0)
    x = torch.randn(k.shape, generator=generator())
    torch.testing.assert_close(constraint.apply(x), k.mean() * x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", [{"directions": "random"}, {"stiffness": "shuffled"}])
def test_a_truncated_layer_stays_truncated_over_tasks(change) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = LDCOptions(basis="low-rank", rank=3, **change)
    landscape = Landscape(model, optimizer, options=options)
    for task in range(2):
        x = torch.randn(60, 20, generator=generator(task))
        y = torch.randint(4, (60,), generator=generator(task))
        landscape.begin_task()
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            landscape.step()
        landscape.end_task([x])
        basis = landscape.constraints["0.weight"].basis
        assert basis is not None
        assert (basis.U_out.shape, basis.U_in.shape) == ((12, 3), (21, 3))
        assert landscape.constraints["0.weight"].stiffness.shape == (4, 4)
