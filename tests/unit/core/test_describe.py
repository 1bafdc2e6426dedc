"""The description has a line for every parameter, and says why where one is not held."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from zoo import ZOO

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions


def landscape_of(model: nn.Module, strength: float = 3.5) -> Landscape:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Landscape(model, optimizer, options=LDCOptions(strength=strength))


def test_the_description_has_a_line_for_every_parameter() -> None:
    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.language = ZOO["language"].model()
            self.groups = ZOO["groups"].model()
            self.cold = nn.Linear(2, 2).requires_grad_(False)
            self.count = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
            self.wide = nn.Linear(5000, 2)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

    model = Everything()
    landscape = landscape_of(model)
    described = landscape.describe()
    held = {h.name: h.held for h in described.holdings}
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert list(held) == every
    assert held["language.embed.weight"] == "kronecker [7, 5]"
    assert held["language.head.weight"] == "shared with language.embed.weight"
    assert held["language.head.bias"] == "last column of language.embed.weight"
    assert held["language.layer.self_attn.in_proj_weight"] == "3 × kronecker [4, 5]"
    assert held["language.place"] == "entry by entry (no matrix of a known layer)"
    assert held["language.layer.norm1.weight"] == "entry by entry (normalisation)"
    assert held["groups.0.weight"] == "2 × kronecker [4, 7]"
    assert held["groups.2.weight"] == "entry by entry (one output channel a group)"
    assert held["cold.weight"] == "frozen"
    assert held["count"] == "int64, frozen"
    assert held["wide.weight"].endswith("[2, 5001], leading 2 × 256 and the rest together")
    assert held["normed.parametrizations.weight.original1"].endswith("(leaf of a parametrisation)")
    assert held["scale"] == "entry by entry"
    lines = str(described).splitlines()
    assert len(lines) == len(every) + 4
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].split() == ["total", f"{described.total:,}"]
    off = landscape_of(model, strength=0.0).describe()
    assert off.total == 0
    assert {h.held for h in off.holdings if h.name == "scale"} == {"free: strength is 0"}
