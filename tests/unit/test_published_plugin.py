"""LDC as published in Avalanche, and chosen by ``flatcl compare``'s options."""

from __future__ import annotations

import pytest
from blobs import blob_stream, network, plugged, train

from flatcl import CompareOptions
from flatcl.cells import run_cell
from flatcl.errors import OptionError
from flatcl.published_plugin import PublishedLDCPlugin
from flatcl.records import Cell, identity


def test_it_needs_no_argument_and_holds_after_a_task() -> None:
    plugin = PublishedLDCPlugin()
    train(plugged(plugin, network()), blob_stream())
    assert plugin.bytes_held() > 0


def test_options_reach_the_landscape_and_strange_ones_are_refused() -> None:
    plugin = PublishedLDCPlugin(strength=2.0, interval=3, directions=2, seed=5)
    assert plugin.options.interval == 3
    assert plugin.options.strength == 0
    assert plugin.published.directions == 2
    with pytest.raises(OptionError, match="no option 'width'"):
        PublishedLDCPlugin(width=1.0)


SMALL = {"tasks": 2, "train_size": 60, "val_size": 100, "epochs": 1, "seeds": 1, "hidden": (8,)}


@pytest.mark.parametrize(
    "change",
    [{"source": "published"}, {"stiffness": "flipped"}, {"directions": "random", "strength": 1.0}],
    ids=str,
)
def test_compare_runs_the_variants(change: dict[str, object]) -> None:
    options = CompareOptions(methods=("ldc",), **SMALL, **change)  # type: ignore[arg-type]
    record = run_cell(options, Cell("ldc", None, 0, "test"))
    assert record.status == "done", record.error
    assert record.bytes_held is not None
    assert record.bytes_held > 0


def test_a_variant_is_another_run_of_ldc_and_none_of_its_rivals() -> None:
    plain, changed = CompareOptions(), CompareOptions(stiffness="shuffled")
    ldc, ewc = Cell("ldc", None, 0, "test"), Cell("ewc", 1.0, 0, "test")
    assert identity(plain, ldc) != identity(changed, ldc)
    assert identity(plain, ewc) == identity(changed, ewc)
    published = identity(CompareOptions(source="published"), ldc)
    assert published["code"] != identity(plain, ldc)["code"]


def test_options_that_the_published_form_lacks_are_refused() -> None:
    with pytest.raises(OptionError, match="width"):
        CompareOptions(source="published", width=1.0)
