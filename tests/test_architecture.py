"""Imports go one way, and the light names stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flatcl

ROOT = Path(__file__).parent.parent
PACKAGE = Path(flatcl.__file__).parent

# Each layer may import itself and those above it in this table.
LAYERS = (
    ("__init__", "errors", "io", "seeds"),
    ("exact", "options", "stamps", "tables", "versions"),
    ("core",),
    ("fluctuations",),
    ("duality",),
    ("nested",),
    ("callback", "keywords"),
    ("lightning", "transformers"),
    ("published",),
    ("host",),
    ("offset", "experience", "checkpointing"),
    ("ldc_plugin", "record_plugin"),
    ("avalanche",),
    ("published_plugin", "forecast_metric"),
    ("data",),
    ("views",),
    ("tasks",),
    ("datasets",),
    ("feed",),
    ("streams",),
    ("clock", "evaluation", "footprint", "models", "scores"),
    ("rivals",),
    ("protocol", "record_content"),
    ("records",),
    ("cells", "tuning"),
    ("brought",),
    ("plots", "fluctuation_plots", "forecast_plots", "duality_plots"),
    ("experiments", "analysis_options", "generalize_options"),
    ("plain_network",),
    ("analysis_task", "analysis_kept"),
    ("generalize_settings",),
    ("trajectory", "generalize_training"),
    ("generalize_runs", "generalize_effects"),
    ("analysis_summary", "generalize_summary", "generalize_kept"),
    ("analysis", "analysis_record", "generalize"),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FORBIDDEN_IN_CORE = {"avalanche", "matplotlib", "sklearn", "scipy", "numpy", "joblib", "tqdm"}
LAZY_NAMES_OF = PACKAGE / "__init__.py"


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports anywhere but under ``if TYPE_CHECKING``."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = layer_of(path)
    assert own in LEVEL, f"{own} has no place in the table of layers"
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "flatcl" or len(parts) == 1 or parts[1] not in LEVEL:
            continue
        assert LEVEL[parts[1]] <= LEVEL[own], f"{own} imports {name}, which lies below it"
        if LEVEL[parts[1]] == LEVEL[own]:
            assert parts[1] == own or own in {"io", "__init__"}, f"{own} imports {name} beside it"
        if own == "core":
            assert parts[1] in {"core", "errors"}, f"core imports {name}"
        if own == "fluctuations" and parts[1] == "core" and len(parts) > 2:
            allowed = {"layers", "wrappers", "gradients", "moments", "eigenbasis"}
            assert parts[2] in allowed, f"fluctuations imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_knows_torch_alone(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert not roots & FORBIDDEN_IN_CORE


def test_plots_are_imported_by_the_comparison_and_commands_only() -> None:
    users = {layer_of(p) for p in FILES if "flatcl.plots" in imports_of(p)}
    assert users <= {"experiments", "analysis", "cli"}


def test_files_stay_small() -> None:
    lengths = {str(p.relative_to(PACKAGE.parent)): len(p.read_text().splitlines()) for p in FILES}
    assert not {name: n for name, n in lengths.items() if n > 300}


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_the_callback_of_a_trainer_stays_short(name: str) -> None:
    """Fewer than 60 lines of code, docstrings and breaks of lines apart."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            node.body = node.body[1:] if ast.get_docstring(node) else node.body
    assert len([line for line in ast.unparse(tree).splitlines() if line.strip()]) < 60


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_what_importing_flatcl_loads() -> None:
    assert not loaded_by("import flatcl") & {"torch", "avalanche", "matplotlib", "numpy"}
    core = loaded_by("from flatcl import Landscape")
    assert "torch" in core
    assert not core & {"avalanche", "matplotlib", "sklearn"}
    measuring = loaded_by("import flatcl.analysis, flatcl.analysis_record, flatcl.generalize")
    assert "torch" in measuring
    assert not measuring & {"avalanche", "matplotlib"}  # four seconds


def test_the_lazy_names_exist_and_others_do_not() -> None:
    import flatcl

    for name in flatcl.__all__:
        assert getattr(flatcl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flatcl.nothing
