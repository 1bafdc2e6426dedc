"""What LDC rests on, where it is known: a quadratic valley that is Kronecker-diagonal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flatcl import exact
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.layers import matrix_views
from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations.ranking import rank_correlation, stiffness_ranking
from flatcl.fluctuations.surface import LossSurface

LOSS = 0.02
OUT, IN = 6, 9  # the bias is the last of the inputs


class Layer(nn.Module):
    """Gives back its matrix view, flattened, so that the loss is any function of it."""

    def __init__(self, *, bias_first: bool = False) -> None:
        super().__init__()
        names = ("bias", "weight") if bias_first else ("weight", "bias")
        for name in names:
            shape = (OUT,) if name == "bias" else (OUT, IN - 1)
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor:
        parts = dict(self.named_parameters())
        view = torch.cat([parts["weight"], parts["bias"][:, None]], dim=1)
        return view.reshape(1, -1).expand(len(x), -1)


def orthonormal(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


BASIS = KroneckerBasis(orthonormal(OUT, 1), orthonormal(IN, 2))
K = torch.logspace(2, -3, OUT * IN, dtype=torch.float64)[
    torch.randperm(OUT * IN, generator=torch.Generator().manual_seed(3))
].reshape(OUT, IN)


def valley(cap: float = math.inf, *, bias_first: bool = False) -> LossSurface:
    """L₀ + ½ Σ k z², at most ``cap`` at negative displacements along the first direction."""

    def loss(rows: Tensor, _: Tensor) -> Tensor:
        z = BASIS.U_out.T @ rows.reshape(-1, OUT, IN) @ BASIS.U_in
        rise = 0.5 * (K * z * z).sum((1, 2))
        left = z.reshape(len(z), -1)[:, int(K.argmax())] < 0
        return LOSS + torch.where(left, rise.clamp(max=cap), rise)

    return LossSurface(Layer(bias_first=bias_first), torch.zeros(1, 1), torch.zeros(1), loss=loss)


@pytest.mark.parametrize("bias_first", [False, True])
def test_a_quadratic_with_its_own_curvature_is_ranked_exactly(bias_first):
    found = stiffness_ranking(
        K, BASIS, valley(bias_first=bias_first), reach=1e3, tolerance=1e-7, directions=40
    )
    for correlation in (found.with_curvature, found.with_width, found.with_threshold):
        assert correlation == pytest.approx(1.0)
    torch.testing.assert_close(found.curvature, found.stiffness, rtol=1e-9, atol=0.0)
    for widths, factor in (
        (found.width, math.e),
        (found.far.width, (LOSS + 0.5) / LOSS),
    ):
        known = [exact.flatness(LOSS, float(k), factor=factor) for k in found.stiffness]
        torch.testing.assert_close(widths, torch.tensor(known).double(), rtol=1e-6, atol=0.0)
    assert found.law is not None
    assert found.law.exponent == pytest.approx(-0.5, abs=1e-3)
    assert found.near.loss == pytest.approx(LOSS)
    assert found.censored == (0, 0)
    assert "40 directions; rank correlation of k with h 1.00" in found.text()
    assert "e = -0.50 [-0.50, -0.50]" in found.text()


def test_places_are_log_spaced_falling_in_stiffness_and_say_which_direction():
    found = stiffness_ranking(K, BASIS, valley(), directions=12, reach=1e3)
    assert found.ranks.tolist() == [1, 2, 3, 4, 5, 6, 9, 13, 18, 26, 38, 54]
    assert bool((found.stiffness.diff() < 0).all())
    i, j = found.index.T
    torch.testing.assert_close(K[i, j], found.stiffness)
    everything = stiffness_ranking(K, BASIS, valley(), directions=999, reach=1e3)
    assert everything.ranks.tolist() == list(range(1, OUT * IN + 1))


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_column_of_a_layers_view_is_its_bias(bias):
    # In a network of one layer h = p'Hp must be that of the layer's own view, column by column.
    generator = torch.Generator().manual_seed(4)
    net = nn.Sequential(nn.Linear(IN - 1, OUT, bias=bias)).double()
    x = torch.randn(30, IN - 1, generator=generator, dtype=torch.float64)
    y = torch.randint(OUT, (30,), generator=generator)
    (unit,) = matrix_views(net)
    width = IN - 1 + bias
    basis = KroneckerBasis(BASIS.U_out, orthonormal(width, 5))
    with torch.no_grad():
        p = net(x).softmax(1)
    fed = torch.cat([x, torch.ones(30, 1)], dim=1) if bias else x
    a, b = fed @ basis.U_in, p @ basis.U_out
    # Known answer 15, in the basis: ⟨(uᵀ diag(p) u − (pᵀu)²) (xᵀv)²⟩.
    spread = p @ basis.U_out.square() - b.square()
    h = spread.T @ a.square() / len(x)
    surface = LossSurface(net, x, y, parameters=unit.names)
    found = stiffness_ranking(h, basis, surface, directions=h.numel(), reach=0.5)
    torch.testing.assert_close(found.curvature, found.stiffness, rtol=1e-9, atol=1e-12)
    assert found.with_curvature == pytest.approx(1.0)


def test_shuffled_stiffness_ranks_nothing():
    shuffled = K.reshape(-1)[
        torch.randperm(K.numel(), generator=torch.Generator().manual_seed(6))
    ].reshape(K.shape)
    found = stiffness_ranking(shuffled, BASIS, valley(), directions=K.numel(), reach=1e3)
    for correlation in (found.with_curvature, found.with_width, found.with_threshold):
        assert correlation is not None
        assert abs(correlation) < 0.3  # 54 directions: standard error 0.14


def test_censored_sides_have_no_width_and_are_left_out():
    # The flattest third crosses e L₀ beyond the reach; the stiffest has no crossing to the left at
    # +0.5 nats, as the loss is cut off there.
    reach = exact.flatness(LOSS, 10 ** (-3 + 5 / 3)) / 2
    found = stiffness_ranking(K, BASIS, valley(0.1), directions=K.numel(), reach=reach)
    flat = found.stiffness < 10 ** (-3 + 5 / 3)
    assert found.width.isnan().tolist() == flat.tolist()
    assert math.isnan(float(found.far.width[0]))
    assert found.censored == (int(flat.sum()), int(found.far.width.isnan().sum()))
    assert found.law is not None
    assert found.law.n == int((~flat).sum())
    assert found.law.exponent == pytest.approx(-0.5, abs=1e-3)
    assert found.with_width == pytest.approx(1.0)
    few = stiffness_ranking(K, BASIS, valley(), directions=K.numel(), reach=0.05)
    assert few.law is few.with_width is None
    assert few.with_curvature == pytest.approx(1.0)
    assert "too few" in few.text()


def test_rank_correlation_leaves_out_what_is_not_finite_and_needs_eight():
    x = torch.arange(9.0)
    y = x.square()
    y[3] = math.nan
    assert rank_correlation(x, y) == 1.0
    y[4] = math.inf
    assert rank_correlation(x, y) is None
    assert rank_correlation(x, torch.ones(9)) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"directions": 1}, OptionError, "directions 1"),
        ({"rise": 0.0}, OptionError, "rise 0"),
        ({"stiffness": K[:, :-1]}, DataError, r"view has shape \(6, 9\), the stiffness \(6, 8\)"),
        ({"basis": KroneckerBasis(BASIS.U_in, BASIS.U_out)}, DataError, r"the basis \(9, 6\)"),
        ({"stiffness": K / 0}, NonFiniteError, "measure it anew"),
    ],
)
def test_what_does_not_belong_to_one_layer_is_refused(change, error, message):
    given = {"stiffness": K, "basis": BASIS} | change
    with pytest.raises(error, match=message):
        stiffness_ranking(surface=valley(), **given)


@pytest.mark.parametrize("block", ["*", "0.bias", ["0.weight", "1.bias", "0.bias"]])
def test_a_block_that_is_no_layer_is_refused(block):
    net = nn.Sequential(nn.Linear(IN - 1, OUT), nn.Linear(OUT, OUT))
    surface = LossSurface(net, torch.zeros(1, IN - 1), torch.zeros(1).long(), parameters=block)
    with pytest.raises(DataError, match="one layer's weight"):
        stiffness_ranking(K, BASIS, surface)
