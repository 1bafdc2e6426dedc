"""A network that torch.compile has made is held as the same network uncompiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions

BACKEND = "aot_eager"  # one node of the graph a compiled part, as with the default backend


def body():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())


class Parts(nn.Module):
    """A compiled block in a network that is not."""

    def __init__(self, compiled):
        super().__init__()
        self.body = torch.compile(body(), backend=BACKEND) if compiled else body()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


def whole(compiled):
    model = nn.Sequential(*body(), nn.Linear(8, 3))
    return torch.compile(model, backend=BACKEND) if compiled else model


def in_place(compiled):
    model = nn.Sequential(*body(), nn.Linear(8, 3))
    if compiled:
        model.compile(backend=BACKEND)
    return model


def learned(make, *, compiled):
    torch.manual_seed(0)
    model = make(compiled)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    landscape = Landscape(model, optimizer, options=LDCOptions(interval=4, witnesses=16))
    for task in range(2):
        g = torch.Generator().manual_seed(task)
        x, y = torch.randn(80, 6, generator=g), torch.randint(3, (80,), generator=g)
        landscape.begin_task()
        for i in range(0, 80, 8):
            optimizer.zero_grad()
            with landscape.joining():
                outputs = model(x[i : i + 8])
            (F.cross_entropy(outputs, y[i : i + 8]) + landscape.rehearsal()).backward()
            optimizer.step()
            landscape.step()
        landscape.end_task([(x, y)])
    return landscape


@pytest.mark.parametrize("make", [whole, in_place, Parts])
def test_it_is_held_as_the_same_network_uncompiled(make):
    torch.compiler.reset()
    plain, found = learned(make, compiled=False), learned(make, compiled=True)
    assert found.constraints.keys() == plain.constraints.keys()
    for name, constraint in plain.constraints.items():
        assert float(constraint.stiffness.sum()) > 0
        torch.testing.assert_close(
            found.constraints[name].stiffness, constraint.stiffness, rtol=1e-3, atol=1e-6
        )
    with torch.no_grad():
        next(found.model.parameters()).add_(0.1)
        next(plain.model.parameters()).add_(0.1)
    assert found.forecast().rises == pytest.approx(plain.forecast().rises, rel=1e-3)


def test_a_stance_of_the_callers_comes_back():
    torch.compiler.reset()
    landscape = learned(whole, compiled=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        landscape.begin_task()
        with pytest.raises(RuntimeError):
            landscape.model(torch.randn(80, 6, dtype=torch.float64))
