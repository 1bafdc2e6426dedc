"""Two processes that train one model: how tests start them, and how they find each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import distributed as dist

PROCESSES = 2
TESTS = Path(__file__).parent


def run_processes(test: Path, folder: Path, *, seconds: float) -> list[dict]:
    """Call ``work(rank, folder)`` of a test file in each process; what each saved, by rank."""
    paths = [str(path) for path in (test.parent, TESTS, TESTS.parent)]
    code = (
        f"import sys; sys.path[:0] = {paths!r}\n"
        f"import {test.stem} as t; t.work(int(sys.argv[1]), sys.argv[2])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    running = []
    for rank in range(PROCESSES):
        with (folder / f"{rank}.log").open("wb") as log:
            command = [sys.executable, "-c", code, str(rank), str(folder)]
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        status = [process.wait(timeout=seconds) for process in running]
        assert not any(status), "".join(p.read_text() for p in sorted(folder.glob("*.log")))
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def join_group(rank, folder):
    """In each process, before anything is sent."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)


def assert_the_same(first, second, path=()):
    """What two processes found: the same keys, and the same bits in nested states."""
    if isinstance(first, dict):
        assert isinstance(second, dict), path
        assert set(first) == set(second), path
        for key, value in first.items():
            assert_the_same(value, second[key], (*path, key))
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_the_same(one, other, (*path, number))
    elif isinstance(first, torch.Tensor):  # growth that was not measured is NaN
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    else:
        assert first == second, path
