"""Avalanche, the host library: imported on machines where its dependencies block it.

Two faults are common and harmless to repair. A torchvision built for another torch lacks its
compiled operators and stops while describing them; Avalanche needs only its transforms. And
GPUtil, which Avalanche imports, asks for ``distutils``, gone from Python 3.12, to find one
executable. Everything else is reported with its cause and the command that mends it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flatcl.errors import HostError

if TYPE_CHECKING:
    from torch.library import Library

_AVALANCHE = 'pip install "avalanche-lib==0.6.0"'

# Operators that torchvision describes to torch even where its compiled library did not load.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[Library] = []  # a schema lives as long as its Library object


def ensure_avalanche() -> None:
    """Return once ``import avalanche`` works in this process, after safe repairs if needed.

    A torchvision whose compiled operators do not load gets their names declared, so that its
    transforms import (the operators themselves still refuse to run); a missing ``distutils``
    is replaced while Avalanche is being imported. Warnings of the import itself are hidden.

    Raises:
        HostError: Avalanche or torchvision is missing or broken beyond these repairs; the
            message names the cause and the command that mends it.
    """
    if "avalanche" in sys.modules:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for the import only: none of it is about the caller
        _import_torchvision()
        try:
            with _distutils():
                importlib.import_module("avalanche")
        except Exception as error:
            raise HostError(_explain(error)) from error


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return  # Avalanche's own import says which part it misses
    except Exception as first:
        if "operator torchvision::" not in str(first):
            raise HostError(_mismatch(first)) from first
        _forget("torchvision")
        _declare_operators()
        try:
            importlib.import_module("torchvision")
        except Exception as second:
            raise HostError(_mismatch(second)) from second


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _declared.append(library)
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]


def _forget(package: str) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        del sys.modules[name]


@contextmanager
def _distutils() -> Iterator[None]:
    """Return a context in which ``from distutils import spawn`` works."""
    if "distutils" in sys.modules or importlib.util.find_spec("distutils") is not None:
        yield
        return
    package, spawn = types.ModuleType("distutils"), types.ModuleType("distutils.spawn")
    vars(spawn)["find_executable"] = shutil.which
    vars(package).update(spawn=spawn, __path__=[])
    sys.modules |= {"distutils": package, "distutils.spawn": spawn}
    try:
        yield
    finally:  # others probe for distutils, and must not find a hollow one
        _forget("distutils")


def _mismatch(error: Exception) -> str:
    import torch

    release, _, local = torch.__version__.partition("+")
    major, minor = (int(part) for part in release.split(".")[:2])
    try:
        vision = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        vision = "of unknown version"
    # torchvision 0.(x + 15) is built for torch 2.x
    wanted = f'"torchvision==0.{minor + 15}.*"' if major == 2 else "torchvision"
    index = f" --index-url https://download.pytorch.org/whl/{local}" if local else ""
    return (
        f"torchvision {vision} does not fit torch {torch.__version__} ({_line(error)}): "
        f"run `pip install --force-reinstall --no-deps {wanted}{index}`"
    )


def _explain(error: Exception) -> str:
    cause = _line(error)
    if isinstance(error, ModuleNotFoundError):
        missing = str(error.name).partition(".")[0]
        if missing == "avalanche":
            return f"Avalanche is not installed: run `{_AVALANCHE}`"
        if missing in {"distutils", "pkg_resources", "setuptools"}:
            return f"Avalanche cannot be imported ({cause}): run `pip install setuptools`"
    return f"Avalanche cannot be imported ({cause}): run `{_AVALANCHE}`"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
