"""Gaussians of inputs, the rehearsal at their draws, and inputs that ride along with a batch."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.engine import Landscape
from flatcl.core.gaussians import RANK, InputGaussians
from flatcl.core.options import LDCOptions
from flatcl.core.predictions import floats_an_input, predictions_at
from flatcl.core.rehearsal import LIMIT, Rehearsal
from flatcl.core.riders import Ride, rides_free
from flatcl.core.sample import Sample
from flatcl.errors import StateError

WEIGHTS = 10**6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs_of(n, d, seed=0, spread=1.0):
    mixing = torch.randn(d, d, generator=generator(99)) * spread
    return torch.randn(n, d, generator=generator(seed)) @ mixing + torch.arange(d)


def taken(*tasks, classes=None):
    found = InputGaussians()
    for x in tasks:
        zeros = torch.zeros(len(x), dtype=torch.long)
        found.take_in(Sample.grouped([x], zeros if classes is None else classes), WEIGHTS)
    return found


def moments(x):
    x = x.double()
    return x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)


@pytest.mark.parametrize("sizes", [(50,), (50, 30), (20, 40, 7)])
def test_moments_of_parts_are_those_of_the_whole(sizes):
    parts = [inputs_of(n, RANK, seed) for seed, n in enumerate(sizes)]
    (group,) = taken(*parts).groups.values()
    mean, covariance = moments(torch.cat(parts))
    assert group.count == sum(sizes)
    torch.testing.assert_close(group.mean.double(), mean, rtol=1e-5, atol=1e-5)
    B = group.directions.double()
    torch.testing.assert_close(B.T @ B, covariance, rtol=1e-4, atol=1e-4)


def test_more_dimensions_keep_the_leading_principal_directions():
    x = inputs_of(200, 30)
    (group,) = taken(x).groups.values()
    values, vectors = torch.linalg.eigh(moments(x)[1])
    best = (vectors[:, -RANK:] * values[-RANK:]) @ vectors[:, -RANK:].T
    B = group.directions.double()
    assert B.shape == (RANK, 30)
    torch.testing.assert_close(B.T @ B, best, rtol=1e-4, atol=1e-3)


def test_draws_have_the_groups_moments_shares_and_labels():
    low, high = inputs_of(100, 4, 1), inputs_of(300, 4, 2) + 50.0
    found = InputGaussians()
    x, t = torch.cat([low, high]).reshape(400, 2, 2), torch.tensor([3] * 100 + [5] * 300)
    sample = Sample.grouped([x, torch.zeros(400), t], torch.zeros(400, dtype=torch.long))
    found.take_in(sample, WEIGHTS)
    drawn, other, label = found.draw(40_000, generator())
    assert drawn.shape == (40_000, 2, 2)
    assert drawn.dtype == x.dtype
    assert not other.any()
    of_low = label == 3
    assert of_low.double().mean().item() == pytest.approx(0.25, abs=0.01)
    for part, whole in ((drawn[of_low], low), (drawn[~of_low], high)):
        mean, covariance = moments(whole)
        found_mean, found_covariance = moments(part.flatten(1))
        scale = covariance.diagonal().max()
        assert (found_mean - mean).abs().max() < 5 * (scale / len(part)) ** 0.5
        assert (found_covariance - covariance).abs().max() < 0.06 * scale


def test_draws_depend_on_the_generator_alone():
    gaussians = taken(inputs_of(20, 5))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b = (gaussians.draw(6, generator(3))[0] for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_stay_few_and_keep_to_their_task_label():
    found = InputGaussians()
    for label in (0, 1):
        x = inputs_of(600, 3, label)
        classes = torch.arange(600) % 30
        t = torch.full((600,), label)
        found.take_in(Sample.grouped([x, classes, t], classes), weights=1)
    # 16 at the least of 60, and one for all others of each label.
    assert len(found.groups) == 16 + 2
    assert sum(group.count for group in found.groups.values()) == 1200
    assert all(int(group.rest[1]) == key[1] for key, group in found.groups.items())


def test_no_group_is_of_a_few_inputs():
    found = InputGaussians()
    x, classes = inputs_of(100, 3), torch.tensor([0] * 80 + list(range(1, 21)))
    found.take_in(Sample.grouped([x], classes), WEIGHTS)
    assert {key: group.count for key, group in found.groups.items()} == {(0, 0): 80, (-1, 0): 20}
    few = torch.tensor([0] * 3 + [7] * 5)
    found.take_in(Sample.grouped([inputs_of(8, 3)], few), WEIGHTS)
    assert {key: group.count for key, group in found.groups.items()} == {(0, 0): 83, (-1, 0): 25}
    low = torch.tensor([0] * 3 + [5] * 30)  # the few come first
    assert list(taken(inputs_of(33, 3), classes=low).groups) == [(5, 0)]


@pytest.mark.parametrize(
    "batch",
    [
        [torch.zeros(4, 3, dtype=torch.long)],
        [torch.tensor([[0.0], [float("nan")]])],
    ],
    ids=["tokens", "nan"],
)
def test_inputs_without_a_gaussian_are_left_out(batch):
    def forward(b):
        return b[0].new_zeros(len(b[0]), 2).float()

    assert Sample.of(nn.Linear(3, 2), forward, [batch]) is None


def test_inputs_that_come_with_vectors_are_left_out_with_a_warning():
    batch = [torch.zeros(40, 3), torch.zeros(40, 2), torch.zeros(40)]
    with pytest.warns(UserWarning, match=r"more than one number an input \(shapes \(2,\)\)"):
        assert Sample.of(nn.Linear(3, 2), lambda b: b[0][:, :2], [batch]) is None


def test_inputs_of_another_shape_are_left_out_with_a_warning():
    found = taken(inputs_of(20, 4))
    with pytest.warns(UserWarning, match=r"shape \(6,\).*had \(4,\)"):
        found.take_in(
            Sample.grouped([inputs_of(20, 6)], torch.zeros(20, dtype=torch.long)), WEIGHTS
        )
    assert found.shape == (4,)
    assert [group.count for group in found.groups.values()] == [20]


class Model(nn.Module):
    """Two layers, with or without something that mixes a batch or is random."""

    def __init__(self, middle=None, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 16), middle or nn.Identity(), nn.Tanh(), nn.Linear(16, outputs)
        )

    def forward(self, x):
        return self.net(x)


def forward_of(model):
    return lambda batch: model(batch[0])


def begun(model, number=8):
    return Rehearsal.begun(
        taken(inputs_of(50, 4, spread=0.3)),
        model,
        forward_of(model),
        number=number,
        generator=generator(),
    )


MIDDLES = {"plain": None, "norm": nn.BatchNorm1d(16), "dropout": nn.Dropout(0.5)}


@pytest.mark.parametrize("moved", [0.1, 1.0])
@pytest.mark.parametrize("kind", MIDDLES)
def test_the_loss_starts_at_zero_and_is_the_divergence_in_evaluation_mode(kind, moved):
    model = Model(copy.deepcopy(MIDDLES[kind]))
    rehearsal = begun(model)
    old = copy.deepcopy(model).eval()
    first = rehearsal.loss(model, forward_of(model), 0)
    assert abs(first.item()) < 1e-6
    with torch.no_grad():
        for p in model.parameters():
            p.add_(moved * torch.randn(p.shape, generator=generator(7)))
    loss = rehearsal.loss(model, forward_of(model), 1)
    x = rehearsal.parts[0][8:16]
    new = copy.deepcopy(model).eval()
    p, q = old(x).softmax(-1).double(), new(x).softmax(-1).double()
    divergence = (p * (p / q).log()).sum(-1).mean()
    assert (divergence.item() > LIMIT) == (moved == 1.0)
    divergence = divergence * min(1.0, LIMIT / divergence.item())
    assert loss.item() == pytest.approx(divergence.item(), rel=1e-4)
    assert model.training
    loss.backward()
    expected = torch.autograd.grad(divergence, list(new.parameters()))
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-5)


def test_a_single_output_is_a_logit_and_rows_of_outputs_are_a_mean():
    model = Model(outputs=1)
    rehearsal = begun(model)
    with torch.no_grad():
        model.net[-1].bias += 1.0
    x = rehearsal.parts[0][:8]
    q = model(x)[:, 0].sigmoid()
    p = (model(x)[:, 0] - 1.0).sigmoid()
    bernoulli = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert rehearsal.loss(model, forward_of(model), 0).item() == pytest.approx(
        bernoulli.item(), rel=1e-4
    )

    model = Model(outputs=6)
    rows = lambda batch: model(batch[0]).reshape(-1, 2, 3)  # noqa: E731
    gaussians = taken(inputs_of(50, 4))
    several = Rehearsal.begun(gaussians, model, rows, number=8, generator=generator())
    assert len(several.parts[0]) == 1024
    expected = predictions_at(model, rows, [several.parts[0][:8]])
    assert expected.shape == (8, 2, 3)
    with torch.no_grad():
        model.net[-1].bias[0] += 1.0
    found = rows([several.parts[0][:8]]).log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert several.loss(model, rows, 0).item() == pytest.approx(divergence.item(), rel=1e-4)


def test_outputs_masked_by_infinity_count_as_none():
    model = Model(outputs=4)
    mask = torch.tensor([0.0, 0.0, 0.0, float("-inf")])
    masked = lambda batch: model(batch[0]) + mask  # noqa: E731
    gaussians = taken(inputs_of(50, 4))
    of_four = Rehearsal.begun(gaussians, model, masked, number=8, generator=generator())
    cut = lambda batch: model(batch[0])[:, :3]  # noqa: E731
    of_three = Rehearsal.begun(gaussians, model, cut, number=8, generator=generator())
    with torch.no_grad():
        model.net[-1].bias[0] += 1.0
    losses = [of_four.loss(model, masked, 0), of_three.loss(model, cut, 0)]
    torch.testing.assert_close(*losses)
    losses[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_pool_is_visited_in_turn_and_begun_again():
    rehearsal = begun(Model(), number=300)
    assert len(rehearsal.parts[0]) == 900
    starts = [0, 300, 600, 0]
    for step, start in enumerate(starts):
        (inputs,) = rehearsal._at(step)
        assert torch.equal(inputs, rehearsal.parts[0][start : start + 300])


def dense(side):
    """A network with a row of three outputs for each pixel; how to call it, and its Gaussians."""
    torch.manual_seed(0)
    model = nn.Conv2d(1, 3, 3, padding=1)
    inputs = inputs_of(20, side * side).reshape(20, 1, side, side)
    return model, lambda batch: model(batch[0]).movedim(1, -1), taken(inputs)


def test_the_pool_is_limited_in_predictions_too_and_its_first_draws_stay(monkeypatch):
    model, forward, gaussians = dense(6)
    found = []
    for floats in (2**24, 1024 * 36):  # the inputs alone allow for all 1024
        monkeypatch.setattr("flatcl.core.rehearsal._POOL_FLOATS", floats)
        draw = generator()
        pool = Rehearsal.begun(gaussians, model, forward, number=8, generator=draw)
        found.append((pool, draw.get_state()))
    (whole, after), (cut, as_far) = found
    assert [len(pool.parts[0]) for pool in (whole, cut)] == [1024, 336]
    assert torch.equal(after, as_far)
    assert torch.equal(whole.parts[0][:336], cut.parts[0])
    tensors = [v for v in vars(cut).values() if isinstance(v, torch.Tensor)] + cut.parts
    held = sum(t.untyped_storage().nbytes() for t in tensors)
    assert held == 4 * 336 * 36 * (1 + 3) + 4  # inputs, p and the limit
    with torch.no_grad():
        model.weight[0] += 0.1
    for step in (0, 41):
        losses = [pool.loss(model, forward, step).item() for pool in (whole, cut)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert losses[0] > 0


def test_predictions_are_limited_in_what_one_pass_returns(monkeypatch):
    model, forward, _ = dense(6)
    x, passes = torch.randn(30, 1, 6, 6, generator=generator()), []

    def counted(batch):
        passes.append(len(batch[0]))
        return forward(batch)

    whole = predictions_at(model, counted, [x])
    monkeypatch.setattr("flatcl.core.predictions.FLOATS", 12 * 3 * 36)
    floats = floats_an_input(model, counted, [x[:4]])
    assert floats == 3 * 36
    parts = predictions_at(model, counted, [x], floats=floats)
    assert passes == [30, 4, 12, 12, 6]
    torch.testing.assert_close(parts, whole)


def test_a_trial_leaves_the_random_state_alone():
    model = nn.Linear(4, 3)
    before = torch.get_rng_state()
    always = lambda batch: F.dropout(model(batch[0]), training=True)  # noqa: E731
    assert floats_an_input(model, always, [torch.ones(5, 4)]) == 3
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", MIDDLES)
def test_riders_change_nothing_and_are_let_on_only_where_they_would_not(kind):
    model = Model(copy.deepcopy(MIDDLES[kind]))
    x, riders = inputs_of(6, 4, 1), [inputs_of(3, 4, 2)]
    buffers = copy.deepcopy(dict(model.named_buffers()))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert rides_free(model, forward_of(model), riders) == (kind == "plain")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert all(module.training for module in model.modules())
    if kind != "plain":
        return
    with Ride(model, riders) as ride:
        outputs = model(x)
        again = model(x)  # only the first pass has riders
    torch.testing.assert_close(outputs, model(x))
    torch.testing.assert_close(ride.outputs, model(riders[0]))
    assert len(again) == len(outputs) == 6
    with Ride(model, riders) as ride:
        written = model(x).mul_(2.0)  # as a loss may: no view of what the riders have
    torch.testing.assert_close(written, 2.0 * outputs)
    torch.testing.assert_close(ride.outputs, model(riders[0]))
    (written.sum() + 3.0 * ride.outputs.sum()).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (2.0 * model(x).sum() + 3.0 * model(riders[0]).sum()).backward()
    for p, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-5, atol=1e-5)
    with Ride(model.eval(), riders) as ride:
        model(x)
    assert ride.outputs is None
    model.train()
    with Ride(model, [riders[0][:, :2]]) as ride:  # another shape
        model(x)
    assert ride.outputs is None
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_network_that_cannot_be_called_with_riders_is_left_alone():
    class Pair(Model):
        def forward(self, x, scale):
            return self.net(x) * scale.sum()

    model = Pair()
    assert not rides_free(model, lambda b: model(b[0], torch.ones(2)), [inputs_of(3, 4)])

    class Tuple(Model):
        def forward(self, x):
            return (self.net(x), x)

    model = Tuple()
    assert not rides_free(model, lambda b: model(b[0])[0], [inputs_of(3, 4)])


class Heads(Model):
    """Several heads, chosen by a second argument that may be left out."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x, head=None):
        z = self.net(x)
        found = torch.stack([one(z) for one in self.heads], 1)
        return found[torch.arange(len(x)), torch.zeros(len(x)).long() if head is None else head]


