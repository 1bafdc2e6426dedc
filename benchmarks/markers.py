"""Generated parts of a page that is otherwise written by hand."""

from __future__ import annotations

from pathlib import Path

from flatcl.errors import DataError
from flatcl.io import write_bytes

END = "<!-- end -->"


def insert(page: Path, name: str, content: str) -> bool:
    """Return whether the page has a place of that name, after writing the content into it.

    The place is what lies between ``<!-- generated: NAME -->`` and the next ``<!-- end -->``.

    Args:
        page: a Markdown file; one that does not exist has no place.
        name: of the place.
        content: Markdown, without newlines around it.

    Returns:
        False if nothing was written.

    Raises:
        DataError: the place has a start and no end.
    """
    start = f"<!-- generated: {name} -->"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if start not in text:
        return False
    head, rest = text.split(start, 1)
    if END not in rest:
        raise DataError(f"{page.name}: no {END} after {start}; add one")
    tail = rest.split(END, 1)[1]
    write_bytes(page, f"{head}{start}\n\n{content}\n\n{END}{tail}".encode())
    return True
