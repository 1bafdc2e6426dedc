"""Networks of the comparison: shapes, initial weights, and the slice of a told task."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatcl.errors import OptionError
from flatcl.models import TaskSlice, make_model


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_mlp_has_the_parameters_of_its_widths() -> None:
    model = make_model((1, 28, 28), 10, seed=0, hidden=(100, 100))
    assert _weights(model).numel() == 89_610
    assert _weights(make_model((1, 28, 28), 10, seed=0, bias=False)).numel() == 89_400
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_a_network_without_hidden_layers_is_linear() -> None:
    assert _weights(make_model((4,), 3, seed=0, hidden=())).numel() == 15


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 2, 2), (1, 1, 5)])
def test_cnn_pools_while_the_image_lasts(shape: tuple[int, int, int]) -> None:
    model = make_model(shape, 7, seed=0, kind="cnn")
    assert model(torch.zeros(2, *shape)).shape == (2, 7)
    pools = sum(isinstance(layer, nn.MaxPool2d) for layer in model.modules())
    assert pools == min(3, min(shape[1:]).bit_length() - 1)


def test_cnn_refuses_flat_inputs() -> None:
    with pytest.raises(OptionError, match=r"inputs have shape .* take model 'mlp'"):
        make_model((64,), 10, seed=0, kind="cnn")


@pytest.mark.parametrize("init", ["torch", "he"])
def test_weights_depend_on_the_seed_alone(init: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make_model((1, 8, 8), 10, seed=3, init=init)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = make_model((1, 8, 8), 10, seed=3, init=init)  # type: ignore[arg-type]
    other = make_model((1, 8, 8), 10, seed=4, init=init)  # type: ignore[arg-type]
    assert torch.equal(_weights(first), _weights(again))
    assert not torch.equal(_weights(first), _weights(other))


def test_he_draws_with_variance_two_over_fan_in() -> None:
    layer = make_model((400,), 10, seed=0, hidden=(300,), init="he")[1]  # type: ignore[index]
    assert layer.weight.var().item() == pytest.approx(2 / 400, rel=0.02)  # 120 000 draws
    assert not layer.bias.any()


def test_a_told_task_gets_its_own_slice_of_the_logits() -> None:
    model = make_model((6,), 6, seed=0, outputs_per_task=2, hidden=(5,))
    assert isinstance(model, TaskSlice)
    x, labels = torch.randn(4, 6), torch.tensor([2, 0, 1, 2])
    logits = model.network(x)
    expected = torch.stack([logits[n, 2 * t : 2 * t + 2] for n, t in enumerate(labels)])
    assert torch.equal(model(x, labels), expected)
    assert torch.equal(model(x, 1), logits[:, 2:4])
    model.known_train_tasks_labels = {0, 2}
    every = model(x, None)
    assert isinstance(every, dict)
    assert set(every) == {0, 2}
    assert torch.equal(every[2], logits[:, 4:])


def test_tasks_that_share_all_outputs_need_no_slice() -> None:
    assert isinstance(make_model((6,), 6, seed=0, outputs_per_task=6), nn.Sequential)
