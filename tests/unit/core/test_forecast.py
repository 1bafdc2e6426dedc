"""The forecast of forgetting, its budget, and fit: known answers, then what they leave alone."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.constraint import Constraint
from flatcl.core.engine import Landscape
from flatcl.core.fit import fit
from flatcl.core.forecast import History, Spent
from flatcl.core.growth import Network
from flatcl.core.layers import matrix_views, trained_parameters
from flatcl.core.options import LDCOptions
from flatcl.core.sample import LEAST_INPUTS, Sample
from flatcl.core.witnesses import Witnesses
from flatcl.errors import OptionError, StateError


def blobs(seed, n=256):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=g)
    return 2.0 * torch.randn(3, 6, generator=g)[y] + torch.randn(n, 6, generator=g), y


def mlp(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)]
    return nn.Sequential(*layers).to(dtype)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(6, 3).double()


def steps(model, landscape, optimizer, x, y, number, at=lambda step: None):
    g = torch.Generator().manual_seed(0)
    for step in range(number):
        chosen = torch.randint(len(x), (16,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen].to(next(model.parameters()).dtype)), y[chosen]).backward()
        optimizer.step()
        landscape.step()
        at(step)
        if landscape.over_budget:
            break


def learned(model, tasks=2, number=80, at=lambda step: None, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    landscape = Landscape(model, optimizer, options=LDCOptions(interval=5, **options))
    for task in range(tasks):
        x, y = blobs(task)
        landscape.begin_task()
        steps(model, landscape, optimizer, x, y, number, at)
        landscape.end_task([x.to(next(model.parameters()).dtype)])
    return landscape, optimizer


def flat(model):
    return torch.cat([v.double().reshape(-1) for v in model.state_dict().values()])


class Power(nn.Module):
    """Outputs that grow with a power of the displacement from weights of zero."""

    def __init__(self, power):
        super().__init__()
        self.power = power
        self.w = nn.Parameter(torch.full((2,), 3.0, dtype=torch.float64))

    def forward(self, x):
        return (x * self.w) ** self.power


@pytest.mark.parametrize(("power", "growth"), [(1, 1.0), (2, 64.0), (3, 4096.0)])
def test_growth_of_a_power_law(power, growth):
    """f(a x) = aⁿ f(x): the change from ε is ε²ⁿ of the whole, over ε² it is ε^(2n − 2)."""
    model = Power(power)
    zero = torch.zeros(2, dtype=torch.float64)
    network = Network(
        model, matrix_views(model), trained_parameters(model), lambda batch: model(batch[0])
    )
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    held = {"w": Constraint(None, torch.ones_like(zero), zero)}
    assert network.growth(held, [[x]]) == pytest.approx(growth, rel=1e-10)
    assert bool((model.w == 3.0).all())
    at_home = {"w": Constraint(None, torch.ones_like(zero), model.w.detach().clone())}
    assert network.growth(at_home, [[x]]) == 1.0


def test_what_all_outputs_share_is_no_change_and_a_late_one_is_infinite():
    model = Power(1)
    network = Network(
        model, matrix_views(model), trained_parameters(model), lambda batch: model(batch[0])
    )
    held = {"w": Constraint(None, torch.ones(2).double(), torch.zeros(2).double())}
    assert network.growth(held, [[torch.ones(4, 2).double()]]) == 1.0  # both outputs alike
    late = Network(
        model,
        network.units,
        network.parameters,
        lambda batch: (batch[0] * model.w).clamp_min(1.0),
    )
    assert late.growth(held, [[torch.tensor([[0.5, -1.0]]).double()]]) == math.inf


def test_of_a_linear_network_the_forecast_is_the_dense_quadratic_form():
    model = linear()
    landscape, optimizer = learned(model, tasks=1, width=0.0, damping=0.0)
    (constraint,) = landscape.constraints.values()
    K, anchor = constraint.to_dense(), constraint.anchor
    landscape.begin_task()
    steps(model, landscape, optimizer, *blobs(1), 20)  # the last is a pull
    found = landscape.forecast([blobs(1)[0].double()])
    x = (torch.cat([model.weight, model.bias[:, None]], 1).detach() - anchor).reshape(-1)
    assert found.rises == pytest.approx([0.5 * float(x @ K @ x)], rel=1e-9)
    assert found.spent[-1].growth == pytest.approx(1.0, abs=1e-6)
    assert found.quadratic == found.rises
    assert found.trusted
    assert found.reason == ""


def test_costs_are_shared_among_the_tasks_before_and_added():
    history = History([Spent(0, 1, 0), Spent(2.0, 1.5, 1), Spent(6.0, 1.0, 2)])
    network = Network(nn.Linear(1, 1), [], {"w": torch.zeros(1)}, lambda batch: batch[0])
    found = history.forecast(network, {}, None, tasks=3, running=False, unheld={})
    assert found.rises == pytest.approx((3.0 + 3.0, 3.0, 0.0))
    assert found.quadratic == found.rises
    assert found.mean == pytest.approx(3.0)
    assert found.trusted


@pytest.mark.parametrize("growth", [math.nan, 3.1])
def test_a_growth_that_is_large_or_not_measured_is_flagged(growth):
    history = History([Spent(0, 1, 0), Spent(2.0, growth, 1)])
    network = Network(nn.Linear(1, 1), [], {"w": torch.zeros(1)}, lambda batch: batch[0])
    found = history.forecast(network, {}, None, tasks=2, running=False, unheld={})
    assert not found.trusted
    assert ("not checked" if math.isnan(growth) else "3.1 times") in found.reason
    assert found.rises[0] == pytest.approx(2.0 if math.isnan(growth) else 6.2)


def divergence(then, now):
    log_p, log_q = then.double().log_softmax(1), now.double().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def witnessed(number=512, tasks=2, model=None, **options):
    return learned(model or mlp(), tasks=tasks, number=20, witnesses=number, **options)


def test_witnesses_have_the_moments_of_each_predicted_class():
    model = mlp().eval()
    x = torch.cat([blobs(seed, 512)[0] for seed in range(4)])

    def forward(batch):
        return model(batch[0])

    sample = Sample.of(model, forward, [[x]])
    found = Witnesses.drawn(model, forward, sample, 40000, 0)
    with torch.no_grad():
        classes = model(x).argmax(1)
        torch.testing.assert_close(found.expected, model(found.parts[0]).log_softmax(1))
    large = [c for c in classes.unique() if int((classes == c).sum()) >= LEAST_INPUTS]
    assert len(large) > 1
    groups = [x[classes == c] for c in large]
    # The mixture's own moments: the mean over groups, within-group and between-group scatter.
    n = sum(map(len, groups))
    whole = torch.cat(groups)
    mean = whole.mean(0)
    assert n > 1500
    torch.testing.assert_close(found.parts[0].mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(found.parts[0].T.cov(), whole.T.cov(), atol=0.15, rtol=0)


def test_the_forecast_by_witnesses_is_the_divergence_there_since_each_task_ended():
    landscape, optimizer = witnessed()
    first, second = landscape.history.witnesses
    assert (len(first.expected), len(second.expected)) == (256, 256)
    landscape.begin_task()
    steps(landscape.model, landscape, optimizer, *blobs(2), 20)
    found = landscape.forecast([blobs(2)[0]])
    model = landscape.model.eval()
    for rise, witnesses in zip(found.rises, (first, second), strict=True):
        each = divergence(witnesses.expected, model(witnesses.parts[0]).detach())
        assert rise == pytest.approx(float(each.mean()), rel=1e-4)
    costs = [s.rise for s in found.spent]
    assert found.quadratic == pytest.approx((sum(costs), costs[1]))


def test_witnesses_of_the_last_task_see_no_change():
    found = witnessed()[0].forecast()
    assert found.rises[-1] == pytest.approx(0.0, abs=1e-6)
    assert found.reasons[-1] == ""


def test_memory_of_witnesses_is_constant_but_for_one_a_task():
    held = [witnessed(8, tasks=tasks)[0] for tasks in (1, 2, 4, 5)]
    numbers = [[len(w.expected) for w in h.history.witnesses] for h in held]
    assert numbers == [[8], [4, 4], [2, 2, 2, 2], [1] * 5]
    assert held[0].history.bytes_held() == held[2].history.bytes_held() == 8 * 4 * (6 + 3)
    assert sum(map(len, numbers[-1:])) == 5
    without = witnessed(0, tasks=4)[0]
    assert held[2].bytes_held() - without.bytes_held() == held[2].history.bytes_held()


def test_a_head_that_grows_takes_its_share_of_the_predictions():
    model = nn.Linear(6, 3)
    landscape, _ = learned(model, tasks=1, number=20, witnesses=64)
    (witnesses,) = landscape.history.witnesses
    grown = nn.Linear(6, 4)
    with torch.no_grad():
        grown.weight[:3], grown.bias[:3] = model.weight, model.bias
        grown.weight[3], grown.bias[3] = 0.0, 1.0
        now = grown(witnesses.parts[0])
    rise, _ = witnesses.rise(grown, lambda batch: grown(batch[0]))
    # The new class takes q from the old ones: KL = log(1 + e / Σ exp f) there, exactly.
    expected = now.double().logsumexp(1) - now.double()[:, :3].logsumexp(1)
    assert rise == pytest.approx(float(expected.mean()), rel=1e-5)


def test_witnesses_that_differ_and_a_constraint_that_disagrees_are_flagged():
    history = History([Spent(0, 1, 0), Spent(0.1, 1.0, 1)])
    model = nn.Linear(2, 2, bias=False)
    network = Network(model, [], {"w": model.weight}, lambda batch: model(batch[0]))

    def forecast(logits, x):
        with torch.no_grad():
            model.weight.copy_(torch.eye(2))
        history.witnesses = [Witnesses([x], logits.log_softmax(1)), None]
        return history.forecast(network, {}, None, tasks=2, running=False, unheld={})

    same = torch.zeros(64, 2)
    found = forecast(same + torch.tensor([0.9, 0.0]), same)
    rise = float(divergence(torch.tensor([[0.9, 0.0]]), torch.zeros(1, 2)))
    assert found.rises == pytest.approx((rise, 0.0))
    assert found.quadratic == pytest.approx((0.1, 0.0))
    assert found.trusted
    assert "factor of 3" in forecast(same + torch.tensor([3.0, 0.0]), same).reasons[0]
    logits = same.clone()
    logits[0, 0] = 9.0
    assert "witnesses differ" in forecast(logits, same).reasons[0]
    history.spent.pop()
    assert "no constraint" in forecast(same + torch.tensor([0.9, 0.0]), same).reason


def test_without_a_constraint_witnesses_still_forecast():
    landscape, _ = witnessed(strength=0.0)
    found = landscape.forecast()
    assert found.rises[0] > 0.01
    assert math.isnan(found.quadratic[0])
    assert "no constraint" in found.reason


def test_inputs_without_moments_leave_the_quadratic():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    landscape = Landscape(model, optimizer, options=LDCOptions(interval=5, witnesses=16))
    for task in (0, 1):
        tokens = torch.randint(0, 7, (64, 2), generator=torch.Generator().manual_seed(task))
        landscape.begin_task()
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(tokens), (tokens.sum(1) + task) % 3).backward()
            optimizer.step()
            landscape.step()
        landscape.end_task([tokens])
    assert landscape.history.witnesses == [None, None]
    found = landscape.forecast()
    assert found.rises == found.quadratic
    assert found.rises[0] > 0


def test_forecasts_change_no_bit_of_the_training():
    ends = []
    for watched in (False, True):
        model = mlp()
        state = {}

        def look(step, model=model, state=state, watched=watched):
            if watched and step in {3, 4, 17}:  # before a pull, right after one, before another
                before = flat(model)
                modes = [m.training for m in model.modules()]
                found = state["landscape"].forecast([blobs(9)[0]])
                assert len(found.rises) == state["landscape"].tasks_ended
                assert torch.equal(flat(model), before)
                assert [m.training for m in model.modules()] == modes

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        landscape = Landscape(
            model, optimizer, options=LDCOptions(interval=5, witnesses=64 * watched)
        )
        state["landscape"] = landscape
        torch.manual_seed(3)
        for task in range(3):
            x, y = blobs(task)
            landscape.begin_task()
            steps(model, landscape, optimizer, x, y, 40, look)
            landscape.end_task([x])
        ends.append((flat(model), torch.rand(3)))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_in_mid_task_the_forecast_is_of_pulled_weights_and_needs_inputs_to_be_trusted():
    landscape, optimizer = learned(linear(), tasks=1)
    model = landscape.model
    assert landscape.forecast().rises == (0.0,)
    landscape.begin_task()
    steps(model, landscape, optimizer, *blobs(1), 4)
    with landscape.evaluating():
        pulled = float(landscape.energy())
    assert pulled < float(landscape.energy())
    blind = landscape.forecast()
    assert blind.rises == pytest.approx([pulled])
    assert not blind.trusted
    assert "forecast\\(batches\\)".replace("\\", "") in blind.reason
    assert landscape.forecast([blobs(1)[0].double()]).trusted


def test_before_anything_is_learned_and_without_a_constraint():
    model = mlp()
    landscape = Landscape(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert landscape.forecast().rises == ()
    assert landscape.forecast().mean == 0.0
    off, _ = learned(mlp(), tasks=1, strength=0.0)
    with pytest.raises(StateError, match="strength or witnesses above 0"):
        off.forecast()


@pytest.mark.parametrize("witnesses", [0, 32])
def test_the_history_is_saved_and_an_older_state_is_flagged(witnesses):
    landscape, _ = learned(mlp(), tasks=3, number=20, witnesses=witnesses)
    file = io.BytesIO()
    torch.save(landscape.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    model = mlp()
    model.load_state_dict(landscape.model.state_dict())
    other = Landscape(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        options=LDCOptions(interval=5, witnesses=witnesses),
    )
    other.load_state_dict(state)
    assert other.forecast() == landscape.forecast()
    del state["history"]
    other.load_state_dict(state)
    found = other.forecast()
    assert not found.trusted
    assert "without its history" in found.reason


def test_a_head_that_grows_adds_nothing_to_the_quadratic():
    model = mlp()
    landscape, _ = learned(model, tasks=2, number=20)
    landscape.begin_task()
    before = landscape.forecast([blobs(2)[0]]).spent[-1].energy
    landscape.end_task()
    head = model[-1]
    grown = nn.Linear(16, 5)
    with torch.no_grad():
        grown.weight[:3], grown.bias[:3] = head.weight, head.bias
    model[-1] = grown
    landscape.metric.optimizer.add_param_group({"params": list(grown.parameters())})
    landscape.begin_task()
    assert landscape.forecast([blobs(2)[0]]).spent[-1].energy == pytest.approx(before, rel=1e-5)


def test_source_sgd_is_forecast_too_but_not_checked():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    landscape = Landscape(model, optimizer, options=LDCOptions(source="sgd", interval=5))
    for task in (0, 1):
        x, y = blobs(task)
        landscape.begin_task(40)
        for chosen in torch.arange(640).remainder(256).split(16):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            landscape.step(16)
        landscape.end_task()
    found = landscape.forecast()
    assert found.rises[0] > 0
    assert not found.trusted


def test_the_forecast_follows_the_measured_rise_over_strengths():
    predicted, measured = [], []
    for strength in (0.01, 0.3, 3.0, 100.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        first = []
        x, y = blobs(0)

        def loss(model=model, x=x, y=y):
            with torch.no_grad():
                return float(F.cross_entropy(model(x), y))

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        landscape = Landscape(model, optimizer, options=LDCOptions(strength=strength, interval=5))
        for task in (0, 1):
            landscape.begin_task()
            steps(model, landscape, optimizer, *blobs(task), 150)
            landscape.end_task([blobs(task)[0]])
            first.append(loss())
        predicted.append(landscape.forecast().rises[0])
        measured.append(first[1] - first[0])
    assert predicted == sorted(predicted, reverse=True)
    assert measured == sorted(measured, reverse=True)
    assert 0.2 < predicted[1] / measured[1] < 5


def test_strengthening_keeps_the_energy_within_the_budget():
    free, _ = learned(mlp(), strength=0.05)
    spent = free.history.spent[1].energy
    held, _ = learned(mlp(), strength=0.05, budget=spent / 4, on_budget="strengthen")
    assert held.history.spent[1].energy < 1.05 * spent / 4
    same, _ = learned(mlp(), strength=0.05, budget=100 * spent, on_budget="strengthen")
    assert torch.equal(flat(same.model), flat(free.model))


def test_a_crossed_budget_asks_to_stop_and_the_task_can_end():
    landscape, optimizer = learned(mlp(), tasks=1, strength=0.01, budget=1e-3)
    assert not landscape.over_budget
    landscape.begin_task()
    made = []
    steps(landscape.model, landscape, optimizer, *blobs(1), 80, made.append)
    assert landscape.over_budget
    assert len(made) < 80
    assert len(made) % 5 == 0  # checked right after pulls
    landscape.end_task([blobs(1)[0]])
    assert not landscape.over_budget
    assert landscape.tasks_ended == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"budget": -1.0}, "budget is -1.0"),
        ({"budget": math.nan}, "budget is nan"),
        ({"witnesses": -1}, "witnesses is -1"),
        ({"witnesses": 1.5}, "witnesses is 1.5"),
        ({"on_budget": "sigh"}, "on_budget is 'sigh'"),
    ],
)
def test_budgets_that_cannot_be_used(options, message):
    with pytest.raises(OptionError, match=message):
        LDCOptions(**options)


def pretrained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = blobs(0)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def test_fit_holds_a_pretrained_skill_and_moves_no_weight():
    kept = {}
    for fitted in (False, True):
        model, optimizer = pretrained()
        before = flat(model)
        landscape = Landscape(model, optimizer)
        if fitted:
            landscape = fit(model, [blobs(0)[0]], optimizer=optimizer)
            assert landscape.tasks_ended == 1
            assert landscape.forecast().rises == (0.0,)
            anchors = [c.anchor for c in landscape.constraints.values()]
            assert torch.equal(torch.cat([a[:, :-1].reshape(-1) for a in anchors]).double(),
                               torch.cat([before[:192], before[224:320]]))  # fmt: skip
        assert torch.equal(flat(model), before)
        landscape.begin_task()
        steps(model, landscape, optimizer, *blobs(1), 200)
        landscape.end_task([blobs(1)[0]])
        with torch.no_grad():
            kept[fitted] = [
                float((model(x).argmax(1) == y).float().mean()) for x, y in map(blobs, (0, 1))
            ]
    assert kept[True][0] > 0.85
    assert kept[True][0] > kept[False][0] + 0.1
    assert kept[True][1] > 0.8


def test_fit_comes_first_and_only_once():
    model, optimizer = pretrained()
    landscape = fit(model, [blobs(0)[0]], optimizer=optimizer)
    with pytest.raises(StateError, match="before the first task"):
        landscape.fit([blobs(0)[0]])
    running = Landscape(model, optimizer)
    running.begin_task()
    with pytest.raises(StateError, match="before the first task"):
        running.fit([blobs(0)[0]])
    off = fit(model, [blobs(0)[0]], optimizer=optimizer, options=LDCOptions(strength=0.0))
    assert off.constraints == {}
    assert off.tasks_ended == 1
