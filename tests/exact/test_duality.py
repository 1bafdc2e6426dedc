"""Known answers of the activity–weight duality, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.functional import cross_entropy, unfold

from flatcl.duality import DualLayer, decompose, dual_moves
from flatcl.errors import DataError, OptionError

K = 1000


def network(*, bias: bool, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 9, bias=bias), nn.ReLU(), nn.Linear(9, 7, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(7, 4, bias=bias)).double()


def samples(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *shape, dtype=torch.float64), torch.randint(4, (n,))


def moved_losses(model: nn.Module, name: str, x: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """ℓ(x_k; W + ΔW_k), each sample with weights of its own, by calling the network anew."""
    held = dict(model.named_parameters())
    weight, bias = held[f"{name}.weight"], held.get(f"{name}.bias")

    def loss(move: Tensor, one: Tensor, target: Tensor) -> Tensor:
        changed: dict[str, Tensor] = dict(held)
        if bias is None or not bias.requires_grad:
            changed[f"{name}.weight"] = weight + move.reshape(weight.shape)
        else:
            changed[f"{name}.weight"] = weight + move[:, :-1].reshape(weight.shape)
            changed[f"{name}.bias"] = bias + move[:, -1]
        return cross_entropy(functional_call(model, changed, (one[None],)), target[None])

    return torch.vmap(loss)(change, x, y).detach()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_the_loss_of_a_test_sample_is_that_of_its_partner_at_the_dual_weights(
    name: str, bias: bool
) -> None:
    model = network(bias=bias)
    layer = DualLayer(model, name)
    x, y = samples(K, 12)
    other, _ = samples(K, 12)
    moves = dual_moves(layer.weight, layer.activity(x), layer.activity(other))
    change = moves.dense().view(K, *layer.weight.shape)
    assert moves.kept.all() or not bias  # with a bias no activity is 0
    kept = moves.kept
    found = moved_losses(model, name, x, y, change)
    wanted = cross_entropy(model(other), y, reduction="none").detach()
    assert float((found - wanted)[kept].abs().max()) < 1e-10
    assert float((found - wanted).abs().mean()) < 1e-10 or not kept.all()
    assert torch.allclose(layer.losses(other, y), wanted, rtol=0, atol=1e-12)


def test_it_is_the_formula_and_the_least_squares_solution() -> None:
    torch.manual_seed(1)
    W = torch.randn(5, 8, dtype=torch.float64)
    a, b = torch.randn(2, K, 8, dtype=torch.float64)
    found = dual_moves(W, a, b).dense().view(K, 5, 8)
    change = (b - a) @ W.T
    formula = change[:, :, None] * a[:, None] / a.square().sum(1)[:, None, None]
    assert torch.allclose(found, formula, rtol=0, atol=1e-12)
    # ΔW a = WΔa row by row: aᵀ ΔWᵀ = (WΔa)ᵀ has 8 unknowns a row and one equation.
    least = torch.linalg.lstsq(a[:, None], change[:, None], driver="gelsd").solution.mT
    assert torch.allclose(found, least, rtol=0, atol=1e-10)
    norms = change.norm(dim=1) / a.norm(dim=1)
    assert torch.allclose(dual_moves(W, a, b).norms(), norms, rtol=1e-10, atol=0)


def test_several_places_have_the_pseudo_inverse_s_solution() -> None:
    torch.manual_seed(2)
    W = torch.randn(5, 8, dtype=torch.float64)
    a, b = torch.randn(2, 50, 3, 8, dtype=torch.float64)
    moves = dual_moves(W, a, b)
    least = torch.linalg.lstsq(a, (b - a) @ W.T, driver="gelsd").solution.mT
    assert moves.kept.all()
    assert torch.allclose(moves.dense().view(50, 5, 8), least, rtol=0, atol=1e-10)
    acted = moves.dense().view(50, 5, 8) @ a.mT
    assert torch.allclose(acted, W @ (b - a).mT, rtol=0, atol=1e-10)


def test_a_convolution_has_an_exact_dual_where_its_patches_are_independent() -> None:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4 * 4, 4)).double()
    x, y = samples(20, 1, 6, 6)
    other, _ = samples(20, 1, 6, 6)
    layer = DualLayer(model, "2")  # 4 places, 54 inputs and the bias
    moves = dual_moves(layer.weight, layer.activity(x), layer.activity(other))
    assert moves.kept.all()
    change = moves.dense().view(20, *layer.weight.shape)
    found = moved_losses(model, "2", x, y, change)
    wanted = cross_entropy(model(other), y, reduction="none").detach()
    assert float((found - wanted).abs().max()) < 1e-10
    patches = unfold(model[:2](x), 3).mT
    assert torch.allclose(layer.activity(x)[..., :-1], patches.detach())
    first = DualLayer(model, "0")  # 16 places, 9 inputs and the bias
    with pytest.raises(OptionError, match="16 places of 10 inputs"):
        dual_moves(first.weight, first.activity(x), first.activity(other))


def test_degenerate_pairs_are_counted_and_left_out() -> None:
    torch.manual_seed(4)
    W = torch.randn(3, 5, dtype=torch.float64)
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    a[0] = 0.0  # no weight acts on an input that is 0
    a[1] *= 1e-9
    b[2] = a[2]  # nothing to do
    a[3] = b[3] = 0.0  # nothing to do, for an input that is 0
    moves = dual_moves(W, a, b)
    assert (moves.without, moves.tiny, moves.still) == (1, 1, 2)
    assert moves.kept.tolist() == [False, False, True, True, True, True]
    assert moves.norms()[[2, 3]].tolist() == [0.0, 0.0]
    # Of two places that are the same input, W ΔA must be the same too.
    two = torch.randn(2, 1, 5, dtype=torch.float64).expand(2, 2, 5).clone()
    apart = two.clone()
    apart[1, 0] += 1.0
    assert dual_moves(W, two, two + 1.0).without == 0
    assert dual_moves(W, two, apart).without == 1


def test_what_cannot_be_used_is_refused() -> None:
    W = torch.ones(2, 3)
    with pytest.raises(DataError, match=r"\(4, 1, 2\)"):
        dual_moves(W, torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(DataError, match="NaN or infinite"):
        dual_moves(W, torch.full((4, 3), torch.nan), torch.ones(4, 3))


@pytest.mark.parametrize(("name", "bias"), [("2", False), ("2", True), ("4", True)])
def test_the_hessian_of_a_layer_is_that_of_autograd(name: str, bias: bool) -> None:
    model = network(bias=bias)
    layer = DualLayer(model, name, batch=7)
    x, y = samples(30, 12)
    held = {n: p.detach() for n, p in model.named_parameters()}

    def mean_loss(W: Tensor) -> Tensor:
        changed = dict(held)
        changed[f"{name}.weight"] = W[:, :-1] if bias else W
        if bias:
            changed[f"{name}.bias"] = W[:, -1]
        return cross_entropy(functional_call(model, changed, (x,)), y)

    dense = hessian(mean_loss, layer.weight).reshape(layer.size, layer.size)
    assert torch.allclose(layer.hessian(x, y), dense, rtol=0, atol=1e-12)


def test_the_hessian_of_a_convolution_is_that_of_autograd() -> None:
    torch.manual_seed(5)
    layers = [nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)]
    model = nn.Sequential(*layers).double()
    x, y = samples(6, 1, 6, 6)
    held = {n: p.detach() for n, p in model.named_parameters()}

    def mean_loss(W: Tensor) -> Tensor:
        changed = {**held, "0.weight": W[:, :-1].reshape(3, 1, 3, 3), "0.bias": W[:, -1]}
        return cross_entropy(functional_call(model, changed, (x,)), y)

    layer = DualLayer(model, "0")
    dense = hessian(mean_loss, layer.weight).reshape(layer.size, layer.size)
    assert torch.allclose(layer.hessian(x, y), dense, rtol=0, atol=1e-12)


def test_derivatives_along_a_move_are_gradient_and_curvature() -> None:
    model = network(bias=False)
    layer = DualLayer(model, "2")
    x, y = samples(5, 12)
    other, _ = samples(5, 12)
    moves = dual_moves(layer.weight, layer.activity(x), layer.activity(other))
    first, second = layer.along(x, y, moves.shift)
    held = {n: p.detach() for n, p in model.named_parameters()}
    for k, move in enumerate(moves.dense()):

        def loss(w: Tensor, k: int = k) -> Tensor:
            changed = {**held, "2.weight": w.view(7, 9)}
            return cross_entropy(functional_call(model, changed, (x[k : k + 1],)), y[k : k + 1])

        w = layer.weight.flatten()
        gradient = torch.func.grad(loss)(w)
        assert float(first[k]) == pytest.approx(float(gradient @ move), abs=1e-12)
        assert float(second[k]) == pytest.approx(float(move @ hessian(loss, w) @ move), abs=1e-12)


def test_a_sum_of_gaussian_moves_whose_losses_know_no_direction() -> None:
    """c_n = ⟨s⟩/√⟨s²⟩ and σ_g,n = √⟨s²⟩ σ_w,n though nothing links loss and direction."""
    generator = torch.Generator().manual_seed(6)
    n = 20_000
    a = torch.ones(n, 1, dtype=torch.float64)
    W = torch.eye(6, dtype=torch.float64)[:, :1] * 0 + 1.0
    sizes = torch.logspace(0, -1, 6, dtype=torch.float64)
    moves = dual_moves(W, a, a)
    left = (torch.randn(n, 6, generator=generator, dtype=torch.float64) * sizes)[:, :, None]
    moves = type(moves)(left, moves.right, moves.kept, 0, 0, 0)
    s = torch.rand(n, generator=generator, dtype=torch.float64)
    rises = s * moves.norms().square()
    found = decompose(moves, rises, torch.eye(6, dtype=torch.float64), generator=generator)
    root = float(s.square().mean().sqrt())
    built_in = torch.full((6,), float(s.mean()) / root, dtype=torch.float64)
    assert torch.allclose(found.correlation, built_in, atol=0.02)
    assert torch.allclose(found.null_correlation, built_in, atol=0.02)
    assert torch.allclose(found.sharpness, root * found.size, rtol=0.03)
    assert float((found.ratio - 1).abs().max()) < 5 * float(found.null_ratio.max()) < 0.1


def test_a_direction_that_nothing_moves_along_adds_nothing_to_the_mean_of_c() -> None:
    generator = torch.Generator().manual_seed(7)
    a = torch.ones(50, 1, dtype=torch.float64)
    moves = dual_moves(a[:3], a, a)
    left = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    left[:, 2] = 0
    moves = type(moves)(left[:, :, None], moves.right, moves.kept, 0, 0, 0)
    basis = torch.eye(3, dtype=torch.float64)
    found = decompose(moves, moves.norms().square(), basis, generator=generator)
    assert found.correlation[2].isnan()
    assert found.overall_correlation == pytest.approx(1)  # s is the same for all pairs
    assert found.leading + found.of_means == pytest.approx(found.total)
    still = decompose(moves, moves.norms() * 0, basis, generator=generator)
    assert still.overall_correlation != still.overall_correlation  # nothing rises: no c at all
