"""The lab: its protocols, its plan, and runs that survive being killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab_runs import TEXT

from benchmarks import again, protocol_files, runner
from benchmarks import lab as lab_module
from benchmarks.cluster import Cluster
from benchmarks.families import family
from benchmarks.figure_style import Styles
from benchmarks.iso_memory import at_ldc_bytes
from benchmarks.lab import Lab, methods_of, report_jobs, tuning_job
from benchmarks.lab_methods import ESTIMATORS, SELDOM, STOCK, lab_methods
from benchmarks.outcomes import REGIMES
from benchmarks.protocol_files import SHORT_SEEDS, protocols, read
from benchmarks.run import main, render
from benchmarks.targets import load_targets
from benchmarks.tune import FINALISTS, REPEATS, Setting, Trial
from flatcl.cells import run_cell
from flatcl.errors import OptionError
from flatcl.protocol import CompareOptions
from flatcl.records import TUNING_SEED, Cell, Record, save

pytestmark = pytest.mark.usefixtures("lab_methods_apart")

ROOT = Path(__file__).parents[2]
DIGITS = CompareOptions(data="digits", scenario="split-domain", tasks=5, train_size=60)


@pytest.fixture
def protocol(tmp_path, monkeypatch):
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT)
    monkeypatch.setattr(lab_module, "RESULTS", tmp_path / "lab")
    return read(path)


def fill(lab, protocol, methods=("ldc",), regimes=REGIMES, until=1e12):
    return runner.fill(lab, [protocol], methods, regimes, where=Cluster(jobs=1), until=until)


def test_the_protocols_of_the_comparison_are_there_and_can_be_read():
    found = protocols()
    assert {"permuted-mnist-5", "split-mnist-class", "feng-tu-two-task"} <= set(found)
    for one in found.values():
        assert one.name not in {m.name for m in methods_of(one)}
        assert {"ldc", "joint"} <= {m.name for m in methods_of(one)}
        assert one.seeds >= (10 if one.methods != "core" else 5)
        assert one.tune_tasks or one.settings_of or one.methods != "core"
    names = {one.name: {m.name for m in methods_of(one)} for one in found.values()}
    for variants, kinds in ((ESTIMATORS, {"permuted", "domain"}), (STOCK, {"domain"})):
        assert {p.kind for p in found.values() if set(variants) <= names[p.name]} == kinds
        assert not set(variants) & names["split-mnist-class"]


def test_every_method_is_shown_on_each_kind_of_stream():
    shown = {}
    for one in protocols().values():
        shown.setdefault(one.kind, set()).update(m.name for m in methods_of(one))
    for kind, names in shown.items():
        expected = {m.name for m in lab_methods().values() if kind in m.kinds}
        assert expected - names <= {*ESTIMATORS, *STOCK}
    for one in protocols().values():
        if one.methods == "main":
            assert not set(SELDOM) & {m.name for m in methods_of(one)}


def test_a_protocol_s_page_says_what_its_fields_restrict(protocol):
    assert protocol.departures == "in everything; the core methods; 2 seeds in place of 10"
    whole = replace(protocol, methods="full", seeds=10, departs="")
    assert whole.departures == ""
    near = replace(whole, tune_tasks=3, settings_of="another")
    assert near.departures == "tuned on its first 3 tasks; settings as chosen on another"


def test_gpm_has_the_paper_s_own_first_layer_on_permuted_images_and_nowhere_else():
    for protocol in protocols().values():
        run = {method.name for method in methods_of(protocol)} & {"gpm", "gpm-first"}
        assert run <= {"gpm-first" if protocol.kind == "permuted" else "gpm"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = 2", "seeds = 0"), "tiny.toml: seeds is 0"),
        (("seeds = 2", "sseeds = 2"), "tiny.toml: there is no 'sseeds'"),
        (('"permuted"', '"bent"'), "tiny.toml: kind is 'bent'"),
        (("epochs = 1", "epochs = 0"), "tiny.toml: epochs is 0"),
        (("epochs = 1", "epoch = 1"), "tiny.toml: .*epoch"),
        (("seeds = 2", "seeds = "), "tiny.toml: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, change, message):
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT.replace(*change))
    with pytest.raises(OptionError, match=message):
        read(path)


@pytest.mark.parametrize("of", ["tiny", "none"])
def test_settings_come_from_a_protocol_that_has_some(tmp_path, monkeypatch, of):
    (tmp_path / "tiny.toml").write_text(
        TEXT.replace("seeds = 2", f'seeds = 2\nsettings_of = "{of}"')
    )
    monkeypatch.setattr(protocol_files, "FOLDER", tmp_path)
    with pytest.raises(OptionError, match=f"tiny.toml: settings_of is '{of}'"):
        protocols.__wrapped__()


def test_tuning_sees_no_reported_seed_no_test_image_and_another_order_of_classes():
    one = replace(protocols()["split-mnist-domain"], options=DIGITS)
    for method in methods_of(one):
        setting = Setting(0.1, method.default)
        jobs = [tuning_job(one, method, Trial(setting, repeat)) for repeat in range(REPEATS)]
        assert jobs[0].cell.seed == TUNING_SEED
        assert len({job.cell.seed for job in jobs}) == REPEATS
        for job in jobs:
            assert job.cell.split == "val"
            assert job.options.class_order == "drawn"
        for reported in report_jobs(one, method, setting, 10):
            assert reported.cell.split == "test"
            assert reported.cell.seed < min(job.cell.seed for job in jobs)
            assert reported.options.class_order == "natural"
    long = protocols()["permuted-mnist-20"]
    assert long.tuning_options().first_tasks == 3
    assert long.tuning_options().tasks == 20


def test_every_method_with_a_number_starts_from_five_values_in_equal_ratios():
    for method in lab_methods().values():
        if not method.grid:
            assert method.number is None
            continue
        ratios = [b / a for a, b in zip(method.grid, method.grid[1:], strict=False)]
        assert len(method.grid) == 5
        assert ratios == pytest.approx([ratios[0]] * 4, rel=0.15)
        assert method.default is not None or method.name.startswith("ldc")


def test_three_are_given_ldcs_rehearsal_on_every_short_stream_and_all_where_one_head_grows():
    for name, one in protocols().items():
        given = {method.name for method in methods_of(one) if method.name.endswith("+r")}
        if one.methods in ("core", "feng-tu"):
            assert given == set(), name
        elif one.kind == "class":
            assert {"naive+r", "ewc+r", "gpm+r", "ncl+r"} <= given, name
            assert not given & {"er+r", "agem+r", "ldc+r", "naive-tuned+r"}, name
        else:
            assert given == {"naive+r", "ewc-online+r", "lwf+r"}, name


def test_a_default_that_is_of_no_paper_or_library_is_told():
    guessed = {name.removesuffix("+r") for name, one in lab_methods().items() if one.guessed}
    assert guessed == {"naive-tuned", "ncl", "owm", "gpm", "dco"}
    assert lab_methods()["gpm-first"].default == lab_methods()["gpm"].default == 0.01


def test_every_method_has_a_family_a_colour_and_a_mark():
    names = list(lab_methods())
    styles = Styles(names)
    for name in names:
        assert family(name) != "other", name
        assert styles.colour(name)
        assert styles.mark(name)


@pytest.mark.parametrize("scenario", ["split-domain", "split-class", "split-task", "permuted"])
def test_replay_at_ldcs_bytes_holds_no_more_and_hardly_less(scenario):
    """On streams that LDC learns, so that it has a Gaussian of every class of each head."""
    options = CompareOptions(data="digits", scenario=scenario, tasks=5, hidden=(32,), epochs=20)
    images = at_ldc_bytes(options).memory
    held = run_cell(options, lab_methods()["ldc"].cell(None, 0, "test")).bytes_held
    assert held is not None
    assert held * 0.97 <= images * (64 * 4 + 8) <= held * 1.03


def test_the_lab_makes_what_is_missing_once_and_tells_it_all(protocol, tmp_path):
    lab = Lab()
    assert fill(lab, protocol, methods=("ldc",)) == []
    later = Lab()
    assert later.missing(protocol, lab_methods()["ldc"], REGIMES, 9) == []
    outcomes = list(later.outcomes(protocol))
    assert {(o.regime, o.method, o.seed) for o in outcomes} == {
        (r, "ldc", s) for r in REGIMES for s in (0, 1)
    }
    for one in outcomes:
        assert len(one.accuracy) == 2
        assert one.seconds["training"] > 0
        assert one.seconds["task_end"] >= 0
    searched = {one.method: one for one in later.searches(protocol)}
    assert set(searched) == {"naive-tuned", "naive", "ldc"}  # each tries the rate before it too
    ldc = searched["ldc"]
    at_naives = [t for t in ldc.tried if t.settings["lr"] == searched["naive"].chosen["lr"]]
    assert len(at_naives) >= 5
    assert len(ldc.tried) >= 15
    finalists = [t for t in ldc.tried if t.repeats == REPEATS]
    assert len(finalists) >= FINALISTS
    assert max(finalists, key=lambda t: t.acc_val).settings == ldc.chosen
    assert max(t.acc_val for t in ldc.tried) == max(t.acc_val for t in finalists)
    tuned = next(o for o in outcomes if o.regime == "tuned")
    assert tuned.settings == ldc.chosen
    assert again.check(later, [protocol], 0)
    folder = tmp_path / "project" / "benchmarks"
    folder.mkdir(parents=True)
    render(later, {protocol.name: protocol}, folder)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "Two tasks of digits" in page
    absent = [m.name for m in methods_of(protocol) if m.name != "ldc"]
    named = re.findall(r"^Still to be run of what the protocol compares: (.*)\. *$", page, re.M)
    assert [sorted(line.split(", ")) for line in named] == [sorted(absent)] * len(REGIMES)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    accs = [100 * sum(o.accuracy[-1]) / 2 for o in outcomes if o.regime == "tuned"]
    mean = round(sum(accs) / 2, 4)  # as the summary has it
    assert summary["tiny"]["tuned"]["ldc"]["acc_mean"] == pytest.approx(mean)


def test_a_protocol_near_another_takes_its_settings_and_makes_no_search(protocol, monkeypatch):
    naive = lab_methods()["naive-tuned"]
    near = replace(protocol, name="near", settings_of="tiny", tune_tasks=None)
    monkeypatch.setattr(lab_module, "protocols", lambda: {"tiny": protocol, "near": near})
    lab = Lab()
    missing = lab.missing(near, naive, ("tuned",), 9)
    assert {job.protocol for job in missing} == {"tiny"}
    assert fill(lab, near, methods=(naive.name,), regimes=("tuned",)) == []
    assert lab.missing(near, naive, ("tuned",), 9) == []
    assert len(list(lab.searches(protocol))) == 1
    assert list(lab.searches(near)) == []
    chosen = lab.setting(protocol, naive, "tuned")
    assert chosen is not None
    for one in lab.outcomes(near):
        assert one.settings["lr"] == chosen.lr
    assert len(list(lab.outcomes(near))) == 2
    assert len(lab.missing(protocol, naive, ("tuned",), 9)) == 2  # its own reported runs


def test_settings_of_a_stream_s_first_tasks_have_to_last_through_all_of_them(protocol):
    naive = lab_methods()["naive-tuned"]
    long = replace(protocol, tune_tasks=1)
    fill(Lab(), long, methods=(naive.name,), regimes=("tuned",))
    lab = Lab()
    best = lab.setting(long, naive, "tuned")
    assert best is not None
    assert lab.missing(long, naive, ("tuned",), 9) == []
    whole = tuning_job(long, naive, Trial(best, 0, whole=True))
    record = lab.record(whole)
    assert record is not None
    assert len(record.accuracy) == 2
    diverged = replace(record, status="diverged", error="the loss is nan")
    save(whole.folder, whole.options, diverged)
    lab = Lab()
    (job,) = lab.missing(long, naive, ("tuned",), 9)
    assert (job.cell.seed, job.cell.split) == (TUNING_SEED, "val")
    assert job.options.first_tasks is None
    next_best = Setting(job.options.lr, job.cell.value)
    assert next_best != best
    assert list(lab.outcomes(long)) == []
    runner.make([job], Cluster(jobs=1))
    assert lab.setting(long, naive, "tuned") == next_best
    assert len(lab.missing(long, naive, ("tuned",), 9)) == 2


def test_every_judged_method_is_run_on_its_protocol():
    known = protocols()
    for name, targets in load_targets().items():
        run = {method.name for method in methods_of(known[name])}
        assert {t.method for t in targets if t.tolerance is not None} <= run, name


def test_a_check_sees_a_record_that_was_altered(protocol):
    fill(Lab(), protocol, methods=("ldc",), regimes=("default",))
    lab = Lab()
    setting = Setting(protocol.options.lr, None)
    for job in report_jobs(protocol, lab_methods()["ldc"], setting, 2):
        record = lab.record(job)
        assert record is not None
        record.accuracy[0][0] += 0.125
    assert not again.check(lab, [protocol], 0)


def test_a_run_made_again_elsewhere_may_differ_as_two_repeats_do():
    def record(acc: float, machine: str | None = "here", status: Any = "done") -> Record:
        cell = Cell("ldc", None, 0, "test")
        return Record(cell, status, [[acc]], [1.0], 4, machine=machine)

    # s = .01, t(2, .975) = 4.30265: two repeats are within t s √2 = 6.085 points
    row = [record(acc) for acc in (0.79, 0.80, 0.81)]
    for before, now, good, said in (
        (0.80, 0.80, True, "bit for bit"),
        (0.80, 0.86, True, "6.00 points apart, on another kind of machine (there): two"),
        (0.80, 0.862, False, "within 6.08 (95 %)"),
    ):
        found = again.compared(record(before, "there"), record(now), row)
        assert found[0] == good
        assert said in found[1]
    assert again.compared(record(0.8, None), record(0.801), row)[0]
    assert not again.compared(record(0.8), record(0.801), row)[0]
    assert not again.compared(record(0.8, "there"), record(0.801), row[:1])[0]
    assert not again.compared(record(0.8, "there", "diverged"), record(0.8), row)[0]
    assert not again.compared(replace(record(0.8, "there"), bytes_held=5), record(0.8), row)[0]
    lost = [record(acc, where, "diverged") for acc, where in ((0.1, "there"), (0.2, "here"))]
    assert again.compared(lost[0], lost[1], row)[0]


def test_a_check_of_nothing_or_of_a_run_that_broke_off_says_so(protocol, monkeypatch, capsys):
    assert not again.check(Lab(), [protocol], 0)
    assert "no finished run" in capsys.readouterr().out
    fill(Lab(), protocol, methods=("ldc",), regimes=("default",))
    broken = {"status": "diverged", "accuracy": [], "loss": [], "bytes_held": None}
    monkeypatch.setattr(
        again, "run_cell", lambda options, cell: replace(run_cell(options, cell), **broken)
    )
    assert not again.check(Lab(), [protocol], 0)
    assert "another status, accuracy, loss, bytes_held" in capsys.readouterr().out


@pytest.mark.parametrize("altered", [False, True])
def test_runs_by_earlier_code_count_where_one_made_again_comes_out_the_same(
    protocol, monkeypatch, capsys, altered
):
    """Through two changes of code; the first is carried over, and so the second carries both."""
    naive = lab_methods()["naive-tuned"]  # whose search needs no other's
    fill(Lab(), protocol, methods=(naive.name,))
    assert Lab().missing(protocol, naive, REGIMES, 9) == []
    for number in range(2):
        monkeypatch.setattr("flatcl.records.code_of", lambda *_, n=number: f"later{n}")
        assert Lab().missing(protocol, naive, REGIMES, 9)
        if altered and number == 1:
            for path in (lab_module.RESULTS / "tiny" / "runs").glob("*.json"):
                text = path.read_text().replace('"bytes_held": ', '"bytes_held": 1')
                path.write_text(text.replace('"machine": "', '"machine": "old '))
        lab = Lab()
        found = again.carry_over(lab, [protocol], (naive.name,), Cluster(jobs=1))
        assert sum(found) == number + 1
        assert found[1] == (2 if altered and number == 1 else 0)
        assert capsys.readouterr().out.count("on another kind of machine") == found[1]
        for known in (lab, Lab()):
            assert bool(known.missing(protocol, naive, REGIMES, 9)) == (altered and number == 1)
    assert len(list(Lab().outcomes(protocol))) == (1 if altered else 4)


def test_a_run_that_fails_is_named_tried_once_and_not_kept(protocol, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("flatcl.cells.judge", broken)
    failed = fill(Lab(), protocol, methods=("ldc",), regimes=("default",))
    assert len(failed) == 2
    assert "out of luck" in capsys.readouterr().err
    monkeypatch.undo()


def test_nothing_is_begun_after_the_time(protocol):
    lab = Lab()
    assert fill(lab, protocol, until=time.monotonic() - 1) == []
    assert not list(lab.outcomes(protocol))


SCRIPT = """
import sys
from pathlib import Path
from benchmarks import lab, run
from benchmarks.cluster import Cluster
from benchmarks.protocol_files import read
lab.RESULTS = Path(sys.argv[2])
run.fill(lab.Lab(), [read(Path(sys.argv[1]))], ("ldc",), ("default",),
         where=Cluster(jobs=1))
"""


def test_a_killed_lab_goes_on_where_it_stopped(protocol, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT.replace("seeds = 2", "seeds = 6"))
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(path), str(folder)]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    runs = folder / "tiny" / "runs"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(runs.glob("*.json"))) < 2:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    made = {p.name: p.stat().st_mtime_ns for p in runs.glob("*.json")}
    assert 2 <= len(made) < 6
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    after = {p.name: p.stat().st_mtime_ns for p in runs.glob("*.json")}
    assert len(after) == 6
    assert made.items() <= after.items()


@pytest.mark.slow
def test_a_cluster_of_two_workers_makes_the_same_runs(protocol, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    assert fill(Lab(), protocol, methods=("ldc",), regimes=("default",)) == []
    folders = [tmp_path / name for name in ("lab", "cluster")]
    monkeypatch.setattr(lab_module, "RESULTS", folders[1])
    where = Cluster("dask", jobs=2)
    assert runner.fill(Lab(), [protocol], ("ldc",), ("default",), where=where) == []
    alone, together = (
        {p.name: json.loads(p.read_text())["accuracy"] for p in f.glob("tiny/runs/*.json")}
        for f in folders
    )
    assert alone == together
    assert len(alone) == 2


def test_the_long_part_of_the_lab_is_what_has_fewer_methods_and_seeds():
    known = protocols().values()
    assert {p.part for p in known} == {"short", "long"}
    for protocol in known:
        assert (protocol.methods == "core") == (protocol.part == "long")
        assert (protocol.seeds < SHORT_SEEDS) == (protocol.part == "long")


@pytest.mark.parametrize("wrong", [["nope"], ["--methods", "nope"], ["--regimes", "nope"]])
def test_names_that_do_not_exist_are_a_usage_error(wrong, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", *wrong])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "there is no 'nope'" in capsys.readouterr().err


def test_what_is_missing_is_listed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(lab_module, "RESULTS", tmp_path)
    line = ["run", "feng-tu-two-task", "--methods", "ldc", "--regimes", "default", "--list"]
    monkeypatch.setattr(sys, "argv", line)
    main()
    assert capsys.readouterr().out.split() == ["feng-tu-two-task", "ldc", "10"]
