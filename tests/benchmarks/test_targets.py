"""Published figures: the file, the two-sided verdict, and the lab's committed means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import targets as module
from benchmarks.targets import Target, judge, load_targets
from flatcl.errors import DataError

SUMMARY = Path(module.__file__).parent / "summary.json"
TARGETS = load_targets()


def test_the_file_has_the_protocols_and_a_reason_for_every_figure_that_is_not_judged():
    assert {"permuted-mnist-10-gpm", "split-mnist-domain", "split-cifar100-10"} <= set(TARGETS)
    gpm = {target.method: target for target in TARGETS["permuted-mnist-10-gpm"]}
    assert gpm["gpm-first"].published == 93.91
    assert gpm["trgp"].tolerance is None
    assert "told the task" in gpm["trgp"].source
    assert all(target.tolerance is None for target in TARGETS["split-cifar100-10"])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("p,ewc,105,1,x,", "published is '105'"),
        ("p,ewc,nan,1,x,", "published is 'nan'"),
        ("p,ewc,90,-1,x,", "tolerance is '-1'"),
        ("p,ewc,90,0,x,", "tolerance is '0'"),
        ("p,ewc,90,1,,", "source is ''"),
        ("p, ewc,90,1,x,", "method is ' ewc'"),
        ("p,ewc,90", "source is None"),
        ("p,ewc,90,1,x,\np,ewc,91,1,x,", "has a figure already"),
    ],
)
def test_rows_that_make_no_sense_are_refused_by_line(tmp_path, row, says):
    path = tmp_path / "targets.csv"
    path.write_text(f"protocol,method,published,tolerance,source,discrepancy\n{row}\n")
    with pytest.raises(DataError, match=r"line \d.*") as caught:
        load_targets(path)
    assert says in str(caught.value)


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "targets.csv"
    path.write_text("protocol,method,published,source\n")
    with pytest.raises(DataError, match="give protocol, method"):
        load_targets(path)


def test_the_verdict_is_two_sided():
    targets = [Target("ewc", 90.0, 1.0, "x")]
    for reached, verdict in (
        (89.0, "reached"), (91.0, "reached"), (88.9, "missed"), (91.1, "missed"), (None, "not run"),
    ):  # fmt: skip
        assert judge(targets, {"tuned": {"ewc": reached}})[0].verdict == verdict
    shown = judge([Target("ewc", 90.0, None, "other network")], {"tuned": {"ewc": 10.0}})[0]
    assert shown.verdict == "not judged"


def test_what_has_nothing_to_tune_is_judged_at_the_protocols_rate():
    reached = {"default": {"naive": 50.0, "ewc": 51.0}, "tuned": {"naive": 60.0, "ewc": 61.0}}
    naive, ewc, si = judge([Target(m, 50.0, 1.0, "x") for m in ("naive", "ewc", "si")], reached)
    assert (naive.reached, naive.regime) == (50.0, "default")
    assert (ewc.reached, ewc.regime) == (61.0, "tuned")
    assert (si.reached, si.regime) == (None, None)
    only = judge([Target("naive", 50.0, 1.0, "x")], {"tuned": {"naive": 60.0}})[0]
    assert (only.reached, only.regime) == (60.0, "tuned")


def test_a_figure_that_our_naive_of_that_regime_reaches_shows_nothing():
    reached = {"default": {"naive": 50.0, "si": 57.0}, "tuned": {"naive": 60.0, "ewc": 61.0}}
    ewc, si, naive, joint = judge(
        [Target(m, 60.0, 3.0, "x") for m in ("ewc", "si", "naive", "joint")], reached
    )
    assert (ewc.naive, ewc.telling) == (60.0, False)
    assert (si.naive, si.telling) == (50.0, True)
    assert (naive.naive, naive.telling) == (None, True)
    assert (joint.naive, joint.telling) == (50.0, True)


def test_tuned_naive_has_a_number_of_its_own_and_is_judged_tuned():
    reached = {"default": {"naive-tuned": 50.0}, "tuned": {"naive-tuned": 60.0}}
    found = judge([Target("naive-tuned", 60.0, 1.0, "x")], reached)[0]
    assert (found.reached, found.regime) == (60.0, "tuned")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "target"),
    [
        pytest.param(protocol, target, id=f"{protocol}-{target.method}")
        for protocol, found in TARGETS.items()
        for target in found
        if target.tolerance is not None
    ],
)
def test_the_labs_committed_means_reach_what_was_published(protocol, target):
    summary = json.loads(SUMMARY.read_text(encoding="utf-8")) if SUMMARY.exists() else {}
    if protocol not in summary:
        pytest.skip(f"no committed results of {protocol}: run `python -m benchmarks.run`")
    reached = {
        regime: {method: entry["acc_mean"] for method, entry in methods.items()}
        for regime, methods in summary[protocol].items()
    }
    found = judge([target], reached)[0]
    if found.verdict == "not run":
        pytest.skip(f"no committed results of {target.method} on {protocol}")
    # A miss must be explained where it is listed, and an explanation must be of a miss.
    expected = "missed" if target.discrepancy else "reached"
    assert found.verdict == expected, f"{found.reached} against {target}"
