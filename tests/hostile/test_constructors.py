"""Options made in Python: a value is taken, or refused by an error of flatcl's, in one line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import values

from flatcl.analysis_options import AnalyzeOptions
from flatcl.errors import OptionError
from flatcl.generalize_options import GeneralizeOptions
from flatcl.protocol import CompareOptions

KINDS: tuple[Any, ...] = (CompareOptions, AnalyzeOptions, GeneralizeOptions)


def taken_or_refused(kind: Any, given_: dict[str, Any]) -> Any:
    """Make the options; None if they were refused as they should be."""
    try:
        return kind(**given_)
    except OptionError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 500
    return None


@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_options_are_taken_or_refused(kind: Any, data: st.DataObject) -> None:
    names = st.sampled_from([field.name for field in fields(kind)])
    chosen = data.draw(st.dictionaries(names, values(), min_size=1, max_size=2))
    found = taken_or_refused(kind, chosen)
    if found is not None:
        assert found.headline().count("\n") == 0
        assert kind(**{f.name: getattr(found, f.name) for f in fields(kind)}) == found
