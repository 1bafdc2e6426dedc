"""Every Python snippet of README and docs runs as it stands, in the order of its page."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flatcl
from flatcl.data import load_images
from flatcl.streams import StreamOptions, make_stream

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> list[str]:
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


WITH_CODE = [page for page in PAGES if snippets(page)]


def _network() -> nn.Sequential:
    layers = [nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10)]
    return nn.Sequential(*layers)


class Given(dict[str, Any]):
    """What the pages take for granted, made anew for each page: digits, a network, a stream."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        scans = load_images("digits")
        rows = {part: getattr(scans, part).flatten(1) for part in ("x_train", "x_test")}
        images = replace(scans, **rows)
        x, y = images.x_train.float() / 16, images.y_train
        z, t = images.x_test.float() / 16, images.y_test
        model, network = _network(), _network()
        orders = [torch.arange(64), torch.randperm(64)]
        tasks = [
            DataLoader(TensorDataset(x[:256, order], y[:256]), batch_size=32) for order in orders
        ]
        options = StreamOptions(scenario="permuted", tasks=2, train_size=60)
        stream = make_stream(images, options, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        landscape = flatcl.fit(model, tasks[0], optimizer=optimizer)
        loss = nn.CrossEntropyLoss()
        # As many steps as an analysis needs.
        loader = DataLoader(TensorDataset(x[:256], y[:256]), batch_size=1)
        super().__init__(
            model=model, optimizer=optimizer, landscape=landscape, criterion=loss,
            loss_function=loss, loader=loader, tasks=tasks, torch=torch, nn=nn,
            inputs=x[:100], targets=y[:100], x_train=x[:200], y_train=y[:200], x_test=z, y_test=t,
            old_inputs=x[:50], new_inputs=x[:50, orders[1]],
            benchmark=stream.benchmark, my_benchmark=stream.benchmark, my_network=network,
        )  # fmt: skip


def test_every_page_with_code_is_known() -> None:
    assert {page.name for page in WITH_CODE} >= {"README.md", "quickstart.md", "duality.md"}
    for page in PAGES:  # no fence in another form, which would not be run
        assert page.read_text(encoding="utf-8").count("```python") == len(snippets(page)), page


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = Given()
    loader = given["loader"]
    for number, code in enumerate(snippets(page)):
        given["loader"] = loader  # others loop over it as a name of their own
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # Avalanche's own
            exec(compile(code, f"{page.name}, snippet {number + 1}", "exec"), given)
