"""The lab's figures show the numbers they are given, and their SVG can stand in a page."""

from __future__ import annotations

import re

import numpy as np
import pytest
from lab_runs import lab, run, runs

from benchmarks.collected import Collected
from benchmarks.figure_matrices import accuracy_matrices, mean_rows
from benchmarks.figure_style import Styles, spread, svg
from benchmarks.figure_tuning import search_curves
from benchmarks.figures import (
    accuracy_against_overhead,
    accuracy_over_time,
    forgetting_against_bytes,
)
from benchmarks.outcomes import Search, Tried
from benchmarks.statistics import table
from flatcl.errors import DataError

STYLES = Styles(["naive", "ewc", "ldc", "joint"])


def drawn(figure) -> None:
    figure.canvas.draw()


def test_time_shows_the_mean_over_tasks_seen_and_over_seeds():
    outcomes = [*runs("ewc", [0.6, 0.7]), run("ewc", 2, 0.1, status="diverged")]
    outcomes += runs("joint", [0.9, 0.92])
    axes = accuracy_over_time(Collected(outcomes), "p", "tuned", STYLES).axes[0]
    ewc, joint = axes.lines
    # tasks learned to .97; the last row's means are .6 and .7
    assert list(ewc.get_xdata()) == [1, 2, 3]
    heights = np.asarray(ewc.get_ydata(), dtype=float)
    assert heights[0] == pytest.approx(97.0)
    assert heights[-1] == pytest.approx(65.0)
    assert list(np.asarray(joint.get_ydata())) == pytest.approx([91.0, 91.0])
    assert {text.get_text() for text in axes.texts} == {"ewc", "joint"}


def test_means_of_matrices_keep_what_all_runs_have():
    first, second = run("ewc", 0, 0.6).accuracy, run("ewc", 1, 0.8).accuracy
    rows = mean_rows(runs("ewc", [0.6, 0.8]))
    assert rows[1] is not None
    assert first[1] is not None
    assert second[1] is not None
    assert rows[1][0] == pytest.approx((first[1][0] + second[1][0]) / 2)
    assert mean_rows(runs("joint", [0.9]))[:2] == [None, None]
    assert mean_rows([]) == []
    with pytest.raises(DataError, match="differ in their tasks"):
        mean_rows([run("ewc", 0, 0.6), run("ewc", 1, 0.6, tasks=4)])


def test_overhead_is_relative_to_naive_or_to_its_tuned_form():
    outcomes = [*runs("naive", [0.5, 0.5], seconds=20.0), *runs("ewc", [0.8, 0.82], seconds=50.0)]
    figure = accuracy_against_overhead(table(Collected(outcomes), "p", "tuned"), STYLES)
    assert figure is not None
    points = {c.get_label(): c.lines[0].get_xydata()[0] for c in figure.axes[0].containers}
    assert points["ewc"] == pytest.approx([2.5, 81.0])
    assert points["naive"] == pytest.approx([1.0, 50.0])
    only = table(Collected(runs("ewc", [0.8])), "p", "tuned")
    assert accuracy_against_overhead(only, STYLES) is None
    assert not figure.axes[0].patches
    shaded = accuracy_against_overhead(table(Collected(outcomes), "p", "tuned"), STYLES, [0.8, 0.9])
    assert shaded is not None
    (band,) = shaded.axes[0].patches
    # A Polygon before Matplotlib 3.9, a Rectangle since.
    x = band.get_patch_transform().transform(band.get_path().vertices)[:, 0]
    assert (min(x), max(x)) == pytest.approx((0.8, 1.0))
    tuned = Collected([*runs("naive-tuned", [0.5], seconds=25.0), *runs("ewc", [0.8], seconds=50)])
    figure = accuracy_against_overhead(table(tuned, "p", "tuned"), Styles(["naive-tuned", "ewc"]))
    assert figure is not None
    x = [c.lines[0].get_xydata()[0][0] for c in figure.axes[0].containers]
    assert x == pytest.approx([1.0, 2.0])


