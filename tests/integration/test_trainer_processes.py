"""Two processes of a Lightning or Hugging Face trainer: they hold the same, bit for bit."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PROCESSES, join_group, run_processes
from torch import distributed as dist

from flatcl.errors import OptionError

HOSTS = ("lightning", "transformers")


def work(rank: int, folder: str) -> None:
    """Runs in each process; both trainers take the group that they find."""
    join_group(rank, folder)
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES}
    os.environ |= address | {name: str(value) for name, value in ranks.items()}
    trained = {"lightning": with_lightning, "transformers": with_transformers}
    found = {host: trained[host](Path(folder, host)) for host in HOSTS if find_spec(host)}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def with_lightning(folder: Path) -> dict[str, Any]:
    import test_lightning as host
    from lightning.pytorch.strategies import DDPStrategy

    class Parts(DDPStrategy):
        """Leaves the model as it is, as strategies do that keep parts of it in each process."""

        def _setup_model(self, model: Any) -> Any:
            return model

    torch.manual_seed(0)
    callback, model, refused = host.LDCCallback(), host.Classifier(), ""
    first, second = host.tasks()
    for data, strategy in ((first, "ddp"), (second, Parts()), (second, "ddp")):
        trainer = host.trainer_in(folder, [callback], 2, strategy=strategy, devices=PROCESSES)
        try:
            host.fit(trainer, model, data)
        except OptionError as error:
            refused = str(error)
    return {"model": model.state_dict(), "held": callback.state_dict(), "refused": refused}


def with_transformers(folder: Path) -> dict[str, Any]:
    import test_transformers as host
    from accelerate.state import DistributedType

    class Parts(host.TrainerCallback):  # type: ignore[misc]
        """Has the trainer say what it says where FSDP keeps parts of the model in each process."""

        def on_train_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            optimizer.accelerator_state.distributed_type = DistributedType.FSDP

    torch.manual_seed(0)
    callback, model, refused = host.LDCCallback(), host.Classifier(), ""
    first, second = host.tasks()
    for data, others in ((first, []), (second, []), (second, [Parts()])):
        trainer = host.trainer_of(model, data, folder, [*others, callback], ddp_backend="gloo")
        try:
            host.train(trainer)
        except OptionError as error:
            refused = str(error)
    return {"model": model.state_dict(), "held": callback.state_dict(), "refused": refused}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes found, by rank."""
    folder = tmp_path_factory.mktemp("trainers")
    return run_processes(Path(__file__), folder, seconds=240)


def leaves(state: Any, path: tuple[object, ...] = ()) -> Any:
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


@pytest.mark.parametrize("host", HOSTS)
def test_the_processes_of_a_trainer_hold_the_same(results: list[Any], host: str) -> None:
    pytest.importorskip(host, reason=f"{host} is not installed")
    first, second = (dict(leaves(found[host])) for found in results)
    assert first["held", "landscape", "tasks_ended"] == 2
    assert set(first) == set(second)
    for path, value in first.items():
        if isinstance(value, torch.Tensor):  # growth that was not measured is NaN
            torch.testing.assert_close(value, second[path], rtol=0, atol=0, equal_nan=True)
        else:
            assert value == second[path], path


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
