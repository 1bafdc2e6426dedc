"""The generalisation gap through a layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatcl.duality import DualLayer, generalization_gap
from flatcl.errors import DataError, OptionError

Part = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Sequential, Part, Part]:
    """A network that has learned its few samples by heart, with biases and dropout."""
    torch.manual_seed(0)
    centres = torch.randn(3, 8).double()
    y, t = (torch.arange(n) % 3 for n in (60, 30))
    x, z = (centres[labels] + torch.randn(len(labels), 8).double() for labels in (y, t))
    layers = [nn.Linear(8, 10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 6), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(6, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(400):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, (x, y), (z, t)


def test_the_sum_is_the_matched_gap_in_any_orthonormal_basis(trained) -> None:
    model, train, test = trained
    own = generalization_gap(model, "3", train, test)
    size = DualLayer(model, "3").size
    turned = torch.linalg.qr(torch.randn(size, size).double()).Q
    other = generalization_gap(model, "3", train, test, basis=turned)
    for name in ("nearest", "second", "random"):
        mine, theirs = own.matched[name], other.matched[name]
        assert float(mine.decomposition.contribution.sum()) == pytest.approx(mine.gap, abs=1e-12)
        assert float(theirs.decomposition.contribution.sum()) == pytest.approx(mine.gap, abs=1e-12)
        d = mine.decomposition
        assert d.leading + d.of_means == pytest.approx(mine.gap, abs=1e-12)
        assert mine.error < 1e-10
    assert own.gap == pytest.approx(other.gap)


def test_true_and_matched_gap_differ_by_the_partners(trained) -> None:
    model, train, test = trained
    found = generalization_gap(model, "3", train, test)
    model = copy.deepcopy(model).eval()
    losses = [cross_entropy(model(x), y).item() for x, y in (train, test)]
    assert found.gap == pytest.approx(losses[1] - losses[0], abs=1e-12)
    for m in found.matched.values():
        assert m.decomposition.pairs == len(test[0])
        assert found.gap - m.gap == pytest.approx(m.partner_loss - found.train_loss, abs=1e-12)


def test_directions_are_ordered_by_curvature_and_complete(trained) -> None:
    model, train, test = trained
    found = generalization_gap(model, "3", train, test)
    assert (found.curvature.diff() <= 0).all()
    assert len(found.curvature) == 6 * 11  # with the bias
    given = generalization_gap(model, "3", train, test, basis=found.basis[:, :5])
    assert torch.allclose(given.curvature, found.curvature[:5], atol=1e-10)
    nearest = found.matched["nearest"].decomposition
    assert torch.allclose(
        given.matched["nearest"].decomposition.sharpness, nearest.sharpness[:5], atol=1e-12
    )


def test_curvature_along_given_directions_needs_no_dense_hessian(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer too large for its Hessian, as the message says, still has directions of one's own."""
    model, train, test = trained
    turned = torch.linalg.qr(torch.randn(66, 66).double()).Q[:, :7]
    dense = generalization_gap(model, "3", train, test, basis=turned)
    monkeypatch.setattr("flatcl.duality.layer._LARGEST", 65)
    with pytest.raises(OptionError, match="or at your own directions"):
        generalization_gap(model, "3", train, test)
    found = generalization_gap(model, "3", train, test, basis=turned)
    torch.testing.assert_close(found.curvature, dense.curvature, rtol=1e-10, atol=1e-14)
    assert not (found.curvature.diff() <= 0).all()  # in the order given


def test_a_loss_without_curvature_has_flat_directions_alone(trained: Any) -> None:
    model, train, test = trained
    found = generalization_gap(model, "5", train, test, loss=lambda z, y: z[:, 0])
    assert not found.curvature.any()
    assert found.flat == len(found.curvature) == 3 * 7


def test_shifts_are_as_many_as_inputs(trained: Any) -> None:
    model, (x, y), _ = trained
    layer = DualLayer(model, "3", batch=20)
    shift = torch.zeros(60, 1, 6).double()
    assert len(layer.losses(x, y, shift)) == 60
    for short in (shift[:40], shift[:59], shift[:1]):
        with pytest.raises(DataError, match=f"{len(short)} shifts for 60 inputs"):
            layer.losses(x, y, short)
        with pytest.raises(DataError, match=f"{len(short)} shifts for 60 inputs"):
            layer.along(x, y, short)


