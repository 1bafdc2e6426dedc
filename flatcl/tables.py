"""Markdown tables that also read well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from flatcl.errors import OptionError


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up: the first to the left, others to the right.

    Args:
        header: the columns' names.
        rows: cells, as many in each row as there are columns; ``|`` is escaped.

    Returns:
        Lines without a newline at the end.

    Raises:
        OptionError: a row has another number of cells than the header.

    Example:
        >>> print(markdown_table(["method", "ACC"], [["naive", "9.5"]]))
        | method | ACC |
        | ------ | --: |
        | naive  | 9.5 |
    """
    for row in rows:
        if len(row) != len(header):
            raise OptionError(f"row {list(row)} has {len(row)} cells; give {len(header)}")
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )
