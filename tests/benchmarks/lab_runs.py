"""A protocol, outcomes and searches made up for tests of the lab and its report."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from benchmarks.about import Kind, ProtocolAbout
from benchmarks.outcomes import Outcome, Regime, Search, Tried
from benchmarks.targets import Target

LEARNED = 0.97
TEXT = """
title = "Two tasks of digits"
kind = "permuted"
follows = "nothing"
departs = "in everything"
seeds = 2
methods = "core"
[options]
data = "digits"
tasks = 2
epochs = 1
train_size = 48
hidden = [12]
"""
"""A protocol's file."""


def run(
    method: str,
    seed: int,
    acc: float,
    *,
    protocol: str = "p",
    regime: Regime = "tuned",
    status: Literal["done", "diverged"] = "done",
    tasks: int = 3,
    learned: float = LEARNED,
    seconds: float = 10.0,
    settings: dict[str, float] | None = None,
    held: tuple[int, int] | None = (1000, 3000),
    machine: str | None = None,
) -> Outcome:
    """A run that learns every task to ``learned`` and ends at ``acc`` on average."""
    old = learned - (learned - acc) * tasks / (tasks - 1)  # so that the last row's mean is acc
    rows: list[list[float] | None] = []
    for i in range(tasks):
        # what a task loses, it loses evenly over the tasks after it
        lost = [(learned - old) * (i - j) / (tasks - 1 - j) if j < i else 0.0 for j in range(tasks)]
        rows.append([learned - lost[j] if j <= i else 0.1 for j in range(tasks)])
    if method == "joint":
        rows = [None] * (tasks - 1) + [[acc] * tasks]
    if status == "diverged":
        rows = rows[:1]
    return Outcome(
        protocol,
        regime,
        method,
        settings or {"lr": 0.05},
        seed,
        status,
        rows,
        {"training": 0.8 * seconds, "task_end": 0.2 * seconds},
        None if status == "diverged" else held,
        machine,
    )


def runs(method: str, accs: Sequence[float], **kind) -> list[Outcome]:
    return [run(method, seed, acc, **kind) for seed, acc in enumerate(accs)]


PROTOCOLS: dict[str, ProtocolAbout] = {
    "permuted-mnist-10": ProtocolAbout(
        "Permuted MNIST, 10 tasks",
        "784-100-100-10 without biases, SGD 0.01, batches of 10, 5 epochs",
        "Saha et al. 2021 (GPM)",
        "12,000 images a task, to spare time",
        "permuted",
        [Target("ewc", 89.97, 3.0, "CUBER, Table 1"), Target("gpm", 93.91, 1.0, "GPM")],
    ),
    "rotated-mnist-5": ProtocolAbout(
        "Rotated MNIST, 5 tasks", "784-256-256-10, SGD, 1 epoch", "own", "", "rotated"
    ),
    "split-mnist-domain": ProtocolAbout(
        "Split MNIST, domain-incremental",
        "MLP 2×400, Adam 0.001, batches of 128, 4 epochs",
        "Hsu et al. 2018",
        "",
        "domain",
        [Target("naive", 55.16, 3.0, "Hsu"), Target("mas", 68.57, None, "other network")],
    ),
    "split-mnist-class": ProtocolAbout(
        "Split MNIST, class-incremental", "MLP 2×400, Adam 0.001", "Hsu et al. 2018", "", "class"
    ),
}
_TOP: dict[Kind, float] = {
    "permuted": 0.96, "rotated": 0.95, "domain": 0.985, "class": 0.97, "task": 0.99,
}  # fmt: skip
_SHARE = {
    "naive": 0.5, "l2": 0.6, "ewc": 0.75, "ewc-online": 0.77, "si": 0.7, "mas": 0.72, "lwf": 0.65,
    "gpm": 0.9, "er": 0.88, "ldc": 0.97, "joint": 1.0,
}  # fmt: skip
_OWN = {"l2": "decay", "ewc": "ewc_lambda", "ewc-online": "ewc_lambda", "si": "si_lambda",
        "mas": "lambda_reg", "lwf": "alpha", "gpm": "threshold"}  # fmt: skip
_COST = {"ewc": 2.4, "ewc-online": 1.5, "si": 1.6, "lwf": 1.9, "gpm": 1.4, "ldc": 1.35}
_HELD = {"naive": 0, "joint": 0, "ewc": 7_200_000, "ewc-online": 716_000, "ldc": 1_250_000}


def lab(
    seeds: int = 5, protocols: Sequence[str] = tuple(PROTOCOLS)
) -> tuple[list[Outcome], list[Search], dict[str, ProtocolAbout]]:
    """A whole lab: protocols, both regimes, eleven methods, one run diverged."""
    draw = random.Random(7)
    outcomes, searches = [], []
    chosen = {name: PROTOCOLS[name] for name in protocols}
    for name, about in chosen.items():
        top, tasks = _TOP[about.kind], 10 if "10" in name else 5
        for regime in ("default", "tuned"):
            for method, share in _SHARE.items():
                lower = 0.2 if about.kind == "class" and method not in {"ldc", "joint", "er"} else 0
                level = max(0.2, top * (share - lower) - (0.03 if regime == "default" else 0))
                own = {_OWN[method]: 100.0} if method in _OWN else {}
                for seed in range(seeds):
                    lost = regime == "tuned" and method == "ewc" and seed == 1 and tasks == 5
                    outcomes.append(
                        run(
                            method,
                            seed,
                            level + draw.gauss(0, 0.008),
                            protocol=name,
                            regime=regime,
                            status="diverged" if lost else "done",
                            tasks=tasks,
                            learned=max(0.9, level + 0.02),
                            seconds=60 * _COST.get(method, 1.0) * draw.uniform(0.95, 1.05),
                            settings={"lr": 0.05, **own},
                            held=(_HELD.get(method, 400_000) // 2, _HELD.get(method, 400_000)),
                        )
                    )
                if regime == "tuned" and method not in {"er", "joint"}:
                    searches.append(_search(name, method, level, draw))
    return outcomes, searches, chosen


def _search(protocol: str, method: str, level: float, draw: random.Random) -> Search:
    tried = []
    for lr in (0.01, 0.05, 0.2):
        for power in range(5) if method in _OWN else (2,):
            own = {_OWN[method]: 10.0**power} if method in _OWN else {}
            fall = 0.05 * abs(power - 2) + 0.04 * (lr != 0.05) + draw.uniform(0, 0.01)
            acc = 0.0 if lr == 0.2 and power == 4 else max(0.1, level - fall)
            tried.append(Tried({"lr": lr, **own}, acc, 12.0, 1))
    best = max(tried, key=lambda cell: cell.acc_val)
    return Search(protocol, method, tried, best.settings, ("lr",) if method == "si" else ())
