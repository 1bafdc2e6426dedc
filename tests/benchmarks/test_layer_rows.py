"""Layers as matrices: their rows times their matrix are what the layer itself computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.methods._layers import (
    Layer,
    from_matrix,
    input_rows,
    layers_of,
    output_rows,
    to_matrix,
    trainable,
)
from benchmarks.methods._passes import watched
from flatcl.errors import OptionError

LAYERS = [
    (nn.Linear(4, 3), (5, 4)),
    (nn.Linear(4, 3, bias=False), (5, 4)),
    (nn.Linear(4, 3), (5, 2, 4)),
    (nn.Conv2d(2, 3, 3, padding=1), (5, 2, 6, 6)),
    (nn.Conv2d(2, 3, (2, 3), stride=(2, 1), dilation=2, padding=(1, 0), bias=False), (5, 2, 8, 9)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_rows_times_the_matrix_are_the_outputs(layer: Layer, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    matrix = to_matrix(trainable(layer))
    outputs = output_rows(layer, layer(x))
    torch.testing.assert_close(input_rows(layer, x) @ matrix.T, outputs, rtol=1e-5, atol=1e-6)
    for part, parameter in zip(
        from_matrix(matrix, trainable(layer)), trainable(layer), strict=True
    ):
        assert torch.equal(part, parameter)


def test_frozen_parameters_have_no_columns() -> None:
    layer = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    layer.weight.requires_grad_(False)
    assert torch.equal(input_rows(layer, x), torch.ones(5, 1, 1))
    assert to_matrix(trainable(layer)).shape == (3, 1)
    layer.weight.requires_grad_(True)
    layer.bias.requires_grad_(False)
    assert torch.equal(input_rows(layer, x)[:, 0], x)
    model = nn.Sequential(nn.BatchNorm1d(4).requires_grad_(False), layer, nn.Linear(3, 2))
    model[2].requires_grad_(False)
    assert list(layers_of(model)) == ["1"]


def test_a_watched_output_survives_an_activation_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    seen: dict[str, Tensor] = {}

    def watch(name: str, layer: Layer, x: Tensor, y: Tensor) -> None:
        seen[name] = y

    x = torch.randn(50, 4)
    with watched(layers_of(model), watch):
        model(x)
    assert list(seen) == ["0", "2"]
    assert (seen["0"] < 0).any()
    torch.testing.assert_close(seen["0"], model[0](x))
    model(torch.zeros(1, 4))
    assert len(seen["0"]) == 50  # the hook is gone


class Scaled(nn.Linear):
    """Not the product of its input rows and its matrix."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def tied() -> nn.Module:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), r"^layer '1' is a BatchNorm1d: only"),
        (Scaled(2, 2), r"^layer 'the model itself' is a Scaled: only"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), "groups 2"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")), "padding 'same'"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "of circular"),
        (tied(), r"^layer '1' shares a parameter with another: untie them$"),
        (nn.Linear(2, 2).requires_grad_(False), "no trainable parameter"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        layers_of(model)
