"""What pages say of files is so: links, the map of the house, the citation, the reference."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import flatcl

ROOT = Path(__file__).parents[2]
PACKAGE = Path(flatcl.__file__).parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if not {"_build", "_pages"} & set(p.parts)),
]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)")
_SOURCES = [
    *sorted(PACKAGE.rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    absent = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert not absent


def test_the_map_of_the_house_has_every_file() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./]+)`", text))
    files = {path.stem for path in _SOURCES if path.stem != "__init__"}
    assert not files - named


def test_the_map_of_the_house_has_no_file_that_is_not_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    house = text.split("## The house")[1].split("**`tests/`**")[0]
    rows = [line for line in house.splitlines() if line.startswith("| ") and "`" in line]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    folders = {path.parent.name for path in _SOURCES}
    assert not named - {path.stem for path in _SOURCES} - folders


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {flatcl.__version__}\n" in text
    for doi in ("10.1073/pnas.2015617118", "10.1038/s42256-023-00700-x"):
        assert f"doi: {doi}\n" in text


@pytest.mark.parametrize(
    "module",
    [
        "flatcl",
        "flatcl.avalanche",
        "flatcl.checkpointing",
        "flatcl.duality",
        "flatcl.fluctuations",
        "flatcl.forecast_metric",
    ],
)
def test_public_names_are_in_the_reference(module: str) -> None:
    pages = sorted((ROOT / "docs/reference").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    directives = set(re.findall(r"\.\. auto\w+:: ([\w.]+)", text))
    if module in directives:  # as a whole, by its __all__
        return
    loaded = importlib.import_module(module)
    names = {n for n in loaded.__all__ if not n.startswith("__")}
    errors = set(vars(flatcl.errors)) if "flatcl.errors" in directives else set()
    assert not {n for n in names if f"{module}.{n}" not in directives} - errors