BY_HEAD = {"first": lambda m: lambda b: m(b[0]), "last": lambda m: lambda b: m(b[0], b[-1])}


@pytest.mark.parametrize(
    ("parts", "forward", "called", "rides"),
    [
        (2, "first", 1, True),
        (2, "first", 2, False),  # the second part is labels of classes
        (2, "last", 2, False),
        (3, "first", 1, True),
        (3, "first", 2, False),
        (3, "last", 1, False),
        (3, "last", 2, True),
    ],
)
def test_riders_are_passed_as_they_were_in_the_trial_alone(parts, forward, called, rides):
    model = Heads()
    forward = BY_HEAD[forward](model)
    x, labels = inputs_of(60, 4, spread=0.3), torch.arange(60) % 3
    gaussians = InputGaussians()
    classes = torch.zeros(60, dtype=torch.long)
    gaussians.take_in(Sample.grouped([x, labels, labels][:parts], classes), WEIGHTS)
    rehearsal = Rehearsal.begun(gaussians, model, forward, number=8, generator=generator())
    with rehearsal.joined(model, 0) as ride:
        outputs = model(*[x, torch.ones(60, dtype=torch.long)][:called])
    assert len(outputs) == 60
    assert (ride is not None and ride.outputs is not None) is rides
    assert rehearsal.loss(model, forward, 0).item() == pytest.approx(0.0, abs=1e-6)
    saved = Rehearsal.from_state(rehearsal.state_dict(), torch.device("cpu"))
    assert saved.free == rehearsal.free


