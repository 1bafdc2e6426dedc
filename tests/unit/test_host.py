"""Avalanche is imported where it can be, and refused with cause and remedy where not.

Each case runs in a process of its own, with stand-ins for the packages that are at fault.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import flatcl

ROOT = str(Path(flatcl.__file__).parents[1])

# Makes the interpreter blind to the named packages, wherever they are installed.
BLIND = """
import sys
def blind(*names):
    def wrap(finder):
        class Blind:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name.partition(".")[0] in names:
                    return None
                return finder.find_spec(name, path, target)
        return Blind
    sys.meta_path[:] = [wrap(finder) for finder in sys.meta_path]
"""
CALL = "from flatcl.host import ensure_avalanche\nensure_avalanche()\n"


def python(code: str, folder: Path, **packages: str) -> subprocess.CompletedProcess[str]:
    for name, source in packages.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def last_line(outcome: subprocess.CompletedProcess[str]) -> str:
    assert outcome.returncode == 1, outcome.stdout
    return outcome.stderr.strip().splitlines()[-1]


def test_a_torchvision_without_operators_is_repaired(tmp_path: Path) -> None:
    vision = """
import torch, torchvision.extension
for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda *inputs: inputs[0])
whole = torchvision.extension.loaded
"""
    code = f"""
import torch
try:
    import torchvision
except RuntimeError as error:
    assert "operator torchvision::nms does not exist" in str(error)
else:
    raise AssertionError("the stand-in is not broken")
{CALL}
import avalanche, torchvision
assert torchvision.whole
box = torch.ones(1, 4)
try:
    torch.ops.torchvision.nms(box, torch.ones(1), 0.5)
except NotImplementedError:
    print("refused")
"""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "extension.py").write_text("loaded = True\n")
    outcome = python(code, tmp_path, torchvision=vision, avalanche="import torchvision")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == "refused\n"


def test_a_torchvision_beyond_repair_names_both_versions_and_the_command(tmp_path: Path) -> None:
    torch = '__version__ = "2.4.1+cpu"'
    vision = 'raise RuntimeError("compiled with different CUDA major versions")'
    info = tmp_path / "torchvision-0.99.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.1\n")
    outcome = python(CALL, tmp_path, torch=torch, torchvision=vision, avalanche="")
    line = last_line(outcome)
    assert line.startswith("flatcl.errors.HostError: torchvision 0.99.1 does not fit torch 2.4.1")
    assert "different CUDA major versions" in line
    assert '"torchvision==0.19.*" --index-url https://download.pytorch.org/whl/cpu`' in line


def test_missing_distutils_is_lent_for_the_import_only(tmp_path: Path) -> None:
    host = """
from distutils import spawn
found = spawn.find_executable("sh")
"""
    code = f"""{BLIND}
import shutil
blind("distutils", "_distutils_hack")
{CALL}
import avalanche
assert avalanche.found == shutil.which("sh"), avalanche.found
assert "distutils" not in sys.modules and "distutils.spawn" not in sys.modules
try:
    import distutils
except ModuleNotFoundError:
    print("gone")
"""
    outcome = python(code, tmp_path, torchvision="", avalanche=host)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == "gone\n"


def test_a_present_distutils_is_left_alone(tmp_path: Path) -> None:
    code = f"""
import sys, types
own = sys.modules["distutils"] = types.ModuleType("distutils")
{CALL}
assert sys.modules["distutils"] is own
"""
    outcome = python(code, tmp_path, torchvision="", avalanche="import distutils")
    assert outcome.returncode == 0, outcome.stderr


def test_missing_avalanche_names_the_command(tmp_path: Path) -> None:
    outcome = python(f"{BLIND}\nblind('avalanche')\n{CALL}", tmp_path, torchvision="")
    assert last_line(outcome) == (
        "flatcl.errors.HostError: Avalanche is not installed: "
        'run `pip install "avalanche-lib==0.6.0"`'
    )


def test_missing_setuptools_names_the_command(tmp_path: Path) -> None:
    code = f"{BLIND}\nblind('pkg_resources')\n{CALL}"
    outcome = python(code, tmp_path, torchvision="", avalanche="import pkg_resources")
    assert last_line(outcome) == (
        "flatcl.errors.HostError: Avalanche cannot be imported (ModuleNotFoundError: "
        "No module named 'pkg_resources'): run `pip install setuptools`"
    )


def test_a_broken_avalanche_names_the_cause(tmp_path: Path) -> None:
    host = 'raise OSError("libgomp.so.1: cannot open\\nshared object file")'
    outcome = python(CALL, tmp_path, torchvision="", avalanche=host)
    assert last_line(outcome) == (
        "flatcl.errors.HostError: Avalanche cannot be imported (OSError: libgomp.so.1: cannot "
        'open shared object file): run `pip install "avalanche-lib==0.6.0"`'
    )


def test_warnings_of_the_import_are_hidden_and_no_others(tmp_path: Path) -> None:
    host = 'import warnings\nwarnings.warn("old", DeprecationWarning)'
    code = f"""{CALL}
import warnings
try:
    warnings.warn("mine", DeprecationWarning)
except DeprecationWarning:
    print("still an error")
"""
    outcome = python(code, tmp_path, torchvision="", avalanche=host)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == "still an error\n"


def test_an_imported_avalanche_is_enough(tmp_path: Path) -> None:
    vision = 'raise RuntimeError("not asked for")'
    code = f"import avalanche\n{CALL}ensure_avalanche()"
    outcome = python(code, tmp_path, torchvision=vision, avalanche="")
    assert outcome.returncode == 0, outcome.stderr
