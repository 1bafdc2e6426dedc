"""Two processes of a Lightning or Hugging Face trainer: they hold the same, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PROCESSES, assert_the_same, join_group, run_processes
from torch import distributed as dist

from flatcl.errors import OptionError

HOSTS = ("lightning", "transformers")


def work(rank: int, folder: str) -> None:
    """Runs in each process; both trainers take the group that they find."""
    join_group(rank, folder)
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES}
    os.environ |= address | {name: str(value) for name, value in ranks.items()}
    ways = {"lightning": with_lightning, "transformers": with_transformers}
    found = {host: ways[host](Path(folder, host)) for host in HOSTS if find_spec(host)}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def with_lightning(folder: Path) -> dict[str, Any]:
    import test_lightning as host
    from lightning.pytorch.strategies import DDPStrategy

    class Parts(DDPStrategy):
        """Leaves the model as it is, as strategies do that keep parts of it in each process."""

        def _setup_model(self, model: Any) -> Any:
            return model

    def fit(model: Any, data: Any, callback: Any, *, parts: bool) -> None:
        strategy = Parts() if parts else "ddp"
        trainer = host.trainer_in(folder, [callback], 2, strategy=strategy, devices=PROCESSES)
        host.fit(trainer, model, data)

    return trained(host, fit)


def with_transformers(folder: Path) -> dict[str, Any]:
    import test_transformers as host
    from accelerate.state import DistributedType

    class Parts(host.TrainerCallback):  # type: ignore[misc]
        """Has the trainer say what it says where FSDP keeps parts of the model in each process."""

        def on_train_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            optimizer.accelerator_state.distributed_type = DistributedType.FSDP

    def fit(model: Any, data: Any, callback: Any, *, parts: bool) -> None:
        callbacks = [Parts(), callback] if parts else [callback]
        host.train(host.trainer_of(model, data, folder, callbacks, ddp_backend="gloo"))

    return trained(host, fit)


def trained(host: Any, fit: Callable[..., None]) -> dict[str, Any]:
    """Two tasks, then a training that is refused."""
    torch.manual_seed(0)
    callback, model = host.LDCCallback(), host.Classifier()
    first, second = host.tasks()
    fit(model, first, callback, parts=False)
    fit(model, second, callback, parts=False)
    with pytest.raises(OptionError) as refused:
        fit(model, second, callback, parts=True)
    held = callback.state_dict()
    return {"model": model.state_dict(), "held": held, "refused": str(refused.value)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes found, by rank."""
    folder = tmp_path_factory.mktemp("trainers")
    return run_processes(Path(__file__), folder, seconds=240)


@pytest.mark.parametrize("host", HOSTS)
def test_the_processes_of_a_trainer_hold_the_same(results: list[Any], host: str) -> None:
    pytest.importorskip(host, reason=f"{host} is not installed")
    first, second = (found[host] for found in results)
    assert first["held"]["landscape"]["tasks_ended"] == 2
    assert_the_same(first, second)


def test_processes_that_train_parts_of_a_model_are_refused_by_lightning(results: list[Any]) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    for found in results:
        assert "in parts (Parts)" in found["lightning"]["refused"]
        assert "DistributedDataParallel" in found["lightning"]["refused"]


def test_processes_that_train_parts_of_a_model_are_refused_by_transformers(
    results: list[Any],
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    for found in results:
        assert "in parts (FSDP)" in found["transformers"]["refused"]
