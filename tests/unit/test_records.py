"""Records of runs: what they tell of their making, and what cannot be one."""

from __future__ import annotations

import ast
import importlib
import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flatcl
from flatcl import records
from flatcl.protocol import CompareOptions
from flatcl.records import Cell, Record, load, path_of, save
from flatcl.versions import machine

OPTIONS = CompareOptions(scenario="split-domain", tasks=2)
CELL = Cell("ldc", None, 0, "test")
RECORD = Record(CELL, "done", [[0.9, 0.5], [0.8, 0.9]], [1.0, 2.0], 40)


def test_the_machine_is_told_by_what_the_system_and_torch_call_it():
    parts = machine().split(", ")
    assert {torch.backends.cpu.get_cpu_capability(), platform.machine(), platform.system()} <= {
        *parts
    }
    if sys.platform == "linux" and platform.machine() == "x86_64":
        told = subprocess.run(
            ["grep", "-m1", "model name", "/proc/cpuinfo"], capture_output=True, text=True
        )
        assert parts[0] == told.stdout.split(":")[1].strip()
    code = "from flatcl.versions import machine; print(machine())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == machine()


def test_a_record_keeps_the_machine_that_made_it(tmp_path):
    assert RECORD.machine == machine()
    elsewhere = replace(RECORD, machine="a worker of a cluster")
    save(tmp_path, OPTIONS, elsewhere)
    assert load(tmp_path, OPTIONS, CELL) == elsewhere


def test_records_of_before_name_no_machine(tmp_path):
    path = save(tmp_path, OPTIONS, RECORD)
    content = json.loads(path.read_text())
    del content["machine"]
    path.write_text(json.dumps(content))
    assert load(tmp_path, OPTIONS, CELL) == replace(RECORD, machine=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"machine": 3},
        {"accuracy": [[0.9, 0.5]]},
        {"accuracy": [[0.9, 0.5], [0.8, 1.9]]},
        {"seconds": [1.0]},
        {"bytes_held": -1},
        {"status": "failed"},
    ],
)
def test_what_cannot_be_a_record_is_none(tmp_path, wrong):
    save(tmp_path, OPTIONS, RECORD)
    path = path_of(tmp_path, OPTIONS, CELL)
    assert load(tmp_path, OPTIONS, CELL) is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    assert load(tmp_path, OPTIONS, CELL) is None


def test_the_code_of_the_published_method_is_all_that_it_takes_of_the_analysis():
    """A file that it imports and that is left out would change its runs without a new record."""
    root = Path(flatcl.__file__).parent
    wanted = [*(root / "published").glob("*.py"), root / "published_plugin.py"]
    for path in wanted:  # which grows meanwhile
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith(
                "flatcl.fluctuations"
            ):
                continue
            for name in node.names:
                found = getattr(importlib.import_module(str(node.module)), name.name)
                module = getattr(found, "__module__", None) or str(node.module)
                other = root / "fluctuations" / f"{module.split('.')[-1]}.py"
                if module.startswith("flatcl.fluctuations.") and other not in wanted:
                    wanted.append(other)
    used = {f"fluctuations/{p.name}" for p in wanted if p.parent.name == "fluctuations"}
    assert "fluctuations/pca.py" in used
    assert used <= set(records._PUBLISHED_CODE)
