"""Every Python snippet of README and docs runs as it stands, in the order of its page."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
_MADE = {"_build", "_pages"}  # by the build
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if not _MADE & set(p.parts)),
]
RUN = "python"
# Blocks that hold no code to run: Sphinx's own. Commands and equations are indented text.
NOT_CODE = {"{toctree}", "{eval-rst}"}
_FENCE = re.compile(r"(?P<indent>[ >]*)(?P<fence>`{3,}|~{3,}) *(?P<info>.*?) *")
# What would be Python in a block that is not fenced, or in one of reStructuredText.
_STRAY = re.compile(r"[ >]*(>>> |\.\. (code|doctest|testcode|sourcecode|literalinclude))")
_STATEMENT = re.compile(r"(    |\t)\s*(import \w|from [\w.]+ import |\w+ = \w+\(|print\()")


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string, its text, and the line that it begins on."""

    info: str
    text: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page; whatever else may hold code is an AssertionError."""
    opened: re.Match[str] | None = None
    body: list[str] = []
    began = 0
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.fullmatch(line)
        assert not _STRAY.match(line), f"line {number}: code that is in no fenced block"
        if opened is None:
            assert not _STATEMENT.match(line), f"line {number}: Python in an indented block"
            if fence:
                assert not fence["indent"], f"line {number}: a fence that does not begin its line"
                opened, body, began = fence, [], number
        elif fence and not fence["info"] and fence["fence"].startswith(opened["fence"]):
            yield Block(opened["info"], "\n".join(body) + "\n", began)
            opened = None
        else:
            body.append(line)
    assert opened is None, f"line {began}: a fence that is never closed"


def snippets(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text(encoding="utf-8")) if block.info == RUN]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_code_that_is_not_run(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        known = block.info == RUN or block.info in NOT_CODE
        assert known, f"{page.name}, line {block.line}: a block of {block.info!r} would not be run"


def test_every_page_is_markdown() -> None:
    others = [p for p in (ROOT / "docs").rglob("*.rst") if not _MADE & set(p.parts)]
    assert not others, "the blocks of these are not looked at"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    import flatcl\n", "Python in an indented block"),
        (">>> import flatcl\n", "in no fenced block"),
        ("```{eval-rst}\n.. code-block:: python\n```\n", "in no fenced block"),
        ("- see\n\n  ```python\n  1\n  ```\n", "does not begin its line"),
        ("```python\n1\n", "never closed"),
    ],
)
def test_code_in_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        list(blocks(text))


def test_other_fences_are_seen() -> None:
    found = list(blocks("~~~py\n1\n~~~\n````python\n```\n````\n```\n2\n```\n"))
    assert [block.info for block in found] == ["py", "python", ""]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_snippets_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = Given()
    loader = given["loader"]
    for block in snippets(page):
        given["loader"] = loader  # others loop over it as a name of their own
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # Avalanche's own
            exec(compile(block.text, f"{page.name}, line {block.line}", "exec"), given)