def test_two_landscapes_ride_in_one_pass():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    both = [Landscape(model, optimizer, options=LDCOptions(seed=seed)) for seed in (0, 1)]
    x, y = inputs_of(40, 4), torch.arange(40) % 3
    seen = []
    watch = model.register_forward_hook(lambda module, args, outputs: seen.append(len(outputs)))
    for task in range(2):
        for landscape in both:
            landscape.begin_task()
        seen.clear()
        for _ in range(3):
            optimizer.zero_grad()
            with both[0].joining(), both[1].joining():
                loss = F.cross_entropy(model(x), y)
            for landscape in both:
                loss = loss + landscape.rehearsal()
            loss.backward()
            optimizer.step()
            for landscape in both:
                landscape.step()
        assert seen == [40, 40, 40]  # one pass a step, and hooks see the batch alone
        assert all((each.task.rehearsal is not None) == (task == 1) for each in both)
        for landscape in both:
            landscape.end_task([(x, y)])
    watch.remove()
    assert not model._forward_hooks


def test_what_an_interrupted_pass_made_of_the_riders_is_dropped():
    model = Model()
    rehearsal = begun(model)

    def interrupted(context):
        with context:
            model(inputs_of(6, 4, 1))
            raise KeyError("of the user's own code")

    with pytest.raises(KeyError, match="own code"):
        interrupted(rehearsal.joined(model, 0))
    with torch.no_grad():
        model.net[-1].bias[0] += 1.0
    assert rehearsal.loss(model, forward_of(model), 0).item() > 0  # at the present weights


