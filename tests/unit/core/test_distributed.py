"""Two processes that train one model: they agree bit for bit, and with a single process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import PROCESSES, assert_the_same, join_group, run_processes
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from flatcl.core.distributed import Peers
from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of the processes found, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    return run_processes(Path(__file__), folder, seconds=120)


def work(rank, folder):
    """Runs in each process."""
    join_group(rank, folder)
    torch.save({"trained": both_tasks(rank), "joined": joined(rank)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def task_data(task):
    g = torch.Generator().manual_seed(task)
    y = torch.randint(0, 3, (101,), generator=g)
    x = 2.0 * torch.randn(3, 5, generator=g)[y] + torch.randn(101, 5, generator=g)
    return x.double(), y


def network(norm):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.ReLU(), nn.Linear(8, 3)).double()


def train(wrap, share, *, source, optimizer="adam", norm=False, forward=None):
    """Two tasks of 40 steps on global batches of 16; ``share`` cuts out a process's part."""
    model = network(norm)
    trained = wrap(model)
    opt = {
        "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    }[optimizer](model.parameters())
    options = LDCOptions(source=source, interval=5, probe_inputs=70)
    landscape = Landscape(
        trained,
        opt,
        options=options,
        forward=(lambda batch: trained(batch[0])) if forward else None,
    )
    order = torch.Generator().manual_seed(4)
    for task in (0, 1):
        x, y = task_data(task)
        landscape.begin_task(40)
        for _ in range(40):
            chosen = share(torch.randint(0, 101, (16,), generator=order))
            opt.zero_grad()
            with landscape.joining():
                outputs = trained(x[chosen])
            (F.cross_entropy(outputs, y[chosen]) + landscape.rehearsal()).backward()
            opt.step()
            landscape.step(16)
        # 101 inputs: the shares are of unequal length.
        landscape.end_task([share(part) for part in x.split(16)])
    return {"model": model.state_dict(), "landscape": landscape.state_dict()}


CASES = {
    "probe": {"source": "probe"},
    "sgd": {"source": "sgd", "optimizer": "sgd"},
    "forward": {"source": "probe", "forward": True},
    "norm": {"source": "probe", "norm": True},
}


def both_tasks(rank):
    return {
        name: train(DistributedDataParallel, lambda part: part[rank::PROCESSES], **case)
        for name, case in CASES.items()
    }


def test_processes_agree_with_each_other_and_with_a_single_one(results):
    first, second = (result["trained"] for result in results)
    assert_the_same(first, second)
    for name, case in CASES.items():
        if "norm" in case:
            continue  # a batch's own statistics are those of a share: another model than alone
        alone = train(lambda model: model, lambda part: part, **case)
        for key, weight in alone["model"].items():
            # float64: the sums of a batch are in another order, no more.
            torch.testing.assert_close(first[name]["model"][key], weight, rtol=1e-9, atol=1e-9)
        held = first[name]["landscape"]["constraints"]
        for unit, constraint in alone["landscape"]["constraints"].items():
            for key, tensor in constraint.items():
                torch.testing.assert_close(held[unit][key], tensor, rtol=1e-6, atol=1e-7)


def joined(rank):
    peers = Peers(DistributedDataParallel(nn.Linear(1, 1)))
    assert (peers.rank, peers.size) == (rank, PROCESSES)
    whole = [torch.arange(0, 6), torch.arange(6, 11), torch.arange(11, 12), torch.arange(12, 20)]
    device = torch.device("cpu")
    parts = [(b[rank::PROCESSES], b[rank::PROCESSES].float()[:, None] / 2) for b in whole]
    found = [[t.clone() for t in batch] for batch in peers.joined(parts, device)]
    one = list(peers.joined(parts[:1] if rank else parts, device))
    none = list(peers.joined([] if rank else parts, device))
    tensor = torch.full((2, 3), float(rank)).T
    peers.adopt_([tensor])
    unseen = Peers(nn.Linear(1, 1), dist.group.WORLD)  # wrapped by someone else
    padded = [torch.full((2 + rank, 3 + rank), rank), torch.tensor([[rank, 5]])]
    shapes = [batch.clone() for batch, _ in unseen.joined([(p, p) for p in padded], device)]
    return {
        "found": found,
        "counts": [len(one), len(none)],
        "adopted": tensor,
        "shapes": shapes,
        "unseen": [unseen.rank, unseen.size],
    }


def test_batches_are_joined_in_the_order_of_a_single_process(results):
    for result in (result["joined"] for result in results):
        # The third batch has an input in one process only: the joined data end before it.
        assert [t.tolist() for t, _ in result["found"]] == [list(range(6)), list(range(6, 11))]
        assert torch.equal(result["found"][1][1][:, 0], torch.arange(6, 11) / 2)
        assert result["counts"] == [1, 0]
        assert torch.equal(result["adopted"], torch.zeros(3, 2))


def test_batches_of_other_shapes_follow_one_another(results):
    for rank, result in enumerate(result["joined"] for result in results):
        assert result["unseen"] == [rank, PROCESSES]
        first, second, third = result["shapes"]
        assert torch.equal(first, torch.zeros(2, 3, dtype=torch.int64))
        assert torch.equal(second, torch.ones(3, 4, dtype=torch.int64))
        assert torch.equal(third, torch.tensor([[0, 5], [1, 5]]))


def test_a_single_process_needs_no_group():
    model = nn.Linear(2, 1)
    peers = Peers(model)
    batches = [torch.ones(3, 2)]
    assert (peers.rank, peers.size) == (0, 1)
    assert peers.joined(batches, torch.device("cpu")) is batches


@pytest.fixture(autouse=True)
def _no_group_here():
    assert not dist.is_initialized()
