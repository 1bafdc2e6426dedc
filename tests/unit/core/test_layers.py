"""Which parameters are held, and as what: every trained number once, whatever the network."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import ZOO

from flatcl.core.constraint import Constraint
from flatcl.core.eigenbasis import KroneckerBasis
from flatcl.core.layers import Part, Unit, matrix_views, named_parameters, trained_parameters
from flatcl.core.metric import StepMetric
from flatcl.core.pull import TIERS, by_falling_stiffness, pull_reference
from flatcl.core.schedule import PullSchedule
from flatcl.errors import OptionError


def views_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    parameters = trained_parameters(model)
    return {
        unit.name: tuple(unit.gather(parameters).shape)
        for unit in matrix_views(model)
        if unit.matrix
    }


@pytest.mark.parametrize("name", ZOO)
def test_every_trained_number_is_held_exactly_once(name: str) -> None:
    model = ZOO[name].model()
    units, parameters = matrix_views(model), trained_parameters(model)
    assert len({unit.name for unit in units}) == len(units)
    counts = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for unit in units:
        unit.write_(counts, unit.gather(counts) + 1.0)
        unit.subtract_(counts, torch.full_like(unit.gather(counts), -1.0))
    assert all(bool((count == 2).all()) for count in counts.values())
    before = {n: p.detach().clone() for n, p in parameters.items()}
    for unit in units:
        unit.write_(parameters, unit.gather(parameters).detach().clone())
        unit.subtract_(parameters, torch.zeros_like(unit.gather(parameters)))
    assert all(torch.equal(parameters[n], before[n]) for n in before)


def test_the_matrices_of_each_kind_of_layer() -> None:
    groups, lstm = views_of(ZOO["groups"].model()), views_of(ZOO["lstm"].model())
    assert groups == {
        "0.weight[0]": (4, 7),
        "0.weight[1]": (4, 7),
        "4.weight[0]": (2, 9),
        "4.weight[1]": (2, 9),
        "6.weight": (2, 13),
        "9.weight": (3, 15),
    }
    assert lstm["layer.weight_ih_l0"] == lstm["layer.weight_ih_l0_reverse"] == (16, 4)
    assert lstm["layer.weight_hh_l0"] == (16, 3)
    assert lstm["layer.weight_hr_l0"] == (2, 4)
    attention = views_of(ZOO["attention"].model())
    assert attention["fused.in_proj_weight[q]"] == (4, 5)
    assert attention["separate.k_proj_weight"] == (4, 7)
    assert attention["separate.v_proj_weight"] == (4, 6)
    assert views_of(ZOO["adapters"].model()) == {
        "A": (2, 6),
        "B": (8, 2),
        "down.weight": (2, 8),
        "up.weight": (3, 2),
    }
    assert views_of(ZOO["language"].model())["embed.weight"] == (7, 5)
    assert "0.weight" not in views_of(ZOO["bag"].model())
    assert views_of(nn.Bilinear(2, 3, 4)) == {"weight": (4, 7)}
    assert views_of(nn.LayerNorm([3, 4])) == {}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_matrix_times_the_patches_is_the_convolution(
    dims: int, groups: int, generator: torch.Generator
) -> None:
    """Ordinary and transposed, in the one layout: W [out, in · positions], bias the last column."""
    size: Any = (2,) * dims
    for layer in (
        [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1](4, 6, size, groups=groups),
        [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d][dims - 1](
            4, 6, size, groups=groups
        ),
    ):
        parameters = trained_parameters(layer)
        x = torch.randn(4, *([2] if layer.transposed is False else [1]) * dims, generator=generator)
        y = layer(x[None])[0].flatten(1)  # one patch in, or one patch out
        width = 4 // groups
        for g, unit in enumerate(matrix_views(layer)):
            W = unit.gather(parameters)
            rows = slice(g * 6 // groups, (g + 1) * 6 // groups)
            patch = x[g * width : (g + 1) * width].flatten()
            if layer.transposed:
                kernel = W[:, :-1].view(6 // groups, width, -1)
                expected = torch.einsum("oip,i->op", kernel, patch) + W[:, -1:]
            else:
                expected = W @ torch.cat([patch, torch.ones(1)])[:, None]
            torch.testing.assert_close(y[rows], expected)


def test_what_no_matrix_takes_of_a_parameter_is_held_entry_by_entry() -> None:
    attention = nn.MultiheadAttention(4, 2, kdim=6)
    attention.k_proj_weight.requires_grad_(False)
    units = {unit.name: unit for unit in matrix_views(attention)}
    rest = units["in_proj_bias[4:8]"]
    assert rest == Unit("in_proj_bias[4:8]", Part("in_proj_bias", (4, 8)), None, matrix=False)
    assert units["q_proj_weight"].bias == Part("in_proj_bias", (0, 4))
    assert units["v_proj_weight"].bias == Part("in_proj_bias", (8, 12))
    assert "k_proj_weight" not in units


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_leaves_of_computed_weights_stay_entry_by_entry() -> None:
    new = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    old = nn.utils.weight_norm(nn.Linear(3, 4))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    buffers = [b.clone() for b in spectral.buffers()]
    for layer in (new, old, spectral):
        assert not any(unit.matrix for unit in matrix_views(layer))
    assert all(torch.equal(a, b) for a, b in zip(buffers, spectral.buffers(), strict=True))


def test_parameters_that_cannot_be_held_are_refused() -> None:
    with pytest.raises(OptionError, match="has no shape yet: pass one batch"):
        matrix_views(nn.LazyLinear(3))
    with pytest.raises(OptionError, match="real and imaginary"):
        matrix_views(nn.Linear(2, 2, dtype=torch.complex64))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_names_are_those_of_the_unwrapped_model(wrap) -> None:  # type: ignore[no-untyped-def]
    inner = nn.Sequential(nn.Linear(2, 2))
    inner.add_module("module", nn.Linear(2, 2))  # an attribute of that name is no wrapper
    plain = [name for name, _ in inner.named_parameters()]
    assert [name for name, _ in named_parameters(wrap(inner))] == plain
    outer = nn.ModuleDict({"part": wrap(inner)})
    assert [name for name, _ in named_parameters(outer)] == [f"part.{name}" for name in plain]
    assert {unit.name for unit in matrix_views(wrap(inner))} == {"0.weight", "module.weight"}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_pull_of_sliced_units_is_the_dense_proximal_step(
    optimizer: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the whole of in_proj, with K block diagonal in query, key and value."""
    monkeypatch.setattr("flatcl.core.pull._TOLERANCE", 1e-9)
    monkeypatch.setattr("flatcl.core.pull._ITERATIONS", 100)
    d = 4
    model = nn.MultiheadAttention(d, 2, dtype=torch.float64)
    parameters = trained_parameters(model)
    units = [u for u in matrix_views(model) if u.name.startswith("in_proj_weight")]
    assert [u.name[-3:] for u in units] == ["[q]", "[k]", "[v]"]
    opt = (
        torch.optim.SGD(model.parameters(), lr=0.1)
        if optimizer == "sgd"
        else torch.optim.Adam(model.parameters(), lr=0.1)
    )
    x = torch.randn(5, 3, d, generator=generator, dtype=torch.float64)
    F.mse_loss(model(x, x, x)[0], torch.zeros_like(x)).backward()
    opt.step()
    constraints = {}
    for unit in units:
        root = torch.randn(d + 1, d + 1, generator=generator, dtype=torch.float64)
        out = torch.randn(d, d, generator=generator, dtype=torch.float64)
        k = torch.rand(d, d + 1, generator=generator, dtype=torch.float64)
        anchor = torch.randn(d, d + 1, generator=generator, dtype=torch.float64)
        basis = KroneckerBasis.from_moments(out @ out.T, root @ root.T)
        constraints[unit.name] = by_falling_stiffness(Constraint(basis, k, anchor))
    metric = StepMetric(opt)
    fused = Unit("all", Part("in_proj_weight"), Part("in_proj_bias"), matrix=True)
    before = fused.gather(parameters).detach().clone()
    D = metric.read(fused, parameters, [1.0])
    assert D is not None
    schedule = PullSchedule(units, parameters, constraints, metric, 2.0, 20)
    schedule.travelled = [1.0]
    schedule.pull_(TIERS)
    K = torch.block_diag(*(c.to_dense() for c in constraints.values()))
    anchor = torch.cat([c.anchor for c in constraints.values()])
    dense = torch.as_tensor(D, dtype=torch.float64).expand(3 * d, d + 1).reshape(-1)
    A = torch.eye(len(K), dtype=torch.float64) + 2.0 * dense[:, None] * K
    expected = torch.linalg.solve(A, (before - anchor).reshape(-1)).view_as(anchor) + anchor
    torch.testing.assert_close(fused.gather(parameters).detach(), expected, rtol=1e-6, atol=1e-7)
    one = constraints["in_proj_weight[k]"]
    y = pull_reference(
        one, before[d : 2 * d], D[d : 2 * d] if isinstance(D, torch.Tensor) else D, strength=2.0
    )
    torch.testing.assert_close(
        units[1].gather(parameters).detach(), before[d : 2 * d] - y, rtol=1e-6, atol=1e-7
    )


def test_unit_names_say_which_part() -> None:
    names = {unit.name for kind in ZOO.values() for unit in matrix_views(kind.model())}
    assert all(re.fullmatch(r"[\w.]+(\[[\w:]+\])?", name) for name in names)
