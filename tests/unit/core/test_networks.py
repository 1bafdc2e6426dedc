"""Two tasks with every kind of network, loss and wrapper, and layers that grow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import CLASSES, ZOO, Kind

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions, Source

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1),
    "adam": lambda m: torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr=1e-2),
}
Loss = Callable[[Tensor, Tensor], Tensor]


def run_task(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    landscape: Landscape,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    steps: int = 60,
) -> None:
    landscape.begin_task()
    for i in range(steps):
        chosen = torch.arange(16 * i, 16 * (i + 1)) % len(x)
        optimizer.zero_grad()
        loss(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        landscape.step(len(chosen))
    landscape.end_task([x])


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


def labels(kind: Kind, task: int, outputs: Tensor) -> Tensor:
    """Return what another network of the kind would say, with classes shifted by the task."""
    with torch.no_grad():
        teacher = kind.model(seed=7 + task).eval()
        logits = teacher(kind.inputs(len(outputs), task))
    return (logits - logits.flatten(0, -2).mean(0)).argmax(-1)


def forgetting(
    kind: Kind, optimizer: str, strength: float, source: Source = "probe"
) -> tuple[float, Landscape]:
    """Return the change of the outputs on the first task's inputs during the second."""
    model = kind.model()
    opt = OPTIMIZERS[optimizer](model)
    options = LDCOptions(strength=strength, interval=4, probe_inputs=64, source=source)
    landscape = Landscape(model, opt, options=options)
    first = kind.inputs(128, 0)
    for task in (0, 1):
        model.train()
        x = kind.inputs(128, task)
        with torch.no_grad():
            y = labels(kind, task, model(x))
        run_task(model, opt, landscape, x, y, cross_entropy)
        model.eval()
        with torch.no_grad():
            outputs = F.log_softmax(model(first), dim=-1)
        if task == 0:
            before = outputs
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return float(F.kl_div(outputs, before, log_target=True, reduction="batchmean")), landscape


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ZOO)
def test_a_second_task_changes_the_outputs_on_the_first_less(name: str, optimizer: str) -> None:
    held, landscape = forgetting(ZOO[name], optimizer, 3.5)
    free, _ = forgetting(ZOO[name], optimizer, 0.0)
    assert held < 0.8 * free
    assert all(float(c.stiffness.sum()) > 0 for c in landscape.constraints.values())
    before = Landscape(landscape.model, landscape.metric.optimizer).describe()
    assert landscape.describe().total == landscape.bytes_held()
    assert before.total == landscape.bytes_held() - landscape.inputs.bytes_held()


@pytest.mark.parametrize("name", ["attention", "groups", "bag"])
def test_training_gradients_hold_sliced_units_too(name: str) -> None:
    held, landscape = forgetting(ZOO[name], "adam", 3.5, source="sgd")
    free, _ = forgetting(ZOO[name], "adam", 0.0)
    assert held < free
    assert all(float(c.stiffness.sum()) > 0 for c in landscape.constraints.values())


def regression(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs, y.view_as(outputs))


LOSSES: dict[str, tuple[Callable[[], nn.Module], Loss, Callable[[Tensor], Tensor], int]] = {
    "one number": (lambda: nn.Linear(8, 1), regression, lambda f: f.tanh(), 1),
    "one number, squeezed": (
        lambda: nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)), regression, lambda f: f.tanh(), 1,
    ),
    "several numbers": (lambda: nn.Linear(8, 3), regression, lambda f: f.tanh(), 3),
    "several labels": (
        lambda: nn.Linear(8, 3), F.binary_cross_entropy_with_logits, lambda f: (f > 0).float(), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses_other_than_cross_entropy(name: str, generator: torch.Generator) -> None:
    head, loss, target, width = LOSSES[name]
    # Mean squared error curves by 2 in an output, a two-way softmax by ¼ at most.
    steeper = 8**0.5 if loss is regression else 1.0
    x = torch.randn(2, 128, 6, generator=generator)
    x[0, :, :3], x[1, :, 3:] = 0.0, 0.0  # each task has inputs of its own
    moved = {}
    for strength in (3.5, 0.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), head())
        landscape = Landscape(
            model, torch.optim.SGD(model.parameters(), lr=0.1),
            options=LDCOptions(strength=strength, interval=4, probe_inputs=64),
            forward=lambda batch, model=model: steeper * model(batch[0]).unsqueeze(-1),  # type: ignore[misc]
        )  # fmt: skip
        g = torch.Generator().manual_seed(5)
        learnt = []
        for task in (0, 1):
            y = target(x[task] @ torch.randn(6, width, generator=g))
            run_task(
                model, landscape.metric.optimizer, landscape, x[task],
                y.squeeze(-1) if "squeezed" in name else y, loss, steps=120,
            )  # fmt: skip
            learnt.append(model(x[0]).detach())
        moved[strength] = float((learnt[1] - learnt[0]).square().mean())
    assert moved[3.5] < 0.6 * moved[0.0]


