"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from flatcl.streams import Stream


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep sums in one order and cores free for others."""
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20211)


@pytest.fixture(scope="module")
def stream() -> Stream:
    from blobs import blob_stream  # Avalanche's import, for the tests that need it

    return blob_stream()


@pytest.fixture(scope="module")
def lab_methods_apart() -> Iterator[None]:
    """Let a module make the lab's methods known, and the modules after it not know them."""
    from benchmarks.lab_methods import lab_methods
    from flatcl.rivals import RIVALS

    before = dict(RIVALS)
    lab_methods.cache_clear()
    yield
    RIVALS.clear()
    RIVALS.update(before)
    lab_methods.cache_clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Put how many inputs a property-based test tried into pytest's own report of it."""
    handle: Any = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None:
        yield
        return
    inner, tried = handle.inner_test, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal tried
        tried += 1
        return inner(*args, **kwargs)

    handle.inner_test = counted
    yield
    handle.inner_test = inner
    item.user_properties.append(("inputs", tried))