def test_joined_and_separate_passes_have_the_same_gradients():
    found = {}
    for join in (False, True):
        model = Model()
        rehearsal = begun(model)
        with torch.no_grad():
            model.net[0].weight.mul_(1.3)
        x = inputs_of(6, 4, 1)
        if join:
            with rehearsal.joined(model, 0):
                outputs = model(x)
        else:
            outputs = model(x)
        (outputs.logsumexp(-1).mean() + rehearsal.loss(model, forward_of(model), 0)).backward()
        found[join] = [p.grad for p in model.parameters()]
    for a, b in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["compiled", "bfloat16"])
def test_compiled_and_narrow_networks_carry_riders(kind):
    plain = Model()
    model = torch.compile(plain, backend="eager") if kind == "compiled" else plain.bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    landscape = Landscape(model, optimizer)
    x, y = inputs_of(40, 4), torch.arange(40) % 3
    x = x.bfloat16() if kind == "bfloat16" else x
    for _ in range(2):
        landscape.begin_task()
        for _ in range(5):
            optimizer.zero_grad()
            with landscape.joining():
                outputs = model(x)
            assert outputs.shape == (40, 3)
            loss = landscape.rehearsal()
            (F.cross_entropy(outputs, y) + loss).backward()
            optimizer.step()
            landscape.step()
        free = landscape.task.rehearsal is not None and landscape.task.rehearsal.free
        landscape.end_task([x])
    assert free
    assert loss.dtype == torch.float32
    assert loss.item() > 0


