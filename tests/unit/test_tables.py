"""The Markdown table writer."""

from __future__ import annotations

import pytest

from flatcl.errors import OptionError
from flatcl.tables import markdown_table


def test_columns_line_up_first_left_others_right() -> None:
    table = markdown_table(["method", "ACC %"], [["naive", "9.50 ± 1.00"], ["ldc", "95.1"]])
    assert table.splitlines() == [
        "| method |       ACC % |",
        "| ------ | ----------: |",
        "| naive  | 9.50 ± 1.00 |",
        "| ldc    |        95.1 |",
    ]


def test_a_bar_in_a_cell_is_escaped() -> None:
    assert "a\\|b" in markdown_table(["x"], [["a|b"]])


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(OptionError, match="has 1 cells; give 2"):
        markdown_table(["a", "b"], [["1"]])
