"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build``."""

from __future__ import annotations

import re
from typing import Any

import flatcl

project = "flatcl"
author = "The flatcl authors"
copyright = author  # Sphinx asks for this name
release = version = flatcl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "flatcl"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.xref_missing",  # links to pages beside docs/, which are read on the repository's site
]

autodoc_mock_imports = ["lightning", "transformers"]  # hosts of two callbacks, large and optional
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of dataclasses are documented once


def _plain_bars(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Escape the bars of |Δw|, which reStructuredText takes for substitutions."""
    for place, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[place] = "".join(
            part if part.startswith("``") else part.replace("|", "\\|") for part in parts
        )


def setup(app: Any) -> None:
    """Connect what is made here.

    Args:
        app: Sphinx.
    """
    app.connect("autodoc-process-docstring", _plain_bars)
