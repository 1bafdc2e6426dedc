"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build``.

The pages beside ``docs/`` that the guides link to (``benchmarks/*.md``, the changelog, the
contribution guide) become pages of the site, from copies in ``docs/_pages`` that each build makes
anew. A link therefore works in a repository's viewer and in the site, and a broken one is an error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import flatcl
from flatcl.io import write_bytes
from flatcl.options import Options, option_fields

HERE = Path(__file__).parent
ROOT = HERE.parent
COPIES = HERE / "_pages"

project = "flatcl"
author = "The flatcl authors"
copyright = author  # Sphinx asks for this name
release = version = flatcl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "flatcl"
exclude_patterns = ["_build"]
myst_heading_anchors = 3

autodoc_mock_imports = ["lightning", "transformers"]  # hosts of two callbacks, large and optional
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of dataclasses are documented once

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def copied_pages() -> dict[Path, str]:
    """Return the pages beside ``docs/`` that the site has too.

    Returns:
        Path of each → that of its copy.
    """
    # NAME.head.md is the hand-written part of NAME.md.
    reports = [p for p in (ROOT / "benchmarks").glob("*.md") if not p.stem.endswith(".head")]
    found = {p: COPIES / "measured" / p.name for p in sorted(reports)}
    return found | {ROOT / name: COPIES / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")}


def _copy_pages(app: Any) -> None:
    pages = copied_pages()
    for left in COPIES.rglob("*.md"):
        if left not in pages.values():
            left.unlink()
    for page, copy in pages.items():
        content = page.read_bytes()
        if not copy.exists() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(copy, content)


def _retarget(app: Any, docname: str, source: list[str]) -> None:
    """Point the links of a page to where their targets are in the site."""
    copies = copied_pages()
    here = HERE / f"{docname}.md"
    origins = {copy: page for page, copy in copies.items()}
    folder = origins.get(here, here).parent

    def target(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / link["path"]))
        path = copies.get(path, path)
        if path.is_relative_to(HERE):
            found = os.path.relpath(path, here.parent)
            return f"{link['image']}[{link['text']}]({found}{link['anchor'] or ''})"
        return link["text"] if path.exists() else link[0]  # code and data are the repository's

    source[0] = _LINK.sub(target, source[0])


def _tidy(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Escape the bars of |Δw|, which would be substitutions; list the options of a command."""
    for place, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[place] = "".join(
            part if part.startswith("``") else part.replace("|", "\\|") for part in parts
        )
    if isinstance(of, type) and issubclass(of, Options) and of is not Options:
        lines += ["", "Attributes:"]
        for item in option_fields(of):
            meaning = item.metadata["help"].replace("|", "\\|").replace("*", "\\*")
            if item.default is True:  # the help is that of the flag, ``--no-NAME``
                meaning = f"False for {meaning}"
            lines.append(f"    {item.name}: {meaning}; {item.default!r} by default.")


def setup(app: Any) -> None:
    """Connect what is made here.

    Args:
        app: Sphinx.
    """
    app.connect("builder-inited", _copy_pages)
    app.connect("source-read", _retarget)
    app.connect("autodoc-process-docstring", _tidy, priority=400)  # before Napoleon reads it