def test_bytes_stand_on_a_logarithmic_axis_with_a_place_for_none():
    outcomes = [*runs("naive", [0.5], held=(0, 0)), *runs("ewc", [0.8], held=(10**5, 10**6))]
    figure = forgetting_against_bytes(table(Collected(outcomes), "p", "tuned"), STYLES)
    assert figure is not None
    drawn(figure)
    axes = figure.axes[0]
    points = {c.get_label(): c.lines[0].get_xydata()[0] for c in axes.containers}
    labels = {
        label.get_text(): x
        for label, x in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
    }
    assert points["naive"][0] == pytest.approx(labels["0"])
    assert points["ewc"][0] == pytest.approx(labels["1 MB"])
    assert points["ewc"][1] == pytest.approx(1.5 * (97 - 80))  # two of three tasks lose it all


def test_matrices_leave_out_joint_and_the_tasks_to_come():
    outcomes = [*runs("ewc", [0.6, 0.8]), *runs("joint", [0.9])]
    figure = accuracy_matrices(Collected(outcomes), "p", "tuned", ["ewc", "joint", "si"])
    assert figure is not None
    drawn(figure)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["ewc"]
    values = np.ma.filled(panels[0].collections[0].get_array(), np.nan).reshape(3, 3)
    assert np.isnan(values[0, 1:]).all()
    assert values[2].mean() == pytest.approx(70.0)
    assert accuracy_matrices(Collected(outcomes), "p", "tuned", ["joint"]) is None


def test_curves_take_the_best_rate_of_each_value_and_cross_out_what_diverged():
    tried = [
        Tried({"lr": lr, "ewc_lambda": value}, acc, 1.0, 1)
        for lr, value, acc in (
            (0.1, 1.0, 0.5), (0.2, 1.0, 0.6), (0.1, 100.0, 0.8), (0.2, 100.0, 0.0),
            (0.1, 1e4, 0.0), (0.2, 1e4, 0.0),
        )
    ]  # fmt: skip
    search = Search("p", "ewc", tried, {"lr": 0.1, "ewc_lambda": 100.0}, ("ewc_lambda",))
    lr_only = Search("p", "naive", [Tried({"lr": x}, 0.5, 1.0, 1) for x in (0.1, 0.2)], {"lr": 0.1})
    figure = search_curves([search, lr_only], STYLES)
    assert figure is not None
    drawn(figure)
    (axes,) = figure.axes
    curve, crosses, ring = (np.asarray(line.get_xydata(), dtype=float) for line in axes.lines)
    assert curve == pytest.approx(np.array([[1.0, 60.0], [100.0, 80.0]]))
    assert list(crosses[:, 0]) == [1e4]
    assert ring == pytest.approx(np.array([[100.0, 80.0]]))
    assert "edge: ewc_lambda" in axes.get_title(loc="left")
    assert search_curves([lr_only], STYLES) is None


def test_labels_that_would_touch_are_set_apart_about_their_mean():
    assert spread([1.0, 5.0], 1.0) == [1.0, 5.0]
    assert spread([5.0, 5.2], 1.0) == pytest.approx([4.6, 5.6])
    found = spread([3.0, 0.0, 0.1, 0.9, 3.0], 1.0)
    gaps = np.diff(sorted(found))
    assert (gaps > 1 - 1e-9).all()
    assert np.argsort(found).tolist()[:3] == [1, 2, 3]  # order is kept
    assert sum(found) == pytest.approx(7.0)


def test_every_method_has_a_look_of_its_own():
    methods = sorted({outcome.method for outcome in lab(1, ["split-mnist-domain"])[0]})
    styles = Styles(methods)
    assert len({(styles.colour(m), styles.mark(m)) for m in methods}) == len(methods)


def test_svg_is_the_same_text_each_time_with_ids_of_its_own_and_no_fixed_ink():
    outcomes = [*runs("ewc", [0.6, 0.8]), *runs("ldc", [0.9])]

    def text(name: str) -> str:
        return svg(accuracy_over_time(Collected(outcomes), "p", "tuned", STYLES), name)

    first = text("a")
    assert first == text("a")
    assert first.startswith("<svg")
    assert ">ldc<" in first  # letters stay letters
    assert "currentColor" in first
    assert "var(--own-ink" in first
    assert not re.search(r"1b1b1b|<metadata|<image|data:", first, re.IGNORECASE)
    ids = set(re.findall(r'\bid="([^"]+)"', first))
    assert all(name.startswith("a-") for name in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', first)) <= ids
    assert not ids & set(re.findall(r'\bid="([^"]+)"', text("b")))
