"""A network inside a wrapper has the same landscape, under the same names."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from flatcl.duality import DualLayer
from flatcl.errors import OptionError
from flatcl.fluctuations import LossSurface, Recorder, SketchRecorder, open_record
from flatcl.fluctuations.watch import paths, selected

BACKEND = "aot_eager"  # one node of the graph a compiled part, as with the default backend


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def compiled(net):
    return torch.compile(net, backend=BACKEND)


def compiled_in_place(net):
    net.compile(backend=BACKEND)
    return net


def with_a_compiled_part(net):
    net[0] = torch.compile(net[0], backend=BACKEND)
    return net


WRAPPERS = [compiled, compiled_in_place, with_a_compiled_part, DistributedDataParallel]


@pytest.fixture(autouse=True)
def process_group(request, tmp_path):
    if "DistributedDataParallel" not in request.node.name:
        yield
        return
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.fixture
def data(generator):
    return torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_its_surface_is_that_of_the_network(wrap, rows, data, generator):
    torch.compiler.reset()
    plain = LossSurface(network(), *data, parameters="0.0.weight", rows=rows)
    net = wrap(network())
    net(data[0])  # compiled before it is looked at
    found = LossSurface(net, *data, parameters="0.0.weight", rows=rows)
    assert found.shapes == plain.shapes == {"0.0.weight": (5, 4)}
    w = plain.reference
    assert torch.equal(found.reference, w)
    assert torch.equal(found.flatten(dict(found.model.named_parameters())), w)
    v = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    assert torch.equal(found.losses(w + v), plain.losses(w + v))
    assert torch.equal(found.gradient(w), plain.gradient(w))
    assert torch.equal(found.hessian_products(w, v), plain.hessian_products(w, v))
    assert torch.equal(found.sample_slopes(w, v), plain.sample_slopes(w, v))
    chosen = torch.arange(12).view(3, 4)
    assert torch.equal(found.minibatch_gradients(w, chosen), plain.minibatch_gradients(w, chosen))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_its_training_is_recorded_under_the_network_s_names(wrap, data, tmp_path):
    torch.compiler.reset()
    kept = []
    for folder, net in (("plain", network()), ("wrapped", wrap(network()))):
        sketch = SketchRecorder(net, 2, parameters="0.*")
        recorder = Recorder(net, tmp_path / folder, parameters="0.*")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        with recorder:
            for _ in range(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(data[0]), data[1]).backward()
                optimizer.step()
                recorder.step()
                sketch.step()
        record = open_record(tmp_path / folder)
        kept.append((record.names, record.weights(), sketch.directions().variances))
    (names, weights, variances), (other, theirs, spread) = kept
    assert other == names == ("0.0.weight", "0.0.bias")
    torch.testing.assert_close(theirs, weights)
    torch.testing.assert_close(spread, variances)


def test_a_pattern_may_have_the_wrapper_s_words():
    net = with_a_compiled_part(network())
    chosen = selected(net, "0._orig_mod.*")
    assert list(chosen) == ["0.0.weight", "0.0.bias"]
    assert paths(net, chosen)["0.0.bias"] == "0._orig_mod.0.bias"


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_its_layers_have_the_dual_of_the_network_s(wrap, data):
    torch.compiler.reset()
    plain = DualLayer(network(), "0.0")
    net = wrap(network())
    net(data[0])
    found = DualLayer(net, "0.0")
    shift = torch.ones(12, 1, 5, dtype=torch.float64)
    assert torch.equal(found.activity(data[0]), plain.activity(data[0]))
    assert torch.equal(found.hessian(*data), plain.hessian(*data))
    for ours, theirs in zip(found.along(*data, shift), plain.along(*data, shift), strict=True):
        assert torch.equal(ours, theirs)


def test_a_layer_that_is_not_there_is_told_without_the_wrapper_s_words():
    with pytest.raises(OptionError, match=r"'0\.0', '2'"):
        DualLayer(compiled(network()), "1")
