"""What made a number: versions of packages, the commit, the content of the code, the machine."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from flatcl import __version__

_PACKAGE = Path(__file__).resolve().parent


@lru_cache
def versions() -> Mapping[str, str]:
    """Return the versions of flatcl and of the packages that its numbers depend on.

    Returns:
        Version by package name.
    """
    packages = ("torch", "avalanche-lib", "numpy")
    return {"flatcl": __version__} | {name: metadata.version(name) for name in packages}


@lru_cache
def commit() -> str | None:
    """Return the commit of the source checkout that flatcl runs from.

    Returns:
        The hash, with "-dirty" if the package's files differ from it; None outside a checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_PACKAGE), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        # A package installed into some project's folder is not that project's commit.
        if git("ls-files", "--error-unmatch", "__init__.py") != "__init__.py":
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> str:
    """Return the kind of machine that this process computes on: sums are rounded by its kernels.

    Returns:
        Processor, the instructions that torch uses, architecture and system; then the GPUs, if
        the process has used any.
    """
    import torch

    gpus: list[str] = []
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    instructions = torch.backends.cpu.get_cpu_capability()
    parts = [*_processor(), instructions, platform.machine(), platform.system(), *gpus]
    return ", ".join(part for part in parts if part)


@lru_cache
def _processor() -> tuple[str, ...]:
    """Return its name, and where Linux tells them its family, model and stepping."""
    told: dict[str, str] = {}
    with suppress(OSError):  # other systems have no such file
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        told = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    numbers = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    return (
        told.get("model name") or platform.processor(),
        *(f"{word} {told[name]}" for word, name in numbers.items() if name in told),
    )


@lru_cache
def code_of(patterns: tuple[str, ...], further: tuple[Path, ...] = ()) -> str:
    """Return a hash of files of the package.

    Args:
        patterns: of their paths within it, e.g. ``core/*.py``.
        further: files beside them.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    paths = sorted(path for pattern in patterns for path in _PACKAGE.glob(pattern))
    for path in [*paths, *further]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