def two_tasks(join=True, **options):
    """Two tasks of two classes, one of them in both; the landscape, and the first task's loss."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    landscape = Landscape(model, optimizer, options=LDCOptions(probe_inputs=60, **options))
    old = None
    for task in (0, 1):
        x = inputs_of(64, 4, task, spread=0.3)
        x[:, 0] += 6.0 * task
        x[:32, 1] += 6.0
        y = torch.full((64,), task)
        y[:32] = 2
        landscape.begin_task()
        for _ in range(60):
            optimizer.zero_grad()
            if join:
                with landscape.joining():
                    outputs = model(x)
                loss = F.cross_entropy(outputs, y) + landscape.rehearsal()
            else:
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            landscape.step()
        landscape.end_task([(x, y)])
        old = old or (x, y)
    with torch.no_grad():
        forgotten = float(F.cross_entropy(model(old[0]), old[1]))
    return landscape, forgotten


def test_a_landscape_rehearses_and_forgets_less():
    # A constraint too weak to hold anything: what is held, the rehearsal holds.
    rehearsed, with_it = two_tasks(strength=1e-6)
    alone, without = two_tasks(join=False, strength=1e-6)
    assert with_it < 0.6 * without
    assert rehearsed.inputs.groups
    assert alone.bytes_held() == rehearsed.bytes_held()
    floats = sum(g.mean.numel() + g.directions.numel() for g in alone.inputs.groups.values())
    assert alone.inputs.bytes_held() == 4 * floats


@pytest.mark.parametrize("options", [{"pseudo_inputs": 0}, {"strength": 0.0}, {"source": "sgd"}])
def test_it_can_be_switched_off(options):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    landscape = Landscape(model, optimizer, options=LDCOptions(interval=2, **options))
    with pytest.raises(StateError, match="no task is running"):
        landscape.rehearsal()
    x = inputs_of(20, 4)
    for _ in range(2):
        landscape.begin_task(10)
        for _ in range(10):
            optimizer.zero_grad()
            with landscape.joining():
                outputs = model(x)
            loss = landscape.rehearsal()
            assert loss.item() == 0.0
            (outputs.square().mean() + loss).backward()
            optimizer.step()
            landscape.step(20)
        landscape.end_task([x])
    assert not landscape.inputs.groups
    assert landscape.inputs.bytes_held() == 0


def test_state_goes_through_a_file_and_earlier_versions_are_read():
    landscape, _ = two_tasks()
    landscape.begin_task()
    landscape.rehearsal()
    file = io.BytesIO()
    torch.save(landscape.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = Landscape(landscape.model, landscape.metric.optimizer, options=landscape.options)
    other.load_state_dict(state)
    ours, theirs = landscape.task.rehearsal, other.task.rehearsal
    assert ours.free
    assert theirs.free
    assert torch.equal(ours.parts[0], theirs.parts[0])
    assert other.inputs.groups.keys() == landscape.inputs.groups.keys()
    drawn = [held.inputs.draw(5, generator())[0] for held in (landscape, other)]
    assert torch.equal(*drawn)

    # Versions 3 and 4 kept log p in place of p.
    kept = state["task"]["rehearsal"]
    p, constants = kept["p"], kept["constants"]
    expected = predictions_at(landscape.model, landscape.forward, ours.parts)
    state["task"]["rehearsal"] = {
        **{k: v for k, v in kept.items() if k not in ("p", "constants")},
        "expected": expected,
    }
    state["version"] = 4
    old = Landscape(landscape.model, landscape.metric.optimizer, options=landscape.options)
    old.load_state_dict(state)
    assert torch.equal(old.task.rehearsal.state_dict()["p"], p)
    assert old.task.rehearsal.state_dict()["constants"] == constants
    old.abandon_task()
    for spoilt in ({"p": p[1:]}, {"constants": constants[1:]}, {"number": 3}, {"p": p[0]}):
        state["task"]["rehearsal"] = {**kept, **spoilt}
        with pytest.raises(StateError, match="rehearsal has predictions"):
            old.load_state_dict(state)

    state["version"] = 2
    del state["inputs"], state["task"]["rehearsal"]
    older = Landscape(landscape.model, landscape.metric.optimizer, options=landscape.options)
    older.load_state_dict(state)
    assert not older.inputs.groups
    assert older.rehearsal().item() == 0.0
    older.task = None
    state = landscape.state_dict()
    state["inputs"]["groups"][0]["mean"] = torch.zeros(2)
    with pytest.raises(StateError, match="Gaussians of inputs"):
        older.load_state_dict(state)