def test_outputs_that_stand_each_for_itself_are_held_in_their_common_shift_too() -> None:
    """A softmax does not feel a common shift; a regression does, and says so by unsqueeze."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    common = {}
    for single in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        forward = (lambda b, m=model: m(b[0]).unsqueeze(-1)) if single else None
        landscape = Landscape(
            model, OPTIMIZERS["sgd"](model), options=LDCOptions(damping=0.0, width=0.0),
            forward=forward,
        )  # fmt: skip
        run_task(model, torch.optim.SGD(model.parameters(), lr=0.0), landscape, x, x, _nothing, 1)
        constraint = landscape.constraints["weight"]
        shift = torch.zeros(3, 5)
        shift[:, -1] = 3**-0.5
        common[single] = float((shift * constraint.apply(shift)).sum())
    assert common[False] < 1e-6
    assert common[True] > 0.01


def _nothing(outputs: Tensor, y: Tensor) -> Tensor:
    return 0.0 * outputs.sum()


def test_classes_in_dimension_one_are_said_by_forward() -> None:
    """Segmentation, [B, C, H, W]: permuted it is held, and the unit is that of C classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))
    opt = OPTIMIZERS["sgd"](model)
    landscape = Landscape(
        model, opt, options=LDCOptions(probe_inputs=64),
        forward=lambda batch: model(batch[0]).movedim(1, -1),
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    for _ in range(2):
        x = torch.randn(64, 2, 5, 5, generator=g)
        y = torch.randint(0, CLASSES, (64, 5, 5), generator=g)
        run_task(model, opt, landscape, x, y, F.cross_entropy, steps=25)
    assert landscape.probe_scale == pytest.approx(CLASSES**-0.75)
    # k of the last bias is that of one prediction, not of 25 pixels' sum: r's own variance.
    k = landscape.constraints["2.weight"]
    bias = torch.zeros_like(k.anchor)
    bias[0, -1] = 1.0
    expected = 2 * (1 - 1 / CLASSES) * CLASSES**-1.5
    assert float((bias * k.apply(bias)).sum()) == pytest.approx(expected * 1.6, rel=0.35)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_state_saved_under_a_wrapper_loads_without_and_back(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    """Between tasks and in mid-task, running statistics and all."""
    kind = ZOO["mlp"]
    x, y = kind.inputs(64, 0), torch.arange(64) % CLASSES

    def built() -> nn.Sequential:
        layers = kind.model()
        assert isinstance(layers, nn.Sequential)
        return nn.Sequential(nn.BatchNorm1d(x.shape[1]), *layers)

    plain, inner = built(), built()
    saved = []
    for model in (plain, wrap(inner)):
        opt = OPTIMIZERS["sgd"](model)
        landscape = Landscape(model, opt, options=LDCOptions(probe_inputs=32))
        run_task(model, opt, landscape, x, y, cross_entropy, steps=25)
        saved.append(landscape)
    for a, b in (saved, saved[::-1]):
        state = b.state_dict()
        a.load_state_dict(state)
        assert list(state["constraints"]) == ["1.weight", "3.weight", "0.weight", "0.bias"]
    for a, b in (saved, saved[::-1]):
        b.begin_task()
        for _ in range(25):
            F.cross_entropy(b.model(x), y).backward()
            b.metric.optimizer.step()
            b.step()
        a.load_state_dict(b.state_dict())
        a.abandon_task()
        b.abandon_task()
    pairs = zip(plain.parameters(), inner.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_embedding_and_a_head_that_gain_rows(optimizer: str) -> None:
    """Old rows are held, new ones free, through the optimiser's fresh state."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(4, 3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.embed(x).flatten(1))
            return out

    torch.manual_seed(0)
    model = Growing()
    g = torch.Generator().manual_seed(0)
    opt = OPTIMIZERS[optimizer](model)
    landscape = Landscape(model, opt, options=LDCOptions(interval=2, probe_inputs=64))
    x = torch.randint(0, 4, (64, 2), generator=g)
    run_task(model, opt, landscape, x, x.sum(1) % 2, cross_entropy, steps=20)
    old = {n: c.stiffness.clone() for n, c in landscape.constraints.items()}
    embed, head = nn.Embedding(6, 3), nn.Linear(6, 4)
    with torch.no_grad():
        embed.weight[:4], head.weight[:2], head.bias[:2] = (
            model.embed.weight, model.head.weight, model.head.bias,
        )  # fmt: skip
    model.embed, model.head = embed, head
    landscape.metric = type(landscape.metric)(OPTIMIZERS[optimizer](model))
    opt = landscape.metric.optimizer
    landscape.begin_task()
    for name, rows in (("embed.weight", 4), ("head.weight", 2)):
        grown = landscape.constraints[name]
        torch.testing.assert_close(grown.stiffness[:rows], old[name])
        assert not grown.stiffness[rows:].any()
    landscape.end_task()
    x = torch.randint(0, 6, (64, 2), generator=g)
    run_task(model, opt, landscape, x, x.sum(1) % 4, cross_entropy, steps=20)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert (landscape.constraints["embed.weight"].stiffness[4:].sum(1) > 0).all()
    assert landscape.constraints["head.weight"].stiffness.shape == (4, 7)
