"""A task that is saved and taken up again ends as if it had never stopped, bit for bit."""

from __future__ import annotations

import copy
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatcl.core.engine import Landscape
from flatcl.core.options import LDCOptions
from flatcl.errors import StateError

ROOT = Path(__file__).parents[3]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, dampening=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
}
STEPS, BATCH, INTERVAL = 40, 8, 7  # states are cached: a test that changes one copies it


def data(task):
    g = torch.Generator().manual_seed(100 + task)
    y = torch.randint(0, 3, (160,), generator=g)
    x = torch.randn(160, 6, generator=g) + 2.0 * torch.randn(3, 6, generator=g)[y]
    return x, y


class Run:
    """A training loop whose whole state is a dict; it may be stopped after any step."""

    def __init__(self, optimizer="sgd", **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)
        )
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 3 * STEPS)
        self.order = torch.Generator().manual_seed(1)
        self.told = options.pop("told", STEPS)
        options = LDCOptions(**{"interval": INTERVAL, "probe_inputs": 60, **options})
        self.landscape = Landscape(self.model, self.optimizer, options=options)
        self.made = 0

    def train(self, until):
        while self.made < until:
            task, step = divmod(self.made, STEPS)
            x, y = data(task)
            if step == 0:
                self.landscape.begin_task(self.told)
            chosen = torch.randint(0, len(x), (BATCH,), generator=self.order)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x[chosen]), y[chosen])
            (loss + self.landscape.rehearsal()).backward()
            self.optimizer.step()
            self.landscape.step(BATCH)
            self.scheduler.step()
            self.made += 1
            yield self
            if self.made % STEPS == 0:
                self.landscape.end_task([x])

    def run(self, until):
        for _ in self.train(until):
            pass
        return self

    def state_dict(self):
        parts = ("model", "optimizer", "scheduler", "landscape")
        states = {name: getattr(self, name).state_dict() for name in parts}
        return {**states, "order": self.order.get_state(), "made": self.made}

    def load_state_dict(self, state):
        for name in ("model", "optimizer", "scheduler", "landscape"):
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))
        self.order.set_state(state["order"])
        self.made = state["made"]
        return self

    def finish(self, until):
        """Go on from a state that may have been taken after a task's last step."""
        if self.made % STEPS == 0 and self.landscape.task is not None:
            self.landscape.end_task([data(self.made // STEPS - 1)[0]])
        return self.run(until)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(a, b):
    for (name, p), q in zip(
        a.model.state_dict().items(), b.model.state_dict().values(), strict=True
    ):
        assert torch.equal(p, q), name
    mine, theirs = a.landscape.state_dict(), b.landscape.state_dict()
    assert set(mine["constraints"]) == set(theirs["constraints"])
    for name, saved in mine["constraints"].items():
        for key, tensor in saved.items():
            assert torch.equal(tensor, theirs["constraints"][name][key]), (name, key)
    assert torch.equal(mine["generator"], theirs["generator"])
    assert mine["tasks_ended"] == theirs["tasks_ended"]


@cache
def undisturbed(tasks, **options):
    return Run(**options).run(tasks * STEPS)


@cache
def stopped_at(step, **options):
    """The state after so many steps, before the task is ended if it was its last."""
    for run in Run(**options).train(step):
        if run.made == step:
            return through_a_file(run.state_dict())
    raise AssertionError


@pytest.mark.parametrize("source", ["probe", "sgd"])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_resumed_at_a_random_step_is_the_undisturbed_run(optimizer, source):
    at = random.Random(f"{optimizer} {source}")
    options = {"optimizer": optimizer, "source": source, "told": at.choice([STEPS, None])}
    whole = undisturbed(2, **options)
    state = stopped_at(at.randrange(2, 2 * STEPS), **options)
    assert_same(Run(**options).load_state_dict(state).finish(2 * STEPS), whole)


# First step of all, right after a pull, one before, mid-tooth, within the last part that source
# "sgd" watches, after a task's last step, in task 3.
@pytest.mark.parametrize("source", ["probe", "sgd"])
@pytest.mark.parametrize("step", [1, 46, 47, 50, 78, 80, 2 * STEPS + 38])
def test_every_kind_of_instant(step, source):
    whole = undisturbed(3, optimizer="adam", source=source)
    resumed = Run("adam", source=source).load_state_dict(
        stopped_at(step, optimizer="adam", source=source)
    )
    assert_same(resumed.finish(3 * STEPS), whole)


@pytest.mark.parametrize(
    "options",
    [{"strength": 0.0}, {"strength": 0.0, "centre": True}, {"centre": False}, {"interval": 1000}],
)
def test_switches(options):
    whole = undisturbed(2, **options)
    resumed = Run(**options).load_state_dict(stopped_at(STEPS + 31, **options))
    assert_same(resumed.finish(2 * STEPS), whole)


def test_without_any_task():
    state = through_a_file(Run().state_dict())
    assert state["landscape"]["task"] is None
    assert_same(Run().load_state_dict(state).run(STEPS), Run().run(STEPS))


def test_an_evaluation_right_after_taking_up_sees_the_same_pulled_weights():
    run = Run("adam", strength=0.1)
    for _ in run.train(STEPS + 12):
        pass
    assert run.landscape.task.schedule.waiting == 5
    resumed = Run("adam", strength=0.1).load_state_dict(through_a_file(run.state_dict()))
    with run.landscape.evaluating(), resumed.landscape.evaluating():
        seen = [[p.detach().clone() for p in r.model.parameters()] for r in (run, resumed)]
        assert not torch.equal(seen[0][0], run.landscape.state_dict()["task"]["start"]["0.weight"])
    for p, q, now in zip(*seen, run.model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, now)


def test_what_is_left_out_would_be_noticed():
    """The test of the tests: without any one part of the state the runs part."""
    options = {"optimizer": "adam", "source": "sgd", "told": None, "interval": 2}
    whole = undisturbed(2, **options)
    state = stopped_at(STEPS + 39, **options)
    blank = Run(**options)
    blank.landscape.begin_task()
    empty = blank.landscape.state_dict()["task"]
    for part in ("schedule", "centre", "measurement", "steps_made"):
        less = copy.deepcopy(state)
        if part == "schedule":
            less["landscape"]["task"]["schedule"]["pulls"] = 0
            less["landscape"]["task"]["schedule"]["travelled"] = [0.3]
        else:
            less["landscape"]["task"][part] = empty[part]
        with pytest.raises((AssertionError, StateError)):
            assert_same(Run(**options).load_state_dict(less).finish(2 * STEPS), whole)


@pytest.mark.parametrize("source", ["probe", "sgd"])
def test_a_kept_state_does_not_change_as_training_goes_on(source):
    kept, copies = None, None
    run = Run("adam", source=source)
    for _ in run.train(2 * STEPS):
        if run.made == STEPS + 38:
            kept = run.landscape.state_dict()
            copies = copy.deepcopy(kept)
    assert equal(kept, copies)
    # And a state serves twice: what took it up first has not changed it.
    first = Run("adam", source=source)
    parts = stopped_at(STEPS + 38, optimizer="adam", source=source)
    first.load_state_dict({**parts, "landscape": kept}).finish(2 * STEPS)
    assert equal(kept, copies)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return set(a) == set(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_state_of_version_1_is_still_read():
    run = Run().run(STEPS)
    state = run.landscape.state_dict()
    assert state["version"] == 6
    old = {**{k: v for k, v in state.items() if k != "task"}, "version": 1}
    fresh = Run().load_state_dict({**run.state_dict(), "landscape": through_a_file(old)})
    assert_same(fresh.run(2 * STEPS), run.run(2 * STEPS))


def _spoilt(state, *path, value):
    spoilt = copy.deepcopy(state)
    inner = spoilt
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return spoilt


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("task", "start", "0.weight"), torch.zeros(2, 2), r"'0.weight' .* has shape \(2, 2\)"),
        (("task", "start", "0.weight"), None, "differ in 0.weight"),
        (("task", "start"), None, "lacks 'start'"),
        (("task", "steps"), None, "lacks 'steps'"),
        (("task", "schedule"), {}, "lacks 'travelled'"),
        (("task", "schedule", "travelled"), [0.0, 0.0], "parameter groups"),
        (("task", "schedule", "units", "x"), {"ends": []}, "differ in x"),
        (("task", "schedule", "units", "0.weight", "u"), torch.zeros(3), "pull of 0.weight"),
        (("task", "centre", "segments"), None, "lacks 'segments'"),
        (("task", "centre", "segments", 0, "sums", "1.weight"), None, "differ in 1.weight"),
        (("task", "statistics", "share"), None, "lacks 'share'"),
        (("task", "statistics", "earlier", "x"), [], "statistics of 'x', which is no BatchNorm"),
        (("task", "measurement", "sides"), None, "lacks 'sides'"),
        (("task", "measurement", "sides", "0.weight", "S_in"), torch.zeros(2, 2), "'S_in'"),
        (("task", "measurement", "sides", "x"), {}, "hold x, which the model"),
        (("generator",), torch.zeros(3, dtype=torch.uint8), "no generator's state"),
        (("tasks_ended",), None, "lacks 'tasks_ended'"),
        (("options",), None, "lacks 'options'"),
        (("constraints",), None, "lacks 'constraints'"),
        (("version",), 7, "version 7"),
    ],
)
def test_a_spoilt_state_is_refused_and_nothing_changed(path, value, message):
    state = stopped_at(STEPS + 39, optimizer="adam", source="sgd")["landscape"]
    fresh = Run("adam", source="sgd")
    before = fresh.landscape.state_dict()
    with pytest.raises(StateError, match=message):
        fresh.landscape.load_state_dict(_spoilt(state, *path, value=value))
    assert equal(fresh.landscape.state_dict(), before)


def test_a_learning_rate_in_a_tensor_counts():
    """An optimiser may hold its rate as a tensor that changes in place."""
    runs = []
    for rate in (0.05, torch.tensor(0.05, dtype=torch.float64)):
        run = Run()
        run.optimizer.param_groups[0]["lr"] = rate
        run.scheduler = torch.optim.lr_scheduler.ConstantLR(run.optimizer, 1.0)
        for _ in run.train(STEPS + 30):
            pass
        runs.append(run.landscape.task.schedule)
    assert runs[0].pulls == runs[1].pulls > 1
    assert runs[0].interval == runs[1].interval
    assert runs[0].since(0) == pytest.approx(runs[1].since(0))


_KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_resume import Run
run = Run({optimizer!r}, source={source!r})
for _ in run.train(80):
    torch.save(run.state_dict(), {file!r} + ".new")
    os.replace({file!r} + ".new", {file!r})
    if run.made == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_is_taken_up(tmp_path):
    source = "sgd"
    file = str(tmp_path / "run.pt")
    step = random.Random(source).randrange(STEPS + 2, 2 * STEPS)
    code = _KILLED.format(
        tests=str(Path(__file__).parent), optimizer="momentum", source=source, file=file, step=step
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, env=environment
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = Run("momentum", source=source).load_state_dict(torch.load(file, weights_only=True))
    assert resumed.made == step
    assert_same(resumed.finish(2 * STEPS), undisturbed(2, optimizer="momentum", source=source))
