"""A page made of committed results is what its command renders from them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("lab_methods_apart")

PAGES = {
    "ablation": "ABLATION.md",
    "bridge": "BRIDGE.md",
    "comparisons": "RESULTS.md",
    "compatibility": "COMPATIBILITY.md",
    "defaults": "DEFAULTS.md",
    "directions": "DIRECTIONS.md",
    "fluctuations": "FLUCTUATIONS.md",
    "forecast": "FORECAST.md",
    "front": "FRONT.md",
    "matrix": "MATRIX.md",
    "overhead": "OVERHEAD.md",
    "resnet": "RESNET.md",
    "rotation": "ROTATION.md",
    "scale": "SCALE.md",
    "strengths": "STRENGTHS.md",
    "toy_relation": "TOY_RELATION.md",
}


@pytest.mark.parametrize(("name", "page"), PAGES.items(), ids=PAGES)
def test_a_page_is_made_of_the_results(
    name: str, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[Path, bytes]] = []

    def note(path: Path, data: bytes) -> None:
        written.append((path, data))

    command = importlib.import_module(f"benchmarks.{name}")
    modules = [one for key, one in sys.modules.items() if key.startswith("benchmarks.")]
    for module in modules:
        if hasattr(module, "write_bytes"):
            monkeypatch.setattr(module, "write_bytes", note)
        if hasattr(module, "png"):  # another release of matplotlib draws other bytes
            monkeypatch.setattr(module, "png", lambda *_, **__: b"")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of all tests after this one
    monkeypatch.setattr(sys, "argv", [name, "--render"])
    command.main()
    pages = [(path, data) for path, data in written if path.suffix == ".md"]
    assert page in {path.name for path, _ in pages}
    for path, data in pages:
        assert path.read_text(encoding="utf-8") == data.decode(), f"{path.name} is stale"
