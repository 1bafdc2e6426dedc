"""L2: a penalty known by hand, and what it does to training."""

from __future__ import annotations

import pytest
import torch
from blobs import common, flat, in_second_task, network, plugged, train, trained
from digits import final_accuracy, naive_accuracy
from torch import nn

from benchmarks.methods.l2 import RIVAL, L2Plugin
from flatcl.errors import OptionError
from flatcl.rivals import bytes_held
from flatcl.streams import Stream


def run(value: float, stream: Stream, model: nn.Module) -> torch.Tensor:
    train(RIVAL.build(value, **common(model)), stream)
    return flat(model)


def test_penalty_and_its_gradient_by_hand(stream: Stream) -> None:
    model, plugin = network(), L2Plugin(3.0)
    train(plugged(plugin, model), stream, tasks=1)
    second = in_second_task(model)
    plugin.before_backward(second)
    assert float(second.loss.detach()) == 0.0  # not moved yet
    with torch.no_grad():
        model.get_parameter("0.bias").add_(0.5)
        model.get_parameter("2.weight").sub_(0.25)
    model.zero_grad()
    plugin.before_backward(second)
    second.loss.backward()
    # ½ · 3 · (5 biases · 0.5² + 10 weights · 0.25²); the gradient is 3 · (w − w_old)
    assert float(second.loss.detach()) == pytest.approx(1.5 * (5 * 0.25 + 10 * 0.0625), rel=1e-5)
    torch.testing.assert_close(model.get_parameter("0.bias").grad, torch.full((5,), 1.5))
    torch.testing.assert_close(model.get_parameter("2.weight").grad, torch.full((2, 5), -0.75))


def test_the_anchor_is_a_copy_of_the_latest_weights(stream: Stream) -> None:
    model, plugin = network(), L2Plugin(1.0)
    train(plugged(plugin, model), stream)
    assert plugin.anchor is not None
    assert torch.equal(plugin.anchor, flat(model))  # of the second task, not the first
    with torch.no_grad():
        model.get_parameter("0.bias").add_(1.0)
    assert not torch.equal(plugin.anchor, flat(model))


def test_no_penalty_is_naive_and_a_strong_one_stays(stream: Stream) -> None:
    naive = trained("naive", stream)
    assert torch.equal(run(0.0, stream, network()), naive)
    first = network()
    train(RIVAL.build(0.0, **common(first)), stream, tasks=1)
    moves = [float((run(value, stream, network()) - flat(first)).norm()) for value in (0.0, 1, 10)]
    assert moves[0] > moves[1] > moves[2] > 0


def test_frozen_weights_are_left_out_and_bytes_are_those_of_one_copy(stream: Stream) -> None:
    model = network()
    model.get_parameter("0.weight").requires_grad_(False)
    strategy = RIVAL.build(1.0, **common(model))
    train(strategy, stream)
    assert bytes_held(strategy) == 4 * (5 + 10 + 2)


def test_a_network_that_grew_is_refused(stream: Stream) -> None:
    model, plugin = network(), L2Plugin(1.0)
    train(plugged(plugin, model), stream, tasks=1)
    model.append(nn.Linear(2, 2))
    with pytest.raises(OptionError, match=r"^the network has 53 .* it had 47: neither let it grow"):
        plugin.before_backward(in_second_task(model))


def test_it_forgets_less_than_naive_on_permuted_digits() -> None:
    assert final_accuracy(RIVAL, 0.1) > naive_accuracy() + 0.03