def test_scaling_a_layer_up_and_the_next_down_changes_no_product() -> None:
    """ReLU without biases: Δw grows with W, g falls with it; the gap and all products stay."""
    torch.manual_seed(1)
    layers = [nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(4, 3, bias=False)).double()
    x, z = torch.randn(40, 6).double(), torch.randn(20, 6).double()
    train, test = (x, torch.arange(40) % 3), (z, torch.arange(20) % 3)
    basis = torch.linalg.qr(torch.randn(20, 20).double()).Q
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.get_submodule("2").weight.mul_(4.0)  # type: ignore[operator]
        scaled.get_submodule("4").weight.div_(4.0)  # type: ignore[operator]
    before, after = (
        generalization_gap(m, "2", train, test, basis=basis).matched["nearest"].decomposition
        for m in (model, scaled)
    )
    assert torch.allclose(after.size, 4 * before.size)
    assert torch.allclose(after.sharpness, before.sharpness / 4)
    assert torch.allclose(after.contribution, before.contribution)
    assert torch.allclose(after.ratio, before.ratio)


def test_the_model_is_left_as_it_was(trained) -> None:
    model, train, test = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    slopes = [torch.full_like(p, float(i)) for i, p in enumerate(model.parameters())]
    for p, slope in zip(model.parameters(), slopes, strict=True):
        p.grad = slope.clone()
    model.train()
    model[2].eval()
    generalization_gap(model, "3", train, test)
    assert [m.training for m in model] == [True, True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model[3]._forward_hooks
    for p, slope in zip(model.parameters(), slopes, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, slope)


def test_partners_may_be_near_in_the_layer_s_own_activities(trained) -> None:
    model, train, test = trained
    inputs = generalization_gap(model, "3", train, test)
    activity = generalization_gap(model, "3", train, test, space="activity")
    sizes = [
        float(g.matched["nearest"].decomposition.size.square().sum()) for g in (inputs, activity)
    ]
    assert sizes[1] < sizes[0]  # nearer in the layer's space: a smaller move
    assert "nearest" in str(activity)


def test_a_frozen_bias_stays_out(trained) -> None:
    model, train, test = trained
    model = copy.deepcopy(model)
    model[3].bias.requires_grad_(False)
    found = generalization_gap(model, "3", train, test)
    assert len(found.curvature) == 6 * 10
    assert found.matched["nearest"].error < 1e-10


def test_what_cannot_be_used_is_named(trained) -> None:
    model, train, test = trained
    for name, message in (("2", "is a Dropout"), ("9", "is no layer")):
        with pytest.raises(OptionError, match=message):
            generalization_gap(model, name, train, test)
    space: Any = "pixels"
    with pytest.raises(OptionError, match="space is 'pixels'"):
        generalization_gap(model, "3", train, test, space=space)
    frozen = copy.deepcopy(model)
    frozen[3].weight.requires_grad_(False)
    with pytest.raises(OptionError, match="is frozen"):
        generalization_gap(frozen, "3", train, test)
    arrays = tuple(part.numpy() for part in train)
    with pytest.raises(DataError, match=r"inputs: a ndarray is no tensor: give torch\.as_t"):
        generalization_gap(model, "0", arrays, test)
    with pytest.raises(DataError, match="one test sample has no mean over pairs"):
        generalization_gap(model, "0", train, (test[0][:1], test[1][:1]))
    with pytest.raises(DataError, match="30 inputs and 29 targets"):
        generalization_gap(model, "3", train, (test[0], test[1][1:]))
    twice = nn.Sequential(model[0], nn.ReLU(), *(2 * [nn.Linear(10, 10).double()]))
    with pytest.raises(OptionError, match="called 2 times"):
        generalization_gap(twice, "2", train, test)
    odd = torch.ones(4, 2).double()
    with pytest.raises(OptionError, match="orthonormal"):
        generalization_gap(model, "3", train, test, basis=torch.ones(66, 2).double())
    with pytest.raises(OptionError, match="directions have 4 entries"):
        generalization_gap(model, "3", train, test, basis=odd)
