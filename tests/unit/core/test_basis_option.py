"""How layers are held: the options `basis` and `rank`, from a layer's name to what is kept."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core import choice
from flatcl.core.choice import Ranks, ranks
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.data import load_images
from flatcl.errors import OptionError, StateError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}
WAYS = {
    "low-rank": {"basis": "low-rank", "rank": 8},
    "diagonal": {"basis": "diagonal"},
    "mixed": {"basis": {"0.*": "low-rank", "2.*": "diagonal"}, "rank": 8},
}


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def permuted_digits(tasks):
    images = load_images("digits")
    g = torch.Generator().manual_seed(0)
    x, test = images.x_train.flatten(1).float(), images.x_test.flatten(1).float()
    orders = [torch.randperm(x.shape[1], generator=g) for _ in range(tasks)]
    x, y = x[:800], images.y_train[:800]
    return [(x[:, o], y) for o in orders], [(test[:, o], images.y_test) for o in orders]


def run(optimizer, *, tasks=2, epochs=5, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    opt = OPTIMIZERS[optimizer](model.parameters())
    landscape = Landscape(model, opt, options=LDCOptions(**options))
    g = torch.Generator().manual_seed(1)
    train, test = permuted_digits(tasks)
    for x, y in train:
        landscape.begin_task()
        for _ in range(epochs):
            for chosen in torch.randperm(len(x), generator=g).split(32):
                opt.zero_grad()
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()
                opt.step()
                landscape.step(len(chosen))
        landscape.end_task([x])
    with torch.no_grad():
        right = [float((model(x).argmax(1) == y).float().mean()) for x, y in test]
    return right, model, landscape


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_sixteen_directions_a_side_forget_less_than_none_and_hold_a_third(optimizer):
    free, _, _ = run(optimizer, strength=0.0)
    held, _, landscape = run(optimizer, basis="low-rank", rank=16)
    full, _, complete = run(optimizer)
    assert held[0] > free[0] + 0.05
    assert held[0] > full[0] - 0.03
    assert held[1] > 0.85
    assert landscape.bytes_held() < 0.6 * complete.bytes_held()
    assert landscape.constraints["0.weight"].stiffness.shape == (17, 17)


def test_auto_is_the_complete_basis_on_layers_of_usual_width_bit_for_bit():
    few = {"tasks": 2, "epochs": 1, "interval": 5}
    (_, auto, _), (_, same, _) = (
        run("adam", **few, **kind) for kind in ({}, {"basis": "kronecker"})
    )
    assert torch.equal(weights(auto), weights(same))


@pytest.mark.parametrize("source", ["probe", "sgd"])
@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_trains_and_goes_on_from_a_saved_state(way, source):
    small = {"tasks": 2, "epochs": 2, "source": source, "interval": 5, **WAYS[way]}
    _, model, landscape = run("sgd", **small)
    shapes = {n: tuple(c.stiffness.shape) for n, c in landscape.constraints.items()}
    first = (9, 9) if way != "diagonal" else (50, 65)
    last = (9, 9) if way == "low-rank" else (10, 51)
    assert shapes == {"0.weight": first, "2.weight": last}
    assert all(float(c.stiffness.sum()) > 0 for c in landscape.constraints.values())
    file = io.BytesIO()
    torch.save(landscape.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    twin = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    twin.load_state_dict(model.state_dict())
    restored = Landscape(twin, OPTIMIZERS["sgd"](twin.parameters()), options=landscape.options)
    restored.load_state_dict(state)
    with torch.no_grad():
        for m in (model, twin):
            m[0].weight += 0.01
    assert float(landscape.energy()) > 0
    assert torch.equal(landscape.energy(), restored.energy())
    broken = {n: dict(c) for n, c in state["constraints"].items()}
    broken["0.weight"]["stiffness"] = torch.zeros(3, 3)
    with pytest.raises(StateError, match="shapes that do not fit"):
        restored.load_state_dict({**state, "constraints": broken})


@pytest.mark.parametrize("before", [{"basis": "kronecker"}, *WAYS.values()], ids=str)
@pytest.mark.parametrize("after", [{"basis": "kronecker"}, *WAYS.values()], ids=str)
def test_a_state_of_one_kind_goes_on_as_another_and_keeps_its_trace(before, after):
    small = {"tasks": 1, "epochs": 1, "interval": 5}
    _, model, landscape = run("sgd", **small, **before)
    other = Landscape(
        model, OPTIMIZERS["sgd"](model.parameters()), options=LDCOptions(interval=5, **after)
    )
    if before == after:
        other.load_state_dict(landscape.state_dict())
    else:
        with pytest.warns(UserWarning, match="basis="):
            other.load_state_dict(landscape.state_dict())
    x, _ = permuted_digits(1)[0][0]
    other.begin_task()
    other.step()
    model[0].weight.grad = None  # nothing pulls: only the second constraint is added
    other.end_task([x])
    for name, old in landscape.constraints.items():
        new, parts = other.constraints[name], []
        for c in (old, new):
            k = c.stiffness
            if c.basis is not None:
                out, width = c.basis.directions()
                k = k * out[:, None] * width
            parts.append(float(k.sum()))
        # Two measurements of the same network on the same inputs, summed.
        assert parts[1] == pytest.approx(2 * parts[0], rel=0.2), name


def test_states_from_before_the_option_load_without_a_word(recwarn):
    _, model, landscape = run("sgd", tasks=1, epochs=1)
    state = landscape.state_dict()
    for option in ("basis", "rank"):
        del state["options"][option]
    fresh = Landscape(model, OPTIMIZERS["sgd"](model.parameters()))
    fresh.load_state_dict(state)
    assert len(recwarn) == 0
    assert fresh.constraints["0.weight"].basis.U_in.shape == (65, 65)


def test_which_basis_a_layer_gets_by_its_sides_and_its_name():
    assert ranks("auto", 256, "w", (2048, 2049)) == Ranks(None, 256)
    assert ranks("auto", 4000, "w", (2049, 4001)) == Ranks(None, 4000)
    assert ranks("kronecker", 256, "w", (9000, 300)) == Ranks(None, None)
    assert ranks("low-rank", 256, "w", (256, 257)) == Ranks(None, 256)
    assert ranks("diagonal", 256, "w", (5, 5)) is None
    named = {"body.*.weight": "low-rank", "body.*": "kronecker", "head.*": "diagonal"}
    assert ranks(named, 2, "body.3.weight", (5, 5)) == Ranks(2, 2)
    assert ranks(named, 2, "body.3.other", (5, 5)) == Ranks(None, None)
    assert ranks(named, 2, "head.weight", (5, 5)) is None
    assert ranks(named, 2, "tail.weight", (5, 3000)) == Ranks(None, 2)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("basis", "dense", "basis is 'dense'; choose one of"),
        ("basis", 3, "basis is 3; choose one of"),
        ("basis", {"head.*": "full"}, r"'head.\*' maps to 'full'"),
        ("basis", {1: "auto"}, "1 maps to 'auto'"),
        ("rank", 0, "rank is 0"),
        ("rank", 2.5, "rank is 2.5"),
    ],
)
def test_bad_options_name_the_value(option, value, told):
    with pytest.raises(OptionError, match=told):
        LDCOptions(**{option: value})


def test_a_mapping_is_copied():
    named = {"a": "diagonal"}
    options = LDCOptions(basis=named)
    named["a"] = "nonsense"
    assert options.basis == {"a": "diagonal"}


def test_the_probe_perturbs_matrices_however_they_are_held(generator):
    model, seen = nn.Linear(6, 8), []
    landscape = Landscape(
        model,
        OPTIMIZERS["sgd"](model.parameters()),
        options=LDCOptions(basis="diagonal", centre=False, damping=0.5),
        forward=lambda batch: (seen.append(model.weight.detach().clone()), model(batch[0]))[1],
    )
    landscape.begin_task()
    with torch.no_grad():
        model.weight += 0.1
    landscape.step()
    landscape.end_task([torch.randn(64, 6, generator=generator)])
    assert max(float((w - model.weight.detach()).abs().max()) for w in seen) > 0.01
    c = landscape.constraints["weight"]
    assert c.basis is None
    assert c.stiffness.shape == (8, 7)
    # A share δ / (1 + δ) of each column's mean is the damping, the same in every row.
    assert (c.stiffness >= 0.99 * c.stiffness.mean(0) / 3).all()


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_wide_head_that_grows_is_truncated_and_its_new_rows_are_free(optimizer, monkeypatch):
    monkeypatch.setattr(choice, "FULL_SIDE", 30)
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 40))
    for outputs in (40, 55, 70):
        if outputs > model[2].out_features:
            head, old = nn.Linear(20, outputs), model[2]
            with torch.no_grad():
                head.weight[: old.out_features] = old.weight
                head.bias[: old.out_features] = old.bias
            model[2] = head
        opt = OPTIMIZERS[optimizer](model.parameters())
        if outputs == 40:
            landscape = Landscape(model, opt, options=LDCOptions(interval=3, rank=5))
        landscape.metric.optimizer = opt
        landscape.begin_task()
        if outputs > 40:
            with torch.no_grad():
                model[2].weight[-15:] += 1.0
            assert float(landscape.energy()) == pytest.approx(0.0, abs=1e-12)
        x = torch.randn(128, 12, generator=g)
        y = torch.randint(0, outputs, (128,), generator=g)
        for chosen in torch.arange(128).split(16):
            opt.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            opt.step()
            landscape.step()
        landscape.end_task([x])
        head = landscape.constraints["2.weight"]
        assert head.basis.U_out.shape == (outputs, 5)
        assert head.stiffness.shape == (6, 21)
        assert landscape.constraints["0.weight"].stiffness.shape == (20, 13)
    assert torch.isfinite(weights(model)).all()


def test_wide_layers_hold_little_more_than_their_anchor():
    model = nn.Linear(3000, 2500, bias=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    landscape = Landscape(model, opt, options=LDCOptions(rank=8, interval=1, probe_inputs=40))
    x = torch.randn(40, 3000, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        landscape.begin_task()
        model.weight.grad = torch.zeros_like(model.weight)
        landscape.step()
        landscape.end_task([x])
    c = landscape.constraints["weight"]
    assert c.stiffness.shape == (9, 9)
    of_inputs = 4 * 9 * 3000  # of one group: no class has enough inputs for one of its own
    assert landscape.bytes_held() == 4 * (3000 * 2500 + 5500 * 8 + 81) + of_inputs
